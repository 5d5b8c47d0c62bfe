"""Label Studio exports: regions are read as pixels, brush strokes are decoded, and images are found by path."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from vesalius.data.dataset import load_item, load_mask, open_dataset
from vesalius.data.readers import labelstudio
from vesalius.data.readers.brush import decode_brush
from vesalius.data.source import Source
from vesalius.errors import AnnotationError
from vesalius.types import Location

from ..codes import raises_code
from .annotation_files import BOX, SIZE, make_images, region, task, write_json
from .annotation_files import box_mask as box
from .annotation_files import brush as encode
from .annotation_files import read as read_as

IMAGES = "a.png images/b.png images/0a1b2c3d-c.png images/p1/d.png images/p1/e.png images/p2/e.png"
HERE = Location(Path("project.json"))


read = partial(read_as, "labelstudio")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_images(tmp_path, *IMAGES.split())


def write(root: Path, *tasks: Any) -> Path:
    return write_json(root, list(tasks), "project-1.json")


def mask_of(root: Path, shape: dict[str, Any]) -> np.ndarray:
    (sample,) = read(write(root, task(shape)))
    assert sample.masks is not None and sample.size == SIZE
    return load_mask(sample.masks[0][0], SIZE, "here")


def test_rectangles_polygons_and_ellipses_are_in_percent_of_the_image(root: Path) -> None:
    np.testing.assert_array_equal(mask_of(root, BOX), box(slice(2, 6), slice(1, 5)))
    points = [[10, 25], [50, 25], [50, 75], [10, 75]]
    polygon = region("polygonlabels", points=points, closed=True)
    np.testing.assert_array_equal(mask_of(root, polygon), box(slice(2, 6), slice(1, 5)))
    ellipse = region("ellipselabels", x=50, y=50, radiusX=40, radiusY=25, rotation=0)
    y, x = np.mgrid[:8, :10] + 0.5
    np.testing.assert_array_equal(mask_of(root, ellipse), ((x - 5) / 4) ** 2 + ((y - 4) / 2) ** 2 <= 1)


def test_a_rectangle_turns_clockwise_around_its_first_corner_and_in_pixels_not_in_percent(root: Path) -> None:
    # 2 x 4 pixels at (6, 1), a quarter to the right: down becomes left
    turned = region(x=60, y=12.5, width=20, height=50, rotation=90)
    np.testing.assert_array_equal(mask_of(root, turned), box(slice(1, 3), slice(2, 6)))
    # an ellipse turns around its center
    ellipse = region("ellipselabels", x=50, y=50, radiusX=40, radiusY=12.5, rotation=90)
    upright = region("ellipselabels", x=50, y=50, radiusX=10, radiusY=50)
    np.testing.assert_array_equal(mask_of(root, ellipse), mask_of(root, upright))


@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.sampled_from([0, 0, 1, 255])),
    st.lists(st.integers(1, 16), min_size=4, max_size=4),
    st.integers(0, 40),
    st.tuples(*[st.integers(0, 255)] * 3),
)
@settings(max_examples=300)
def test_every_brush_stroke_comes_back_from_its_bits(
    alpha: np.ndarray, lengths: list[int], literal: int, color: tuple[int, int, int]
) -> None:
    pixels = np.empty((*alpha.shape, 4), dtype=np.uint8)
    pixels[..., :3], pixels[..., 3] = color, alpha
    # as Label Studio writes it, and in whatever other way the format allows
    for values in (encode(pixels.ravel()), encode(pixels.ravel(), tuple(sorted(lengths)), literal)):
        size = alpha.shape[0], alpha.shape[1]
        np.testing.assert_array_equal(decode_brush(values, size, HERE), alpha != 0)


def test_a_brush_region_is_an_object_of_its_label(root: Path) -> None:
    mask = box(slice(2, 4), slice(1, 8))
    rle = encode(np.repeat(mask.ravel().astype(np.uint8) * 255, 4))
    np.testing.assert_array_equal(mask_of(root, region("brushlabels", format="rle", rle=rle)), mask)


@pytest.mark.parametrize(
    ("image", "file", "name"),
    [
        ("a.png", "a.png", "a"),
        ("images/b.png", "images/b.png", "b"),
        ("/data/upload/1/b.png", "images/b.png", "b"),
        ("/data/upload/1/0a1b2c3d-c.png", "images/0a1b2c3d-c.png", "0a1b2c3d-c"),
        ("/data/upload/1/99999999-a.png", "a.png", "a"),
        ("/data/upload/1/99999999-d.png", "images/p1/d.png", "p1__d"),
        ("/data/local-files/?d=p1/e.png", "images/p1/e.png", "p1__e"),
        ("/data/local-files/?d=data%2Fp2%2Fe.png", "images/p2/e.png", "p2__e"),
        ("s3://bucket/set/p1/e.png", "images/p1/e.png", "p1__e"),
        ("https://host/files/b.png?token=7", "images/b.png", "b"),
        ("C:\\set\\p1\\d.png", "images/p1/d.png", "p1__d"),
    ],
)
def test_images_are_found_by_the_end_of_their_path(root: Path, image: str, file: str, name: str) -> None:
    (sample,) = read(write(root, task(BOX, image=image)))
    assert (sample.image, sample.id) == (root / file, name)


def test_a_task_with_several_annotations_needs_one_marked_as_ground_truth(root: Path) -> None:
    mine = {"id": 5, "completed_by": 2, "result": [BOX]}
    yours = {"id": 6, "completed_by": {"id": 3, "email": "b@c"}, "result": []}
    with raises_code(AnnotationError, "ambiguous_annotation", "2 annotations (5 by 2, 6 by {'id': 3"):
        read(write(root, {"data": {"image": "a.png"}, "annotations": [mine, yours]}))
    for one in ({"was_cancelled": True}, {"skipped": True}):
        (sample,) = read(write(root, {"data": {"image": "a.png"}, "completions": [mine, yours | one]}))
        assert sample.prompts == ("vessel",)
    (sample,) = read(write(root, {"data": {"image": "a.png"}, "annotations": [mine | {"ground_truth": True}, yours]}))
    assert sample.prompts == ("vessel",)


def test_predictions_are_not_read_and_notes_count_them(root: Path) -> None:
    predicted = {"data": {"image": "a.png"}, "predictions": [{"result": [BOX]}]}
    cancelled = {"data": {"image": "b.png"}, "annotations": [{"was_cancelled": True, "result": [BOX]}]}
    dataset = open_dataset(write(root, predicted, cancelled))
    assert dataset.format == "labelstudio"
    assert [sample.masks for sample in dataset.samples] == [None, None]
    assert dataset.notes[:3] == (
        "tasks with predictions of a model, which are not read: 1",
        "canceled annotations, which are not read: 1",
        "tasks without regions, read as not annotated: 2",
    )


def test_a_shape_and_its_label_in_two_regions_are_one_object(root: Path) -> None:
    bare = BOX | {"type": "rectangle"}
    labeled = BOX | {"type": "labels", "value": {**BOX["value"], "labels": ["catheter", "wire"]}}
    (sample,) = read(write(root, task(bare, labeled)))
    assert sample.prompts == ("catheter", "wire")
    with raises_code(AnnotationError, "no_phrase"):
        read(write(root, task(bare)))


def test_other_fields_and_remarks_are_metadata(root: Path) -> None:
    chosen = {"type": "choices", "from_name": "view", "value": {"choices": ["LAO"]}}
    texts = [{"type": "textarea", "from_name": "size", "value": {"textarea": [one]}} for one in ("x", "y")]
    entry = task(BOX, chosen, *texts, {"type": "relation", "from_id": "r1"})
    entry["data"] |= {"patient": "p7", "group": 3}
    dataset = open_dataset(write(root, entry), group="patient")
    (sample,) = dataset.samples
    assert sample.metadata == {"patient": "p7", "labelstudio_group": 3, "view": "LAO", "labelstudio_size": ["x", "y"]}
    assert sample.group == "p7"


def test_json_min_is_read(root: Path) -> None:
    rle = encode(np.repeat(box(slice(0, 1), slice(0, 2)).ravel().astype(np.uint8), 4))
    size = {"original_width": 10, "original_height": 8}
    entry = {
        "image": "/data/upload/1/b.png",
        "id": 1,
        "annotator": 1,
        "annotation_id": 2,
        "created_at": "now",
        "patient": "p1",
        "label": [{"x": 10, "y": 25, "width": 40, "height": 50, "rotation": 0, "rectanglelabels": ["vessel"], **size}],
        "brush": [{"format": "rle", "rle": rle, "brushlabels": ["wire"], **size}],
    }
    dataset = open_dataset(write(root, entry))
    assert dataset.format == "labelstudio"
    item = load_item(dataset.samples[0])
    assert item.prompts == ("vessel", "wire") and item.masks is not None
    np.testing.assert_array_equal(item.masks[0, 0], box(slice(2, 6), slice(1, 5)))
    np.testing.assert_array_equal(item.masks[1, 0], box(slice(0, 1), slice(0, 2)))
    assert dataset.samples[0].metadata == {"patient": "p1"}


def test_other_lists_are_not_recognized(root: Path) -> None:
    for value in ([], [{"image": "a.png", "mask": [], "text": []}], [{"data": 3}], ["a"], {"data": {}}):
        (root / "b.json").write_text(json.dumps(value))
        assert not labelstudio.recognize(Source(root / "b.json"))


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_random_bits_are_a_brush_or_an_annotation_error(bits: bytes) -> None:
    header = encode(np.zeros(320, dtype=np.uint8))[:4]
    for values in ([*bits], [*header, *bits], [*header, 0x39, 0x1B, 0xBF, *bits]):
        with contextlib.suppress(AnnotationError):
            assert decode_brush(values, SIZE, HERE).shape == SIZE
