"""LabelMe files: samples, phrases and masks that the reader returns."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vesalius.data.dataset import check_size, load_item, open_dataset
from vesalius.data.readers import labelme
from vesalius.data.source import Source
from vesalius.errors import AnnotationError, DataError
from vesalius.masks import decode_rle, rasterize
from vesalius.types import Absent, Polygons, RleMask, Sample

from ..codes import raises_code
from .annotation_files import SIZE, make_images, png, write_json
from .annotation_files import labelme_file as entry
from .annotation_files import labelme_shape as shape
from .annotation_files import read as read_as

FLAT = Polygons(((1.0, 1.0, 6.0, 1.0, 1.0, 6.0),))


read = partial(read_as, "labelme")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_images(tmp_path, "a.png", "images/b.png", "images/p1/c.png")


def write(root: Path, value: Any, name: str = "a.json") -> Path:
    return write_json(root, value, name)


def area(sample: Sample) -> float:
    """Area of the first polygon of a sample, by the shoelace formula."""
    (reference, *_), *_ = sample.masks or ()
    assert isinstance(reference, Polygons)
    x, y = np.reshape(reference.parts[0], (-1, 2)).T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def test_a_folder_of_files_is_recognized_and_read_in_order(root: Path) -> None:
    write(root, entry(shape(), image="b.png"), "images/b.json")
    write(root, entry(shape(None), shape(label="other")))
    write(root, '"hidden"', ".labelme/x.json")
    assert labelme.recognize(Source(root))
    first, second = read(root)
    assert (first.id, second.id) == ("a", "b")
    assert first.prompts == ("vessel", "other")
    assert first.masks == ((FLAT,), (FLAT,))
    assert (first.image, first.size, first.source) == (root / "a.png", SIZE, (root / "a.json", ""))
    assert not first.metadata
    dataset = open_dataset(root)
    assert dataset.format == "labelme"
    assert dataset.notes[0] == "images without a JSON file of the same name, not read: 1 (c.png)"


def test_a_single_file_is_recognized(root: Path) -> None:
    path = write(root, entry(shape()))
    assert labelme.recognize(Source(path))
    assert read(path)[0].masks == ((FLAT,),)
    assert labelme.notes(Source(path)) == []


@pytest.mark.parametrize("value", [{"images": [], "annotations": []}, [], {"shapes": {}, "imagePath": ""}, "["])
def test_a_folder_with_other_json_is_not_labelme(root: Path, value: Any) -> None:
    for i in range(7):
        write(root, value, f"{i}.json")
    assert not labelme.recognize(Source(root))
    assert not labelme.recognize(Source(root / "a.png"))
    assert not labelme.recognize(Source(root / "nowhere"))


def test_another_json_file_in_a_labelme_folder_is_named(root: Path) -> None:
    write(root, entry(shape()))
    write(root, {"classes": 3}, "dataset.json")
    assert labelme.recognize(Source(root))
    with raises_code(AnnotationError, "not_labelme", "dataset.json"):
        read(root)


@pytest.mark.parametrize(
    "points",
    [
        [[1, 2], [6, 5]],
        [[6, 5], [1, 2]],
        [[1, 5], [6, 2]],
        [[1, 2], [6, 2], [6, 5], [1, 5]],
        [[1, 2], [6, 5], [6, 2], [1, 5]],
        [[6, 2], [1, 2], [1, 5], [6, 5]],
    ],
)
@pytest.mark.parametrize("form", ["rectangle", "oriented_rectangle"])
def test_the_corners_of_a_rectangle_come_in_any_order(root: Path, points: Any, form: str) -> None:
    (sample,) = read(write(root, entry(shape(form, points))))
    expected = np.zeros(SIZE, dtype=bool)
    expected[2:5, 1:6] = True
    masks = load_item(sample).masks
    assert masks is not None
    assert (masks[0, 0] == expected).all()


def test_a_turned_rectangle_keeps_its_corners(root: Path) -> None:
    (sample,) = read(write(root, entry(shape("oriented_rectangle", [[5, 1], [8, 4], [5, 7], [2, 4]]))))
    assert area(sample) == pytest.approx(18)


@given(st.floats(20, 80), st.floats(20, 80), st.floats(0.5, 20), st.floats(0, 6.3))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_circle_has_its_area(root: Path, x: float, y: float, radius: float, angle: float) -> None:
    edge = [x + radius * np.cos(angle), y + radius * np.sin(angle)]
    (sample,) = read(write(root, entry(shape("circle", [[x, y], edge]), imageHeight=100, imageWidth=100)))
    assert area(sample) == pytest.approx(np.pi * radius**2, rel=1e-4)


def test_a_circle_that_leaves_the_image_ends_at_its_border(root: Path) -> None:
    (sample,) = read(write(root, entry(shape("circle", [[0, 4], [3, 4]]))))
    assert area(sample) == pytest.approx(np.pi * 9 / 2, rel=0.01)
    assert load_item(sample).masks is not None
    (drawn_elsewhere,) = read(write(root, entry(shape("circle", [[40, 4], [60, 4]]))))
    with raises_code(AnnotationError, "outside_image"):
        load_item(drawn_elsewhere)


@pytest.mark.parametrize("mode", ["1", "L"])
@pytest.mark.parametrize("shift", [0, 0.4])
def test_a_mask_lies_where_its_first_pixel_is(root: Path, mode: str, shift: float) -> None:
    patch = [[0, 255, 0], [255, 255, 0]]
    points = [[2 + shift, 3], [4 + shift, 4]]
    (sample,) = read(write(root, entry(shape("mask", points, mask=png(patch, mode)))))
    expected = np.zeros(SIZE, dtype=bool)
    expected[3:5, 2:5] = np.array(patch) > 0
    ((reference,),) = sample.masks or ()
    assert isinstance(reference, RleMask)
    assert (decode_rle(reference.rle) == expected).all()


def test_a_mask_of_labelme_5_at_the_border_spans_a_row_and_a_column_too_many(root: Path) -> None:
    patch = np.ones((2, 3))
    (sample,) = read(write(root, entry(shape("mask", [[7, 6], [10, 8]], mask=png(patch)))))
    masks = load_item(sample).masks
    assert masks is not None
    assert masks[0, 0].sum() == masks[0, 0, 6:, 7:].sum() == 6


def test_shapes_of_one_label_and_group_are_one_object(root: Path) -> None:
    shapes = [
        shape(group_id=1),
        shape(label="other", group_id=1),
        shape("rectangle", [[1, 1], [2, 2]], group_id=1),
        shape("mask", [[0, 0], [0, 0]], mask=png([[1]]), group_id=1),
        shape(),
    ]
    (sample,) = read(write(root, entry(*shapes)))
    assert sample.prompts == ("vessel", "other", "vessel")
    both, mask = (sample.masks or ())[0]
    assert both == Polygons((*FLAT.parts, (1.0, 1.0, 2.0, 1.0, 2.0, 2.0, 1.0, 2.0)))
    assert isinstance(mask, RleMask)
    assert (sample.masks or ())[1:] == ((FLAT,), (FLAT,))


def test_an_image_annotated_at_another_size_is_found(root: Path) -> None:
    (sample,) = read(write(root, entry(shape(), imageHeight=800, imageWidth=800)))
    with raises_code(AnnotationError, "size_mismatch", "800 x 800"):
        check_size(sample, SIZE)
    (unstated,) = read(write(root, entry(shape(), imageHeight=None, imageWidth=None)))
    assert unstated.size is None


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("a.json", "images/b.png", "b"),
        ("a.json", "b.png", "b"),
        ("a.json", "images\\b.png", "b"),
        ("labels/b.json", "../images/b.png", "b"),
        ("labels/b.json", "..\\images\\b.png", "b"),
        ("labels/b.json", "b.png", "b"),
        ("labels/p1/c.json", "c.png", "p1__c"),
        ("images/p1/c.json", "./c.png", "p1__c"),
        ("labels/a.json", "../a.png", "a"),
    ],
)
def test_an_image_is_found_from_its_file_or_in_another_folder(root: Path, name: str, image: str, expected: str) -> None:
    write(root, entry(image=image), name)
    (sample,) = read(root)
    assert sample.id == expected
    assert sample.image.is_file()


def test_the_folder_of_images_comes_before_that_of_masks(root: Path) -> None:
    make_images(root, "masks/b.png")
    write(root, entry(image="b.png"), "labels/b.json")
    assert read(root)[0].image == root / "images" / "b.png"
    (root / "frames").mkdir()
    (root / "images" / "b.png").rename(root / "frames" / "b.png")
    with raises_code(AnnotationError, "ambiguous_image", "frames/b.png", "masks/b.png"):
        read(root)


def test_the_copy_of_the_image_is_never_looked_at(root: Path) -> None:
    (sample,) = read(write(root, entry(shape(), imageData="no base64 at all")))
    assert sample.masks == ((FLAT,),)
    assert not sample.metadata
    with raises_code(AnnotationError, "missing_image"):
        read(write(root, entry(shape(), image="gone.png", imageData=png(np.ones(SIZE)))))


def test_without_a_shape_an_image_is_not_annotated_unless_something_is_absent(root: Path) -> None:
    (bare,) = read(write(root, entry()))
    assert (bare.prompts, bare.masks) == ((), None)
    (sample,) = read(write(root, entry(vesalius={"absent": ["stent"], "group": 3, "spacing_mm": 0.5, "frame": 2})))
    assert (sample.prompts, sample.masks) == (("stent",), ((Absent(),),))
    assert (sample.id, sample.group, sample.frame, sample.spacing_mm) == ("a__0002", "3", 2, (0.5, 0.5))


def test_unknown_keys_are_metadata(root: Path) -> None:
    shapes = [shape(description="lumen", difficult=False), shape(), shape(flags={"sure": True})]
    value = entry(*shapes, flags={"good": True}, text="x", lineColor=[0, 0, 0], vesalius={"study": 4})
    (sample,) = read(write(root, value))
    assert sample.metadata == {
        "study": 4,
        "text": "x",
        "flags": {"good": True},
        "shapes": [
            {"label": "vessel", "description": "lumen", "difficult": False},
            {"label": "vessel", "flags": {"sure": True}},
        ],
    }


def test_errors_of_all_files_are_collected(root: Path) -> None:
    write(root, entry(shape("line")), "0.json")
    write(root, entry(shape()), "1.json")
    write(root, entry(shape()), "2.json")
    write(root, "{", "3.json")
    problems: list[DataError] = []
    assert [sample.id for sample in read(root, problems)] == ["a"]
    assert [problem.code for problem in problems] == ["no_area", "duplicate_id", "unreadable_file"]
    assert "has the same id a as" in str(problems[1])


def test_a_polygon_is_rasterized_like_those_of_other_formats(root: Path) -> None:
    (sample,) = read(write(root, entry(shape())))
    masks = load_item(sample).masks
    assert masks is not None
    assert (masks[0, 0] == rasterize(FLAT.parts, SIZE)).all()
