"""Findings about file names that look like personal data, and about images that no entry lists."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from vesalius.checks.findings import finding
from vesalius.data.dataset import Dataset
from vesalius.data.decoders.picture import SUFFIXES
from vesalius.names import count_of, list_names
from vesalius.types import Finding, MaskFile, Sample

ORDINARY_WORDS = """
    image images img frame slice scan view series study case sample patient subject visit session video clip
    cine left right eye od os upper lower top bottom front back mask masks label labels vessel vessels
    artery arteries vein coronary carotid aorta cerebral renal lad lcx lca rca lm lao rao ap pa cranial
    caudal straight heart cardiac brain lung liver kidney spleen chest head neck knee hip hand spine breast
    skin cell cells nuclei polyp colon retina fundus optic disc cup ct mr mri us xa xr dx dsa oct oca octa
    cta mra pet flair dwi adc angio angiogram angiography xray normal abnormal healthy disease lesion tumor
    tumour benign malignant train training test testing val valid validation fold set data dataset raw
    original copy final new old crop cropped resized frontal lateral axial sagittal coronal anterior
    posterior proximal distal mid pre post rest stress phase contrast high low quality db version part one
    two three first second third north south east west camera screenshot screen shot picture photo untitled
    synth synthetic demo example gray grey rgb color colour png jpg jpeg tif dcm and of the with without
"""

ORDINARY = frozenset(ORDINARY_WORDS.split())
"""Lower-case words in file names that are not personal names."""

SURNAMES = "王李张刘陈杨黄赵吴周徐孙马朱胡郭何林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶苏魏吕丁任沈姚卢姜崔钟谭陆汪范石廖贾夏韦付邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严武戴莫孔向汤"

COMPOUND_SURNAMES = """
    欧阳 司马 上官 诸葛 夏侯 皇甫 尉迟 公孙 慕容 令狐 长孙 宇文 司徒 司空 端木 南宫 独孤 呼延 轩辕 申屠 太史 鲜于 闻人 东方 西门 澹台
"""

ORDINARY_CHINESE = tuple(
    """
     周期 周边 周围 周身 周岁 石灰 石蜡 江苏 江西 武汉 沈阳 苏州 苏木 马鞍 马蹄 万方 向左 向右 向上 向下
     向心 许可 许多 任务 任意 史 黄斑 黄疸 毛细 毛玻璃 严重 陈旧 张口 张力 唐氏 叶片 雷达 范围 范例 段落
     夏季 孔径 宋体 东方医院 马赛克 黄色 毛刺 肖像 石墨
    """.split()
)
"""Chinese words that begin with the character of a surname but are not personal names."""

FOLLOWING = "造影 血管 冠脉 冠状 左 右 图 片 影像 检查 术 视频 序列 扫描 超声 心 眼 胸 腹 脑 头 男 女 的 第"
"""Chinese words that may directly follow a personal name."""

UUID = re.compile(r"(?i)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
HASH = re.compile(r"(?i)(?<![0-9a-z])(?=(?:[a-z]*[0-9]+[a-z]+){2})[0-9a-z]{16,}(?![0-9a-z])")
DICOM_UID = re.compile(r"\d+(\.\d+){5,}")
RECORD = re.compile(r"(?<!\d)(?!00)\d{6,12}(?!\d)")
KEYED_RECORD = re.compile(
    r"(?i)(?<![a-z])(mrn|medrec|patient[-_ ]?(?:name|id)|病历号?|住院号?|门诊号?)[-_ ]?[0-9a-z]{4,}"
)
YEAR, MONTH, DAY = r"(19\d\d|20[0-2]\d)", "(0[1-9]|1[0-2])", r"(0[1-9]|[12]\d|3[01])"
ORDERS = ((YEAR, MONTH, DAY), (DAY, MONTH, YEAR), (MONTH, DAY, YEAR))
BIRTHS = [re.compile(r"(?<!\d)" + "[-_.]".join(order) + r"(?!\d)") for order in ORDERS]
DATES = [re.compile("".join(order)) for order in ORDERS]
CARET = re.compile(r"[^\W\d_]+\s*[\^,]\s*[^\W\d_]+")
TOKEN = re.compile(r"[^\W_]+")
BETWEEN = re.compile(r"[_\-. ]{1,3}")
CHINESE = re.compile(
    rf"(?<![\u4e00-\u9fff])(?:患者|病人|姓名)?((?:{'|'.join(COMPOUND_SURNAMES.split())}|[{SURNAMES}])[\u4e00-\u9fff]{{1,2}}?)"
    rf"(?:(?![\u4e00-\u9fff])|(?={'|'.join(FOLLOWING.split())}))"
)
SUFFIX = re.compile(
    r"(?i)\.(png|jpe?g|bmp|tiff?|webp|gif|dcm|dicom|ima|nii|nii\.gz|json|xml|npy|npz|mha|mhd|nrrd|mp4|avi|mov|mkv)$"
)


def check_names(dataset: Dataset) -> list[Finding]:
    """Findings `personal_name`, one for each suspicious file or folder name, with the name masked."""
    suspects: dict[tuple[str, ...], str] = {}
    numbers: dict[tuple[str, ...], int] = defaultdict(int)
    for sample in dataset.samples:
        parts = _parts(sample.image, dataset.root)
        for depth, part in enumerate(parts, 1):
            kind = find_person(part)
            if kind:
                suspects[parts[:depth]] = kind
                numbers[parts[:depth]] += 1
    findings = []
    for parts, kind in suspects.items():
        location = "/".join(hide(part) if find_person(part) else part for part in parts)
        n = numbers[parts]
        of = f" ({count_of(n, 'image')})" if n > 1 else ""
        findings.append(finding("personal_name", dataset.root, location, f"the name{of} looks like {kind}"))
    return findings


def find_person(name: str) -> str:
    """The kind of personal data in a file or folder name: a name, a date or a record number; "" for none.

    Detects `LAST_First` and `First.Last` in any alphabet, `Last^First`, Chinese names with a common surname, birth dates,
    and numbers of 6 to 12 digits. Does not detect lower-case names or names without a separator. Ignores counters that
    begin with 00, UUIDs, hashes and DICOM UIDs.
    """
    stem = unicodedata.normalize("NFC", SUFFIX.sub("", name))  # macOS stores umlauts as two characters
    for pattern in (UUID, HASH, DICOM_UID):
        stem = pattern.sub(" ", stem)
    if CARET.search(stem) or _has_two_words(stem):
        return "the name of a person"
    if any(not match[1].startswith(ORDINARY_CHINESE) for match in CHINESE.finditer(stem)):
        return "the name of a person"
    numbers = RECORD.findall(stem)
    is_date = any(date.fullmatch(number) for number in numbers for date in DATES)
    if is_date or any(birth.search(stem) for birth in BIRTHS):
        return "a date, perhaps of birth"
    if KEYED_RECORD.search(stem) or numbers:
        return "a record number"
    return ""


def hide(name: str) -> str:
    """The name with each word masked after its first character: `WANG_Li_1970.png` -> `W***_L***_1***.png`."""
    stem = SUFFIX.sub("", name)
    shown = TOKEN.sub(lambda match: match[0][0] + "***", unicodedata.normalize("NFC", stem))
    return shown + name[len(stem) :]


def hide_persons(text: str, names: Iterable[str] | None = None) -> str:
    """The text with suspicious names masked; `names` are the candidates, by default the components of a path."""
    for name in text.split("/") if names is None else names:
        stem = SUFFIX.sub("", name)
        if find_person(name):
            text = text.replace(stem, hide(stem))
    return text


def check_unlisted(parts: Sequence[Dataset], annotations: Sequence[Path]) -> list[Finding]:
    """At most one finding `unlisted_image`: images in the folders of listed images that no annotation file names."""
    root, samples = parts[0].root, [sample for dataset in parts for sample in dataset.samples]
    known = {sample.image for sample in samples}
    known |= {each.path for sample in samples for each in _mask_files(sample)}
    folders = dict.fromkeys(sample.image.parent for sample in samples)
    beside = [
        file
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file not in known
    ]
    if not beside:
        return []
    # invalid entries name their images too
    named = {name for annotation in annotations for name in _names_in(annotation)}
    found = [file.relative_to(root).as_posix() for file in beside if file.name not in named]
    if not found:
        return []
    message = f"{count_of(len(found), 'image')} {'is' if len(found) == 1 else 'are'} not listed in any entry"
    return [finding("unlisted_image", root, list_names(found), message)]


def _parts(image: Path, root: Path) -> tuple[str, ...]:
    return image.relative_to(root).parts if image.is_relative_to(root) else (image.name,)


def _has_two_words(stem: str) -> bool:
    """Whether two adjacent words may be a first and a last name."""
    return any(
        BETWEEN.fullmatch(stem[one.end() : other.start()]) and _is_word(one[0]) and _is_word(other[0])
        for one, other in pairwise(TOKEN.finditer(stem))
    )


def _is_word(word: str) -> bool:
    """Whether a word could be part of a personal name: 2 to 15 letters, capitalized, and not in `ORDINARY`."""
    shape = word[0].isupper() and (word.isupper() or word[1:].islower())
    return 2 <= len(word) <= 15 and word.isalpha() and shape and word.lower() not in ORDINARY


def _mask_files(sample: Sample) -> list[MaskFile]:
    return [each for objects in sample.masks or () for each in objects if isinstance(each, MaskFile)]


def _names_in(annotation: Path) -> set[str]:
    """Possible file names: the last path component of each string in an annotation file."""
    text = annotation.read_text(encoding="utf-8-sig", errors="replace")
    texts: Iterable[str] = re.findall(r'"([^"]*)"', text)
    if annotation.suffix.lower() == ".json":
        # invalid JSON has its own finding; quoted strings suffice here
        with suppress(ValueError, RecursionError):
            texts = _texts(json.loads(text))
    return {re.split(r"[/\\]", each)[-1] for each in texts}


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each) if not isinstance(each, (int, float)) else ()
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
