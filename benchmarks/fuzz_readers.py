"""Does any damaged file break a reader? Small data sets of every format, damaged thousands of times and opened.

    python benchmarks/fuzz_readers.py --cases 20000 --json

A case is one damage to one file: bytes flipped, cut, doubled or put in, numbers made extreme, values of JSON exchanged
for others, paths that lead away. The data set is then opened as `check` does, and every sample is loaded. Allowed are
DataError and SettingError; anything else, more than 5 seconds, more than 3 GiB of memory or the end of the process is
a failure, named by format and number: the same number makes the same damage again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import resource
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image

from vesalius.data.dataset import load_item, open_data_set
from vesalius.data.formats import FORMATS
from vesalius.errors import DataError, SettingError
from vesalius.files import write_json
from vesalius.masks import encode_rle

SIDE = 24
LIMIT_S = 5.0
LIMIT_BYTES = 3 << 30
NUMBERS = ("0", "-1", "1e999", "NaN", "99999999999999999999", "0.5", "-0", "2147483648", "1e-320")
PATHS = (
    "../../../etc/passwd",
    "/etc/passwd",
    "a/../../b.png",
    "",
    ".",
    "\x00",
    "a" * 5000,
    "images",
    "图.png",
)

Files = dict[str, bytes]
"""Path in the data set -> what the file holds."""


def _png(pixels: np.ndarray) -> bytes:
    with tempfile.SpooledTemporaryFile() as file:
        Image.fromarray(pixels).save(file, "PNG")
        file.seek(0)
        return file.read()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _disc() -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.hypot(y - 12, x - 11) < 7


IMAGE = _png(np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE))
SQUARE = [4.0, 4.0, 18.0, 4.5, 18.0, 18.0, 4.0, 17.0]
POINTS = [[4.0, 4.0], [18.0, 4.5], [18.0, 18.0]]


def _house() -> Files:
    entry = {
        "image": "a.png",
        "mask": [[SQUARE], SQUARE, None],
        "text": ["v", "w", "x"],
        "size": [SIDE, SIDE],
    }
    second = {
        "image": "b.png",
        "mask": [encode_rle(_disc())],
        "text": ["v"],
        "group": "p1",
        "spacing_mm": 0.3,
    }
    clip = {"video": ["c.png", "d.png"], "mask": [[[SQUARE], None]], "text": ["v"]}
    images = {f"images/{name}.png": IMAGE for name in "abcd"}
    return {"annotations.json": _json([entry, second, clip]), **images}


def _coco() -> Files:
    annotations = [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "segmentation": [SQUARE],
            "iscrowd": 0,
            "bbox": [4, 4, 14, 14],
        },
        {"id": 2, "image_id": 2, "category_id": 1, "segmentation": encode_rle(_disc()), "iscrowd": 1},
    ]
    images = [
        {"id": i, "file_name": f"{n}.png", "width": SIDE, "height": SIDE} for i, n in ((1, "a"), (2, "b"))
    ]
    value = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "v"}]}
    return {"annotations.json": _json(value), "images/a.png": IMAGE, "images/b.png": IMAGE}


def _labelme() -> Files:
    shapes = [
        {"label": "v", "points": POINTS, "shape_type": "polygon", "group_id": None, "flags": {}},
        {"label": "w", "points": POINTS[:2], "shape_type": "rectangle", "group_id": 1, "flags": {}},
        {"label": "x", "points": POINTS[:2], "shape_type": "circle", "group_id": None, "flags": {}},
    ]
    value: dict[str, Any] = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "a.png", "imageData": None}
    return {"a.json": _json({**value, "imageHeight": SIDE, "imageWidth": SIDE}), "a.png": IMAGE}


def _cvat() -> Files:
    text = f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<image id="0" name="a.png" width="{SIDE}" height="{SIDE}">
<polygon label="v" occluded="0" points="4.0,4.0;18.0,4.5;18.0,18.0"><attribute name="s">1</attribute></polygon>
<box label="w" xtl="2" ytl="3" xbr="9" ybr="8" rotation="12.5"/>
<ellipse label="y" cx="12" cy="12" rx="5" ry="3"/>
<mask label="x" rle="2, 3, 4, 7" left="3" top="4" width="4" height="4"/>
</image></annotations>
"""
    return {"annotations.xml": text.encode(), "images/a.png": IMAGE}


def _labelstudio() -> Files:
    size = {"original_width": SIDE, "original_height": SIDE, "from_name": "label", "to_name": "image"}
    polygon = {"points": [[10.0, 10.0], [80.0, 12.0], [75.0, 80.0]], "polygonlabels": ["v"]}
    box = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 5, "rectanglelabels": ["w"]}
    brush = {"format": "rle", "rle": [0, 0, 9, 0, 37, 3, 51, 160, 7], "brushlabels": ["x"]}
    kinds = (("polygonlabels", polygon), ("rectanglelabels", box), ("brushlabels", brush))
    results = [{"id": kind, "type": kind, "value": value, **size} for kind, value in kinds]
    task = {
        "id": 1,
        "data": {"image": "/data/upload/1/0a1b2c3d-a.png"},
        "annotations": [{"id": 1, "result": results}],
    }
    return {"annotations.json": _json([task]), "images/a.png": IMAGE}


def _maskfolder() -> Files:
    index = _png(_disc().astype(np.uint8) * 2)
    return {"images/a.png": IMAGE, "masks/a.png": index, "classes.json": _json({"v": 2, "w": 1})}


def _nnunet() -> Files:
    value = {
        "channel_names": {"0": "XA"},
        "labels": {"background": 0, "v": 1},
        "file_ending": ".png",
        "numTraining": 1,
    }
    labels = _png(_disc().astype(np.uint8))
    return {"dataset.json": _json(value), "imagesTr/a_0000.png": IMAGE, "labelsTr/a.png": labels}


def _dicom() -> Files:
    from pydicom.data import get_testdata_file

    names = ("CT_small.dcm", "MR_small_RLE.dcm", "examples_ybr_color.dcm", "JPEG2000.dcm", "liver.dcm")
    return {name: Path(str(get_testdata_file(name, download=False))).read_bytes() for name in names[:2]}


def _nifti() -> Files:
    import nibabel

    volume = np.arange(SIDE * SIDE * 3, dtype=np.int16).reshape(SIDE, SIDE, 3)
    return {"a.nii": nibabel.Nifti1Image(volume, np.eye(4)).to_bytes()}


def _video() -> Files:
    import av

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=15)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for i in range(5):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 40 * i, dtype=np.uint8), "rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return {"a.mp4": path.read_bytes()}


SEEDS: dict[str, Callable[[], Files]] = {
    "sa2va_json": _house,
    "coco": _coco,
    "labelme": _labelme,
    "cvat": _cvat,
    "labelstudio": _labelstudio,
    "maskfolder": _maskfolder,
    "nnunet": _nnunet,
    "dicom": _dicom,
    "nifti": _nifti,
    "video": _video,
}


def damage(files: Files, rng: np.random.Generator) -> tuple[str, bytes]:
    """The path of one of the files, annotations before images, and what it holds now."""
    names = sorted(files, key=lambda name: name.endswith(".png"))
    name = names[0] if rng.random() < 0.7 else names[int(rng.integers(len(names)))]
    data = files[name]
    if name.endswith(".json") and rng.random() < 0.6:
        return name, _json(_exchange(json.loads(data), rng))
    for _ in range(int(rng.integers(1, 4))):
        data = DAMAGES[int(rng.integers(len(DAMAGES)))](data, rng)
    return name, data


def _exchange(value: Any, rng: np.random.Generator) -> Any:
    """The JSON value with one value in it, chosen by a walk from the top, exchanged for another."""
    if isinstance(value, list) and value and rng.random() < 0.9:
        i = int(rng.integers(len(value)))
        return [*value[:i], _exchange(value[i], rng), *value[i + 1 :]]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = list(value)[int(rng.integers(len(value)))]
        if rng.random() < 0.15:
            return {other: each for other, each in value.items() if other != key}
        return {**value, key: _exchange(value[key], rng)}
    strange: tuple[Any, ...] = (
        None,
        True,
        [],
        {},
        [[]],
        "",
        "v",
        -1,
        0,
        1e308,
        10**40,
        float("nan"),
        [value, value],
    )
    strange += (*PATHS, [1, 2], [[1, 2, 3, 4, 5, 6]], {"size": [9**9, 9**9], "counts": [81**9]})
    return strange[int(rng.integers(len(strange)))]


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if changed:
            changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
    return bytes(changed)


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data) + 1))]


def _double(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(len(data) + 1, size=2).tolist())
    return data[:end] + data[start:end] + data[end:]


def _drop(data: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(data) + 1))
    return data[:start] + data[start + int(rng.integers(1, 40)) :]


def _number(data: bytes, rng: np.random.Generator) -> bytes:
    """A run of digits, where there is one near a random place, exchanged for an extreme one."""
    place = int(rng.integers(len(data) + 1))
    start = next((i for i in range(place, min(place + 400, len(data))) if data[i : i + 1].isdigit()), None)
    if start is None:
        return _flip(data, rng)
    end = start
    while end < len(data) and data[end : end + 1].isdigit():
        end += 1
    return data[:start] + NUMBERS[int(rng.integers(len(NUMBERS)))].encode() + data[end:]


def _header(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes near the start set to the largest: sizes and counts of binary files stand there."""
    changed = bytearray(data)
    start = int(rng.integers(min(len(data), 600) + 1))
    changed[start : start + int(rng.integers(1, 5))] = b"\xff" * int(rng.integers(1, 5))
    return bytes(changed)


DAMAGES = (_flip, _cut, _double, _drop, _number, _header)


def try_case(name: str, files: Files, number: int, seed: int) -> str:
    """`read`, the kind of refusal, or `FAILED: ...`."""
    rng = np.random.default_rng([seed, list(SEEDS).index(name), number])
    changed, data = damage(files, rng)
    with tempfile.TemporaryDirectory() as folder:
        for path, content in {**files, changed: data}.items():
            target = Path(folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
        try:
            problems: list[DataError] = []
            data_set = open_data_set(folder, prompt=None if name != "maskfolder" else "v", problems=problems)
            for sample in data_set.samples:
                load_item(sample)
            return "refused an entry" if problems else "read"
        except (DataError, SettingError) as error:
            if "\n" in str(error):
                return f"FAILED: {type(error).__name__} of several lines"
            return f"{type(error).__name__}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return f"FAILED: {type(error).__name__}: {str(error)[:200]}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"took more than {LIMIT_S:g} s")


def _run(name: str, start: int, end: int, seed: int, results: Any) -> None:
    """Cases start to end of one format, in a process of their own, which says what it begins and what came of it."""
    resource.setrlimit(resource.RLIMIT_AS, (2 * LIMIT_BYTES, 2 * LIMIT_BYTES))
    signal.signal(signal.SIGALRM, _too_long)
    warnings.simplefilter("error")  # a library's warning would reach the user's terminal
    files = SEEDS[name]()
    for number in range(start, end):
        results.send((number, "FAILED: the process ended"))
        outcome = try_case(name, files, number, seed)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > LIMIT_BYTES:
            results.send((number, "FAILED: memory"))
            return
        results.send((number, outcome))


def fuzz(name: str, cases: int, seed: int) -> dict[int, str]:
    """Number of the case -> what came of it. Where a process dies, another goes on with the next case."""
    context = multiprocessing.get_context("fork")
    outcomes: dict[int, str] = {}
    while len(outcomes) < cases:
        begun = len(outcomes)
        reading, writing = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(name, len(outcomes), cases, seed, writing))
        process.start()
        writing.close()
        with contextlib.suppress(EOFError):
            while True:
                outcomes.update([reading.recv()])
        process.join()
        if process.exitcode and len(outcomes) == begun:
            raise SystemExit(f"{name}: no case could be tried")
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=2000, help="cases of each format (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--format", choices=sorted(SEEDS), action="append", help="only this one; may be given again"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there")
    args = parser.parse_args()
    rows, failures = [], []
    for name in args.format or [each for each in SEEDS if each in FORMATS]:
        started = time.perf_counter()
        outcomes = fuzz(name, args.cases, args.seed)
        wrong = {number: what for number, what in outcomes.items() if what.startswith("FAILED")}
        counted = Counter("FAILED" if number in wrong else what for number, what in outcomes.items())
        rows.append(
            {
                "format": name,
                "cases": args.cases,
                "took_s": round(time.perf_counter() - started, 1),
                **counted,
            }
        )
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        failures += [f"{name} {number}: {what}" for number, what in sorted(wrong.items())]
    for line in failures[:50]:
        print(line)
    if args.json:
        write_json(args.json, {"seed": args.seed, "rows": rows, "failures": failures})
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
