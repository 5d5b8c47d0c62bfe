"""COCO files: what is read, and one sentence for each way to be wrong."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from vesalius.data.dataset import (
    check_polygons,
    check_size,
    load_item,
    load_mask,
    merge_phrases,
    open_dataset,
)
from vesalius.data.readers import coco
from vesalius.data.source import Problems, Source
from vesalius.errors import AnnotationError, DataError
from vesalius.masks import encode_rle
from vesalius.types import Absent, Polygons, RleMask, Sample

TRIANGLE = [1, 1, 6, 1, 1, 6]
FLAT = Polygons((tuple(map(float, TRIANGLE)),), flat=False)
SIZE = (8, 10)
PACKED = encode_rle(np.eye(8, 10, dtype=bool))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "images/b.png"):
        Image.new("L", SIZE[::-1]).save(tmp_path / name)
    return tmp_path


def image(number: Any = 1, name: Any = "a.png", **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1], **more}


def annotation(
    segmentation: Any = (TRIANGLE,), of: Any = 1, category: Any = 1, **more: Any
) -> dict[str, Any]:
    return {"image_id": of, "category_id": category, "segmentation": segmentation, "iscrowd": 0, **more}


def value(images: Any = None, annotations: Any = None, categories: Any = None) -> dict[str, Any]:
    return {
        "images": [image()] if images is None else images,
        "annotations": [annotation()] if annotations is None else annotations,
        "categories": categories
        or [{"id": 1, "name": "vessel", "supercategory": "x"}, {"id": 7, "name": "stent"}],
    }


def write(root: Path, content: Any, name: str = "annotations.json") -> Path:
    path = root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def read(path: Path, problems: Problems = None) -> list[Sample]:
    """As a dataset is opened: polygons that are none are refused too."""
    samples = coco.read(Source(path), "", problems)
    if problems is None:
        for sample in samples:
            check_polygons(sample)
    return samples


def test_every_kind_of_segmentation_is_read(root: Path) -> None:
    runs = {"size": [8, 10], "counts": [80]}
    shapes = [[TRIANGLE, TRIANGLE], dict(PACKED), runs]
    annotations = [annotation(each, category=(1, 7, 1)[i], area=3.0, id=i) for i, each in enumerate(shapes)]
    path = write(root, value([image(license=2)], annotations))
    (sample,) = read(path)
    assert sample.prompts == ("vessel", "stent", "vessel")
    assert sample.masks == (
        (Polygons(FLAT.parts * 2),),
        (RleMask(PACKED),),
        (RleMask({"size": [8, 10], "counts": [80]}),),
    )
    assert (sample.id, sample.image, sample.size) == ("a", root / "a.png", SIZE)
    assert sample.source == f"{path}, image 0 (a.png)"
    assert sample.metadata == {"license": 2}


def test_a_dataset_of_this_format_is_opened_and_named(root: Path) -> None:
    write(root, value([image(), image(2, "b.png")], [annotation(), annotation(iscrowd=1, score=0.5)]))
    dataset = open_dataset(root)
    assert dataset.format == "coco"
    assert dataset.samples[0].masks == ((FLAT, FLAT),)
    assert dataset.notes[:3] == (
        "crowds (iscrowd) read as objects of their category: 1",
        "keys of annotations that are not kept: score (1)",
        "images without annotation, read as not annotated: 1",
    )


@pytest.mark.parametrize("other", [[], {"images": []}, {"images": {}, "annotations": []}, {"shapes": []}, 3])
def test_other_json_is_not_coco(root: Path, other: Any) -> None:
    assert not coco.recognize(Source(write(root, other)))
    assert not coco.recognize(Source(root))


def test_an_image_without_annotation_shows_nothing_of_the_only_category(root: Path) -> None:
    path = write(root, value(annotations=[], categories=[{"id": 1, "name": "vessel"}]))
    (sample,) = read(path)
    assert (sample.prompts, sample.masks) == (("vessel",), ((Absent(),),))
    assert coco.notes(Source(path)) == [
        "images without annotation, read as showing nothing of the only category: 1"
    ]


def test_with_several_categories_an_image_without_annotation_is_not_annotated(root: Path) -> None:
    (sample,) = read(write(root, value(annotations=[])))
    assert (sample.prompts, sample.masks) == ((), None)


def test_what_is_absent_is_said_by_the_image(root: Path) -> None:
    (sample,) = read(write(root, value([image(neg_category_ids=[7])])))
    assert (sample.prompts, sample.masks) == (("vessel", "stent"), ((FLAT,), (Absent(),)))
    only = [{"id": 1, "name": "vessel"}]
    path = write(root, value([image(neg_category_ids=[])], [], only))
    assert read(path)[0].masks is None
    assert coco.notes(Source(path)) == []


def test_what_is_known_of_an_image_is_read(root: Path) -> None:
    record = image(group=3, sequence="s", frame=2, spacing_mm=0.5, flickr_url="x")
    (sample,) = read(write(root, value([record])))
    assert (sample.id, sample.group, sample.sequence, sample.frame) == ("a__0002", "3", "s", 2)
    assert (sample.spacing_mm, sample.metadata) == ((0.5, 0.5), {"flickr_url": "x"})


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("instances.json", ""),
        ("instances.json", "images"),
        ("instances_train.json", "train"),
        ("annotations.train.json", "images/train"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train.json", "images/train"),
        ("annotations/instances.json", "images"),
        ("annotations/instances.json", "annotations"),
        ("annotations/instances.json", ""),
    ],
)
def test_images_are_found_where_coco_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, folder: str
) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    Image.new("L", SIZE[::-1]).save(tmp_path / folder / "a.png")
    path = write(tmp_path, value(), file)
    (sample,) = read(path)
    assert (sample.id, sample.image) == ("a", tmp_path / folder / "a.png")
    monkeypatch.chdir(path.parent)
    assert read(Path(path.name))[0].image.is_file()


def test_an_image_annotated_at_another_size_is_found(root: Path) -> None:
    (sample,) = read(write(root, value([image() | {"height": 800, "width": 800}])))
    with pytest.raises(AnnotationError, match="was annotated at 800 x 800"):
        check_size(sample, SIZE)
    (unstated,) = read(write(root, value([{"id": 1, "file_name": "a.png"}])))
    assert unstated.size is None


WRONG_IMAGES: dict[str, tuple[Any, str]] = {
    "number": (5, "must be an object, not a number"),
    "no id": ({"file_name": "a.png"}, "id must be a whole number or text, not None"),
    "id is true": (image(True), "id must be a whole number or text, not True"),
    "id is a list": (image([1]), "id must be a whole number or text"),
    "same id": (image(2), "has the same id 2 as another"),
    "same image": (image(1, "images/b.png"), "has the same sample id b as"),
    "no name": ({"id": 1}, "image must be a path"),
    "missing": (image(1, "none.png"), "image none.png is neither in"),
    "escape": (image(1, "../a.png"), "lies outside of"),
    "absolute": (image(1, "/etc/passwd"), "lies outside of"),
    "height only": (image() | {"width": None}, "size must be"),
    "size of text": (image() | {"width": "10"}, "size must be"),
    "size of 0": (image() | {"width": 0}, "size must be"),
    "NaN": (image(weight=float("nan")), "NaN and Infinity are not JSON"),
    "group": (image(group=[]), "group must be a name"),
    "spacing": (image(spacing_mm=[1]), "spacing_mm must be"),
    "absent": (image(neg_category_ids=3), "neg_category_ids must be a list of ids"),
    "absent list": (image(neg_category_ids=[[]]), "neg_category_ids must be a list of ids"),
    "absent unknown": (image(neg_category_ids=[9]), "no category has the id 9"),
}

WRONG_ANNOTATIONS: dict[str, tuple[Any, str]] = {
    "text": ("x", "must be an object, not text"),
    "unknown image": (annotation(of=9), "no image has the id 9"),
    "image of text": (annotation(of="2"), "no image has the id '2'"),
    "image is null": (annotation(of=None), "image_id must be a whole number or text"),
    "unknown category": (annotation(of=2, category=9), "no category has the id 9"),
    "category is a fraction": (annotation(of=2, category=1.5), "category_id must be a whole number or text"),
    "box": (annotation([], 2, bbox=[0, 0, 4, 4]), r"has only a box \(bbox\) and no segmentation"),
    "nothing": (annotation(None, 2), "has no segmentation"),
    "no runs": (annotation({}, 2), "has no segmentation"),
    "text as shape": (annotation("x", 2), "segmentation must be polygons or RLE, not text"),
    "coordinate of text": (annotation([[1, 2, 3, 4, 5, "6"]], 2), "polygon 0 has a coordinate .* '6'"),
    "huge": (annotation([[1, 2, 3, 4, 5, 10**400]], 2), "polygon 0 has a coordinate"),
    "number among polygons": (annotation([TRIANGLE, 5], 2), "polygon 1 must be a list"),
    "RLE without counts": (annotation({"size": [8, 10]}, 2), "needs size .* and counts"),
    "RLE of another size": (annotation({"size": [4, 4], "counts": [16]}, 2), "4 x 4 .* states 8 x 10"),
    "RLE of fractions": (annotation({"size": [8, 10], "counts": [1.5]}, 2), "whole numbers"),
}


@pytest.mark.parametrize("case", WRONG_IMAGES)
def test_a_wrong_image_is_named_and_left_out(root: Path, case: str) -> None:
    record, reason = WRONG_IMAGES[case]
    path = write(root, value([image(2, "b.png"), record], [annotation(of=2)]))
    with pytest.raises(AnnotationError, match=reason) as error:
        read(path)
    assert str(error.value).startswith(f"{path}, image 1")
    problems: list[DataError] = []
    assert [sample.id for sample in read(path, problems)] == ["b"]
    assert len(problems) == 1


@pytest.mark.parametrize("case", WRONG_ANNOTATIONS)
def test_a_wrong_annotation_is_named_and_its_image_left_out(root: Path, case: str) -> None:
    wrong, reason = WRONG_ANNOTATIONS[case]
    path = write(root, value([image(), image(2, "b.png")], [annotation(), wrong, annotation(of=2)]))
    with pytest.raises(AnnotationError, match=reason) as error:
        read(path)
    assert str(error.value).startswith(f"{path}, annotation 1")
    problems: list[DataError] = []
    kept = [sample.id for sample in read(path, problems)]
    assert kept == (["a"] if isinstance(wrong, dict) and wrong["image_id"] == 2 else ["a", "b"])
    assert len(problems) == 1
    if case in ("box", "nothing"):
        assert problems[0].code == "no_mask"


def test_annotations_of_a_refused_image_are_no_further_problem(root: Path) -> None:
    path = write(
        root, value([image(), image(2, "none.png")], [annotation(), annotation(of=2), annotation(of=2)])
    )
    problems: list[DataError] = []
    assert [sample.id for sample in read(path, problems)] == ["a"]
    assert [problem.code for problem in problems] == ["missing_image"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"id": 1, "name": " "}, "name must be a phrase"),
        ({"id": 1, "name": 3}, "name must be a phrase, not a number"),
        ({"id": None, "name": "v"}, "id must be a whole number or text"),
        ("v", "must be an object, not text"),
        ({"id": 7, "name": "v"}, "has the same id 7 as another"),
    ],
)
def test_a_wrong_category_is_named(root: Path, record: Any, reason: str) -> None:
    path = write(root, value([image(), image(2, "b.png")], categories=[{"id": 7, "name": "stent"}, record]))
    with pytest.raises(AnnotationError, match=f"category 1: {reason}"):
        read(path)
    (bare,) = read(path, problems=[])
    assert (bare.id, bare.masks) == ("b", None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "must hold an object with images and annotations, not a list"),
        ({"images": [], "annotations": []}, "categories must be a list, not null"),
        ({"images": {}, "annotations": [], "categories": []}, "images must be a list, not an object"),
        ({"images": [], "annotations": [], "categories": []}, "names no image"),
    ],
)
def test_a_file_of_another_form_is_refused(root: Path, content: Any, reason: str) -> None:
    with pytest.raises(AnnotationError, match=reason):
        read(write(root, content), problems=[])


def test_points_that_are_no_polygon_are_found_when_the_dataset_is_opened(root: Path) -> None:
    for wrong, reason in (
        ([[1, 2]], "has 1 point"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not a finite number"),
    ):
        with pytest.raises(AnnotationError, match=rf"image 0 \(a\.png\): mask 0, polygon 0 .*{reason}"):
            open_dataset(write(root, value(annotations=[annotation(wrong)])))


polygon = st.lists(st.floats(-1, 8, allow_subnormal=False), min_size=6, max_size=14).filter(
    lambda p: len(p) % 2 == 0
)
bits = st.binary(min_size=80, max_size=80).map(lambda b: np.frombuffer(b, dtype=np.uint8).reshape(SIZE) > 127)
shapes = st.one_of(
    st.lists(polygon, min_size=1, max_size=3),
    bits.map(lambda mask: dict(encode_rle(mask))),
    bits.map(lambda mask: {"size": list(SIZE), "counts": run_lengths(mask)}),
)


def run_lengths(mask: np.ndarray) -> list[int]:
    """Of a mask in columns, the first run being background."""
    pixels = mask.T.ravel().astype(int)
    borders = np.flatnonzero(np.diff(pixels, prepend=0)).tolist()
    return np.diff([0, *borders, pixels.size]).tolist()


@given(st.lists(shapes, min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_masks_are_those_of_pycocotools(root: Path, drawn: list[Any]) -> None:
    path = write(root, value(annotations=[annotation(each, id=i + 1) for i, each in enumerate(drawn)]))
    (sample,) = read(path)
    ours = [load_mask(reference, SIZE, "") for (reference,) in sample.masks or ()]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pycocotools under numpy 2
        theirs_file = COCO(str(path))
        theirs = [theirs_file.annToMask(theirs_file.anns[i + 1]) for i in range(len(drawn))]
    assert (np.array(ours) == np.array(theirs)).all()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=7) | st.dictionaries(st.sampled_from(["size", "counts", "id"]), inner)
    ),
    max_leaves=8,
)
FULL = value(
    [image(neg_category_ids=[7], spacing_mm=[1, 2]), image(2, "b.png", group="p1")],
    [annotation(), annotation(dict(PACKED), 2), annotation({"size": [8, 10], "counts": [80]}, 2, 7)],
)


def mutated(data: st.DataObject, content: Any) -> Any:
    """A copy in which something, at any depth, is replaced by another value, or gone."""
    if isinstance(content, (dict, list, tuple)) and content and data.draw(st.integers(0, 5)):
        copy: Any = dict(content) if isinstance(content, dict) else list(content)
        key = data.draw(st.sampled_from(list(copy) if isinstance(copy, dict) else range(len(copy))))
        if data.draw(st.integers(0, 9)):
            copy[key] = mutated(data, copy[key])
        else:
            del copy[key]
        return copy
    return data.draw(json_values)


def read_all(path: Path) -> None:
    """Read and rasterize; only AnnotationError may come out."""
    with contextlib.suppress(AnnotationError):
        if coco.recognize(Source(path)):
            coco.notes(Source(path))
        for sample in read(path):
            load_item(merge_phrases(sample))


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_any_change_of_a_value_gives_samples_or_an_annotation_error(root: Path, data: st.DataObject) -> None:
    read_all(write(root, mutated(data, FULL)))


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_any_change_of_bytes_gives_samples_or_an_annotation_error(
    root: Path, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(json.dumps(FULL).encode())
    for place, byte in changes:
        content[place % len(content)] = byte
    path = root / "annotations.json"
    path.write_bytes(content)
    read_all(path)
