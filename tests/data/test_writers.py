"""Annotation writers: files read back as the same samples, follow the foreign format, or are rejected."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from tests.codes import raises_code

from vesalius.data.dataset import load_item, load_samples, merge_phrases, open_dataset
from vesalius.data.formats import FORMATS
from vesalius.data.source import Source
from vesalius.data.writers import coco, labelme, masks, vesalius_json
from vesalius.data.writers.formats import WRITERS
from vesalius.errors import AnnotationError
from vesalius.masks import decode_rle, encode_rle, rasterize
from vesalius.names import result_stems
from vesalius.types import Absent, MaskFile, MaskReference, Polygons, RleMask, Sample

SIZE = (8, 10)
SQUARE = Polygons(((1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0),))
DIAGONAL = RleMask(encode_rle(np.eye(*SIZE, dtype=bool)))
EMPTY = RleMask(encode_rle(np.zeros(SIZE, dtype=bool)))


def blank(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.new("L", SIZE[::-1]).save(path)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return blank(tmp_path / "images" / "p1" / "a.png")


@pytest.fixture
def sample(image: Path) -> Sample:
    return Sample("p1__a", image, ("vessel",), ((SQUARE,),), size=SIZE)


def read_back(root: Path) -> Sample:
    (sample,) = load_samples(root)
    return replace(sample, source=None)


def targets(sample: Sample) -> dict[str, np.ndarray]:
    """Phrase -> mask."""
    item = load_item(merge_phrases(sample))
    assert item.masks is not None
    return dict(zip(item.prompts, item.masks, strict=True))


polygons = st.lists(
    st.lists(st.floats(-1, 9, allow_subnormal=False), min_size=6, max_size=12)
    .filter(lambda part: len(part) % 2 == 0)
    .map(tuple),
    min_size=1,
    max_size=3,
).map(lambda parts: Polygons(tuple(parts)))
bits = st.binary(min_size=80, max_size=80).map(lambda b: np.frombuffer(b, dtype=np.uint8).reshape(SIZE) > 127)
references: st.SearchStrategy[MaskReference] = st.one_of(
    st.just(Absent()), polygons, bits.map(lambda mask: RleMask(encode_rle(mask)))
)
phrases = st.sampled_from(["vessel", "stent", "冠状动脉", "a/b"]) | st.text(min_size=1, max_size=9).filter(
    lambda text: bool(text.strip())
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(
    rows=st.lists(st.tuples(phrases, references), min_size=1, max_size=5),
    group=st.none() | st.text(min_size=1, max_size=5, alphabet="pq1"),
    spacing_mm=st.none() | st.tuples(st.floats(0.01, 5), st.floats(0.01, 5)),
    note=st.none() | st.integers() | st.lists(st.none() | phrases),
)
@pytest.mark.parametrize("to", ["coco", "labelme", "vesalius"])
def test_a_written_sample_reads_back_with_the_same_masks(
    image: Path,
    to: str,
    rows: list[tuple[str, MaskReference]],
    group: str | None,
    spacing_mm: tuple[float, float] | None,
    note: object,
) -> None:
    prompts, objects = tuple(text for text, _ in rows), tuple((reference,) for _, reference in rows)
    sample = Sample("p1__a", image, prompts, objects, None, None, group, "s", SIZE, spacing_mm, {"note": note})
    root = image.parents[2]
    (root / "annotations.json").unlink(missing_ok=True)
    assert WRITERS[to](root, [sample]) == []
    (back,) = load_samples(root)
    if to == "vesalius":  # every row and object stays, in its order; opening a dataset merges equal phrases
        (exact,) = FORMATS[to].read(Source(root / "annotations.json"))
        assert replace(exact, source=None) == sample
    before, after = targets(sample), targets(back)
    assert before.keys() == after.keys()
    assert all((before[phrase] == after[phrase]).all() for phrase in before)
    for key in ("id", "image", "frame", "group", "sequence", "size", "spacing_mm", "metadata"):
        assert getattr(back, key) == getattr(sample, key)


@pytest.mark.parametrize("to", ["coco", "labelme", "vesalius"])
@pytest.mark.parametrize("frame", [None, 0])
def test_a_sample_without_annotation_reads_back(image: Path, sample: Sample, to: str, frame: int | None) -> None:
    name = "p1__a" if frame is None else "p1__a__0000"
    bare = replace(sample, id=name, prompts=(), masks=None, frame=frame, group="p", sequence="s")
    WRITERS[to](image.parents[2], [bare])
    assert read_back(image.parents[2]) == bare


INVALID: list[tuple[dict[str, Any] | None, str, str]] = [
    (None, "nothing_to_write", ""),
    ({"masks": (), "prompts": ()}, "no_phrase", "p1__a"),
    ({"image": Path("/elsewhere/a.png")}, "outside_path", "/elsewhere/a.png"),
    ({"image": Path("images/../../a.png")}, "outside_path", "a.png"),
    ({"masks": ((Polygons(()),),)}, "empty_object", "p1__a"),
]
RESERVED = {"coco": "file_name", "labelme": "group", "vesalius": "text"}


@pytest.mark.parametrize(
    ("to", "change", "code", "holds"),
    [(to, *row) for to in (*RESERVED, "masks") for row in INVALID]
    + [(to, {"metadata": {key: 3}}, "reserved_key", key) for to, key in RESERVED.items()],
)
def test_invalid_samples_are_refused(
    sample: Sample, tmp_path: Path, to: str, change: dict[str, Any] | None, code: str, holds: str
) -> None:
    samples = [] if change is None else [replace(sample, **change)]
    with raises_code(AnnotationError, code, holds):
        WRITERS[to](tmp_path, samples)
    assert not any(path.suffix == ".json" for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("to", "objects", "code", "holds"),
    [
        ("coco", (Polygons(((1.0, 1.0, 50.0, 1.0, 5.0, 5.0),)),), "outside_image", "x 1 to 50"),
        ("labelme", (Polygons(((1.0, 2.0),)),), "too_few_points", "1 point"),
        ("labelme", (Polygons(((1.0, 2.0, 3.0, 4.0, 5.0, float("nan")),)),), "not_finite", ""),
        ("masks", (RleMask(encode_rle(np.eye(3, dtype=bool))),), "size_mismatch", "3 x 3"),
    ],
)
def test_masks_that_do_not_fit_are_refused(
    sample: Sample, tmp_path: Path, to: str, objects: tuple[MaskReference, ...], code: str, holds: str
) -> None:
    with raises_code(AnnotationError, code, holds):
        WRITERS[to](tmp_path, [replace(sample, masks=(objects,))])


def test_a_size_above_200_megapixels_is_refused(sample: Sample, tmp_path: Path) -> None:
    with raises_code(AnnotationError, "size_mismatch", "200 million"):
        coco.write(tmp_path, [replace(sample, size=(10**6, 10**6))])


def test_the_entry_has_the_official_keys_and_relative_paths(sample: Sample, tmp_path: Path) -> None:
    vesalius_json.write(tmp_path / "annotations.json", [replace(sample, size=None)])
    (entry,) = json.loads((tmp_path / "annotations.json").read_text())
    assert entry == {"image": "images/p1/a.png", "mask": [[list(SQUARE.parts[0])]], "text": ["vessel"]}


def test_several_objects_of_a_phrase_become_rows_with_that_phrase(sample: Sample, tmp_path: Path) -> None:
    two = replace(sample, prompts=("vessel", "wire"), masks=((SQUARE, Absent()), ()))
    vesalius_json.write(tmp_path / "annotations.json", [two])
    (entry,) = json.loads((tmp_path / "annotations.json").read_text())
    assert entry["text"] == ["vessel", "vessel", "wire"]
    assert entry["mask"] == [[list(SQUARE.parts[0])], None, None]


@pytest.mark.parametrize("size", [SIZE, None])
def test_a_mask_file_becomes_rle(sample: Sample, tmp_path: Path, size: tuple[int, int] | None) -> None:
    mask = np.zeros(SIZE, dtype=bool)
    mask[2:4, 3:7] = True
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    by_file = replace(sample, masks=((MaskFile(tmp_path / "mask.png"),),), size=size)
    vesalius_json.write(tmp_path / "annotations.json", [by_file])
    masks = read_back(tmp_path).masks
    assert masks is not None and isinstance(masks[0][0], RleMask)
    assert (decode_rle(masks[0][0].rle) == mask).all()


def test_a_mask_file_of_another_size_is_refused(sample: Sample, tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "mask.png")
    by_file = replace(sample, masks=((MaskFile(tmp_path / "mask.png"),),))
    with raises_code(AnnotationError, "size_mismatch", "mask.png", "4 x 4"):
        vesalius_json.write(tmp_path / "annotations.json", [by_file])
    assert not (tmp_path / "annotations.json").exists()


def test_a_linked_folder_of_images_stays_relative(sample: Sample, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "images").symlink_to(tmp_path / "images")
    vesalius_json.write(data / "annotations.json", [replace(sample, image=data / "images" / "p1" / "a.png")])
    assert read_back(data).image == data / "images" / "p1" / "a.png"


def test_coco_and_back_changes_nothing(image: Path, sample: Sample) -> None:
    blank(image.with_name("b.png"))
    blank(image.with_name("c.png"))
    others = [
        Sample("p1__b", image.with_name("b.png"), ("stent", "vessel"), ((DIAGONAL, SQUARE), (Absent(),)), size=SIZE),
        Sample("p1__c", image.with_name("c.png"), (), None, size=SIZE),
    ]
    root = image.parents[2]
    before: list[Sample] = [sample, *others]
    for to in ("vesalius", "coco", "vesalius"):
        WRITERS[to](root, before)
        after = load_samples(root)
        assert [replace(each, source=None) for each in after] == [sample, *others]
        before = after


def test_pycocotools_opens_a_coco_file(image: Path, sample: Sample) -> None:
    file = image.parents[2] / "mask.png"
    drawn = np.zeros(SIZE, dtype=bool)
    drawn[2:4, 3:9] = True
    Image.fromarray(drawn).save(file)
    runs = RleMask({"size": [8, 10], "counts": [8, 8, 64]})
    objects = (SQUARE, runs, MaskFile(file), EMPTY)
    root = image.parents[2]
    coco.write(root, [replace(sample, prompts=("vessel", "stent"), masks=(objects, (Absent(),)))])
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pycocotools under numpy 2
        opened = COCO(str(root / "annotations.json"))
        found = [opened.annToMask(opened.anns[i]).astype(bool) for i in sorted(opened.anns)]
    column = np.zeros(SIZE, dtype=bool)
    column[:, 1] = True
    expected = [rasterize(SQUARE.parts, SIZE), column, drawn, np.zeros(SIZE, dtype=bool)]
    assert (np.array(found) == np.array(expected)).all()
    assert [opened.anns[i]["area"] for i in (1, 2, 3, 4)] == [16, 8, 12, 0]
    assert [opened.anns[i]["bbox"] for i in (1, 2, 3, 4)] == [[1, 1, 4, 4], [1, 0, 1, 8], [3, 2, 6, 2], [0] * 4]
    assert [opened.cats[i]["name"] for i in opened.getCatIds()] == ["vessel", "stent"]
    assert opened.getCatIds(supNms=[""]) == [1, 2]
    assert opened.imgs[1]["neg_category_ids"] == [2]
    value = json.loads((root / "annotations.json").read_text())
    assert value["annotations"][1]["segmentation"] == {"size": [8, 10], "counts": [8, 8, 64]}
    assert all(each["iscrowd"] == 0 for each in value["annotations"])
    assert "\n" not in (root / "annotations.json").read_text().strip()


def test_coco_states_the_size_of_the_image(image: Path, sample: Sample) -> None:
    coco.write(image.parents[2], [replace(sample, size=None)])
    assert read_back(image.parents[2]).size == SIZE


def test_labelme_keeps_polygons_and_groups_of_parts(image: Path, sample: Sample) -> None:
    several = Polygons((*SQUARE.parts, (0.0, 0.5, 2.0, 0.5, 2.0, 2.5)))
    sample = replace(sample, prompts=("vessel", "stent"), masks=((several, SQUARE, several), (several,)))
    labelme.write(image.parents[2], [sample])
    assert read_back(image.parents[2]) == sample
    shapes = json.loads(image.with_suffix(".json").read_text())["shapes"]
    assert [shape["group_id"] for shape in shapes] == [1, 1, None, 2, 2, 3, 3]


def test_a_labelme_file_has_the_keys_of_labelme(image: Path, sample: Sample) -> None:
    file = image.parents[2] / "mask.png"
    drawn = np.zeros(SIZE, dtype=bool)
    drawn[2:4, 3:9] = True
    Image.fromarray(drawn).save(file)
    objects = ((SQUARE, MaskFile(file), EMPTY), (Absent(),))
    labelme.write(
        image.parents[2], [replace(sample, prompts=("vessel", "stent"), masks=objects, size=None, group="p1")]
    )
    value = json.loads(image.with_suffix(".json").read_text())
    polygon, mask, nothing = value.pop("shapes")
    assert value == {
        "version": "5.5.0",
        "flags": {},
        "imagePath": "a.png",
        "imageData": None,
        "imageHeight": 8,
        "imageWidth": 10,
        "vesalius": {"absent": ["stent"], "group": "p1"},
    }
    assert polygon == {
        "label": "vessel",
        "points": [[1.0, 1.0], [5.0, 1.0], [5.0, 5.0], [1.0, 5.0]],
        "group_id": None,
        "description": "",
        "shape_type": "polygon",
        "flags": {},
        "mask": None,
    }
    assert mask["points"] == [[3, 2], [8, 3]]
    patch = np.asarray(Image.open(io.BytesIO(base64.b64decode(mask["mask"]))))
    assert (patch.shape, patch.dtype, patch.min(), patch.max()) == ((2, 6), np.uint8, 1, 1)
    assert nothing["points"] == [[0, 0], [0, 0]]
    assert nothing["shape_type"] == "mask"


def test_labelme_writes_a_file_per_frame_and_counts_frames(image: Path, sample: Sample) -> None:
    frames = [replace(sample, id=f"p1__a__000{i}", frame=i) for i in range(2)]
    assert labelme.write(image.parents[2], frames) == ["frames of multi-frame files, which LabelMe does not open: 2"]
    assert [replace(each, source=None) for each in load_samples(image.parents[2])] == frames


def test_two_labelme_samples_of_one_file_are_refused(image: Path, sample: Sample) -> None:
    with raises_code(AnnotationError, "duplicate_id", "a.json"):
        labelme.write(image.parents[2], [sample, replace(sample, image=image.with_suffix(".jpg"))])


def make(root: Path, name: str, *phrases: str, objects: tuple[MaskReference, ...] = (SQUARE,)) -> Sample:
    image = blank(root / "images" / name)
    stem = "__".join(Path(name).with_suffix("").parts)
    return Sample(stem, image, phrases, (objects,) * len(phrases) if phrases else None)


def test_masks_of_one_phrase_read_back_as_an_image_mask_folder(tmp_path: Path) -> None:
    samples = [
        make(tmp_path, "a.png", "vessel", objects=(SQUARE, DIAGONAL)),
        make(tmp_path, "p1/b.jpg", "vessel", objects=(Absent(),)),
        make(tmp_path, "p1/图.png", "vessel"),
    ]
    assert masks.write(tmp_path, samples) == [
        "the files do not state the phrase: give 'vessel' when reading the folder",
        "masks that merge several objects of one phrase: 1",
        "empty masks of phrases that are absent from the image: 1",
    ]
    assert open_dataset(tmp_path, prompt="vessel").format == "maskfolder"
    for sample, back in zip(samples, load_samples(tmp_path, prompt="vessel"), strict=True):
        assert (back.id, back.image, back.prompts) == (sample.id, sample.image, sample.prompts)
        before, after = load_item(sample).masks, load_item(back).masks
        assert before is not None
        assert after is not None
        assert (before == after).all()
    with Image.open(tmp_path / "masks" / "a.png") as image:
        assert image.mode == "L"
        assert sorted(set(np.asarray(image).ravel().tolist())) == [0, 255]


def test_masks_of_several_phrases_are_named_as_predictions(tmp_path: Path) -> None:
    sample = make(tmp_path, "a.png", "blood vessel", "冠状动脉")
    sample = replace(sample, masks=((SQUARE,), (DIAGONAL,)))
    assert WRITERS["masks"](tmp_path, [sample]) == [
        "2 phrases are in the file names, which no reader pairs with images"
    ]
    stems = result_stems("a", sample.prompts)
    assert {path.stem for path in (tmp_path / "masks").iterdir()} == set(stems)
    for stem, expected in zip(stems, (rasterize(SQUARE.parts, SIZE), np.eye(*SIZE, dtype=bool)), strict=True):
        with Image.open(tmp_path / "masks" / f"{stem}.png") as image:
            assert ((np.asarray(image) == 255) == expected).all()


def test_masks_of_a_phrase_in_several_rows_are_one_file(tmp_path: Path) -> None:
    sample = replace(make(tmp_path, "a.png", "v", "v"), masks=((SQUARE,), (Absent(),)))
    notes = masks.write(tmp_path, [sample])
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["a.png"]
    assert len(notes) == 1


def test_notes_count_what_mask_images_lack(tmp_path: Path) -> None:
    full = replace(make(tmp_path, "a.png", "v"), group="p1", spacing_mm=(1.0, 1.0), metadata={"study": 3})
    bare = replace(make(tmp_path, "b.png"), group="p2")
    assert masks.write(tmp_path, [full, bare]) == [
        "the files do not state the phrase: give 'v' when reading the folder",
        "images without annotation, which have no mask file and cannot be read back: 1",
        "not kept: group (2), spacing_mm (1), study (1)",
    ]
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["a.png"]
