"""COCO files: samples, phrases and masks that the reader returns."""

from __future__ import annotations

import contextlib
import io
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from vesalius.data.dataset import check_size, load_mask, open_dataset
from vesalius.data.readers import coco
from vesalius.data.source import Source
from vesalius.errors import AnnotationError, DataError
from vesalius.masks import encode_rle
from vesalius.types import Absent, Polygons, RleMask

from ..codes import raises_code
from .annotation_files import SIZE, TRIANGLE, coco_file, make_images, write_json
from .annotation_files import coco_annotation as annotation
from .annotation_files import coco_image as image
from .annotation_files import read as read_as

FLAT = Polygons((tuple(map(float, TRIANGLE)),), flat=False)
PACKED = encode_rle(np.eye(8, 10, dtype=bool))
ONLY = [{"id": 1, "name": "vessel"}]


read = partial(read_as, "coco")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_images(tmp_path, "a.png", "images/b.png")


def test_every_kind_of_segmentation_is_read(root: Path) -> None:
    runs = {"size": [8, 10], "counts": [80]}
    shapes = [[TRIANGLE, TRIANGLE], dict(PACKED), runs]
    annotations = [annotation(each, category=(1, 7, 1)[i], area=3.0, id=i) for i, each in enumerate(shapes)]
    path = write_json(root, coco_file([image(license=2)], annotations))
    (sample,) = read(path)
    assert sample.prompts == ("vessel", "stent", "vessel")
    assert sample.masks == (
        (Polygons(FLAT.parts * 2),),
        (RleMask(PACKED),),
        (RleMask({"size": [8, 10], "counts": [80]}),),
    )
    assert (sample.id, sample.image, sample.size) == ("a", root / "a.png", SIZE)
    assert sample.source == (path, "image 0 (a.png)")
    assert sample.metadata == {"license": 2}


def test_a_dataset_of_this_format_is_opened_and_named(root: Path) -> None:
    write_json(root, coco_file([image(), image(2, "b.png")], [annotation(), annotation(iscrowd=1, score=0.5)]))
    dataset = open_dataset(root)
    assert dataset.format == "coco"
    assert dataset.samples[0].masks == ((FLAT, FLAT),)
    assert dataset.notes[:3] == (
        "crowds (iscrowd) read as objects of their category: 1",
        "annotation keys ignored: score (1)",
        "images without annotation, read as not annotated: 1",
    )


@pytest.mark.parametrize("other", [[], {"images": []}, {"images": {}, "annotations": []}, {"shapes": []}, 3])
def test_other_json_is_not_coco(root: Path, other: Any) -> None:
    assert not coco.recognize(Source(write_json(root, other)))
    assert not coco.recognize(Source(root))


def test_an_image_without_annotation_shows_nothing_of_the_only_category(root: Path) -> None:
    path = write_json(root, coco_file(annotations=[], categories=ONLY))
    (sample,) = read(path)
    assert (sample.prompts, sample.masks) == (("vessel",), ((Absent(),),))
    assert coco.notes(Source(path)) == ["images without annotation, read as negatives for the only category: 1"]


def test_with_several_categories_an_image_without_annotation_is_not_annotated(root: Path) -> None:
    (sample,) = read(write_json(root, coco_file(annotations=[])))
    assert (sample.prompts, sample.masks) == ((), None)


def test_a_file_with_a_valid_and_a_wrong_category_has_not_one_category(root: Path) -> None:
    wrong = {"id": 1, "name": " "}
    (sample,) = read(write_json(root, coco_file(annotations=[], categories=[*ONLY, wrong])), problems=[])
    assert sample.masks is None


def test_absent_categories_are_listed_by_the_image(root: Path) -> None:
    (sample,) = read(write_json(root, coco_file([image(neg_category_ids=[7])])))
    assert (sample.prompts, sample.masks) == (("vessel", "stent"), ((FLAT,), (Absent(),)))
    path = write_json(root, coco_file([image(neg_category_ids=[])], [], ONLY))
    assert read(path)[0].masks is None
    assert coco.notes(Source(path)) == []


def test_optional_fields_of_an_image_are_read(root: Path) -> None:
    record = image(group=3, sequence="s", frame=2, spacing_mm=0.5, flickr_url="x")
    (sample,) = read(write_json(root, coco_file([record])))
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
    make_images(tmp_path / folder, "a.png")
    path = write_json(tmp_path, coco_file(), file)
    (sample,) = read(path)
    assert (sample.id, sample.image) == ("a", tmp_path / folder / "a.png")
    monkeypatch.chdir(path.parent)
    assert read(Path(path.name))[0].image.is_file()


def test_an_image_annotated_at_another_size_is_found(root: Path) -> None:
    (sample,) = read(write_json(root, coco_file([image() | {"height": 800, "width": 800}])))
    with raises_code(AnnotationError, "size_mismatch", "800 x 800"):
        check_size(sample, SIZE)
    (unstated,) = read(write_json(root, coco_file([{"id": 1, "file_name": "a.png"}])))
    assert unstated.size is None


@pytest.mark.parametrize(
    ("changes", "part"), [({"file_name": "none.png"}, ""), ({"width": "10"}, ", width"), ({"group": []}, ", group")]
)
def test_annotations_of_a_refused_image_are_no_further_problem(root: Path, changes: dict[str, Any], part: str) -> None:
    refused = image(2, "b.png") | changes
    path = write_json(root, coco_file([image(), refused], [annotation(), annotation(of=2), annotation(of=2)]))
    problems: list[DataError] = []
    assert [sample.id for sample in read(path, problems)] == ["a"]
    assert [problem.field for problem in problems] == [f"image 1 ({refused['file_name']})" + part]


polygon = st.lists(st.floats(-1, 8, allow_subnormal=False), min_size=6, max_size=14).filter(lambda p: len(p) % 2 == 0)
bits = st.binary(min_size=80, max_size=80).map(lambda b: np.frombuffer(b, dtype=np.uint8).reshape(SIZE) > 127)
shapes = st.one_of(
    st.lists(polygon, min_size=1, max_size=3),
    bits.map(lambda mask: dict(encode_rle(mask))),
    bits.map(lambda mask: {"size": list(SIZE), "counts": run_lengths(mask)}),
)


def run_lengths(mask: np.ndarray) -> list[int]:
    """Run lengths of a mask in columns, background first."""
    pixels = mask.T.ravel().astype(int)
    borders = np.flatnonzero(np.diff(pixels, prepend=0)).tolist()
    return np.diff([0, *borders, pixels.size]).tolist()


@given(st.lists(shapes, min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_masks_are_those_of_pycocotools(root: Path, drawn: list[Any]) -> None:
    path = write_json(root, coco_file(annotations=[annotation(each, id=i + 1) for i, each in enumerate(drawn)]))
    (sample,) = read(path)
    ours = [load_mask(reference, SIZE, "") for (reference,) in sample.masks or ()]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pycocotools under numpy 2
        theirs_file = COCO(str(path))
        theirs = [theirs_file.annToMask(theirs_file.anns[i + 1]) for i in range(len(drawn))]
    assert (np.array(ours) == np.array(theirs)).all()
