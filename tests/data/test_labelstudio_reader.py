"""The export of Label Studio: regions to pixels, its brush bit by bit, its paths to files."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from vesalius.data.dataset import load_item, load_mask, open_dataset
from vesalius.data.readers import labelstudio
from vesalius.data.readers.brush import decode_brush
from vesalius.data.source import Problems, Source
from vesalius.errors import AnnotationError, DataError
from vesalius.types import Sample

SIZE = (8, 10)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images" / "p1").mkdir(parents=True)
    (tmp_path / "images" / "p2").mkdir()
    for name in (
        "a.png",
        "images/b.png",
        "images/0a1b2c3d-c.png",
        "images/p1/d.png",
        "images/p1/e.png",
        "images/p2/e.png",
    ):
        Image.new("L", SIZE[::-1]).save(tmp_path / name)
    return tmp_path


def write(root: Path, *tasks: Any) -> Path:
    path = root / "project-1.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return path


def read(path: Path, problems: Problems = None) -> list[Sample]:
    assert labelstudio.recognize(Source(path))
    return labelstudio.read(Source(path), "", problems)


def region(form: str = "rectanglelabels", label: str = "vessel", **value: Any) -> dict[str, Any]:
    return {
        "id": "r1",
        "type": form,
        "from_name": "label",
        "original_width": 10,
        "original_height": 8,
        "image_rotation": 0,
        "value": {**value, form: [label]},
    }


BOX = region(x=10, y=25, width=40, height=50)


def task(*regions: Any, image: str = "a.png", **more: Any) -> dict[str, Any]:
    return {
        "id": 1,
        "data": {"image": image},
        "annotations": [{"id": 5, "completed_by": 2, "result": list(regions)}],
        **more,
    }


def box(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[rows, columns] = True
    return mask


def mask_of(root: Path, shape: dict[str, Any]) -> np.ndarray:
    (sample,) = read(write(root, task(shape)))
    assert sample.masks is not None and sample.size == SIZE
    return load_mask(sample.masks[0][0], SIZE, "here")


def encode(values: np.ndarray, lengths: tuple[int, ...] = (3, 4, 8, 16), literal: int = 0) -> list[int]:
    """The bits of rle-pack, written here as text: runs of equal values, or `literal` values in a run as they are."""
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{length - 1:04b}" for length in lengths)
    i = 0
    while i < len(values):
        n = 1
        while i + n < len(values) and (n < literal or (not literal and values[i + n] == values[i])):
            n += 1
        pick = next((k for k, length in enumerate(lengths) if n <= 1 << length), 3)
        n = min(n, 1 << lengths[pick])
        bits += f"{int(not literal)}{pick:02b}{n - 1:0{lengths[pick]}b}"
        bits += "".join(f"{value:08b}" for value in (values[i : i + n] if literal else values[i : i + 1]))
        i += n
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


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
    arrays(
        np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.sampled_from([0, 0, 1, 255])
    ),
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
        np.testing.assert_array_equal(decode_brush(values, size, "here"), alpha != 0)


def test_a_brush_region_is_an_object_of_its_label(root: Path) -> None:
    mask = box(slice(2, 4), slice(1, 8))
    rle = encode(np.repeat(mask.ravel().astype(np.uint8) * 255, 4))
    np.testing.assert_array_equal(mask_of(root, region("brushlabels", format="rle", rle=rle)), mask)


@pytest.mark.parametrize(
    ("rle", "words"),
    [
        ([], "ends before"),
        (None, "must be a list of bytes"),
        ([256] * 9, "must be a list of bytes"),
        ([True] * 9, "must be a list of bytes"),
        ("AAAA", "must be a list of bytes"),
        ([255] * 99, "is of 4294967295 values, and an image of 8 x 10"),
        ([0, 0, 1, 64, 0, 0, 0, 0], "not of 8 bits"),
        (encode(np.zeros(320, dtype=np.uint8))[:-2], "ends before"),
        (encode(np.zeros(320, dtype=np.uint8), literal=99)[:60], "ends before"),
        ([0, 0, 1, 64, *encode(np.zeros(324, dtype=np.uint8))[4:]], "beyond the end"),
    ],
)
def test_a_brush_whose_numbers_lie_is_refused(root: Path, rle: Any, words: str) -> None:
    with pytest.raises(AnnotationError, match=words) as error:
        read(write(root, task(region("brushlabels", format="rle", rle=rle))))
    assert error.value.code == "invalid_rle"


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


@pytest.mark.parametrize(
    ("image", "code", "words"),
    [
        ("/data/upload/1/e.png", "ambiguous_image", "may be any of 2 files"),
        ("/data/upload/1/99999999-e.png", "ambiguous_image", "may be any of 2 files"),
        ("/data/upload/1/none.png", "missing_image", "no file 'none.png' is in"),
        ("../a.png", "outside_path", "names no file of the dataset"),
        ("/data/local-files/?d=../../etc/passwd", "outside_path", "names no file"),
        ("%2e%2e/b.png/x", "outside_path", "names no file"),
        ("http://[a.png", "missing_image", "is no address"),
        ("/", "outside_path", "names no file"),
        (" ", "invalid_annotation", "must be a path"),
        ("a" * 5000, "invalid_annotation", "must be a path"),
        ("a" * 400 + ".png", "missing_image", "no file"),
        ("\x00.png", "missing_image", "no file"),
    ],
)
def test_images_that_are_not_there_or_there_twice_are_refused(
    root: Path, image: str, code: str, words: str
) -> None:
    with pytest.raises(AnnotationError, match=words) as error:
        read(write(root, task(BOX, image=image)))
    assert error.value.code == code


def test_of_several_annotations_one_has_to_be_marked(root: Path) -> None:
    mine = {"id": 5, "completed_by": 2, "result": [BOX]}
    yours = {"id": 6, "completed_by": {"id": 3, "email": "b@c"}, "result": []}
    with pytest.raises(AnnotationError, match=r"has 2 annotations \(5 by 2, 6 by \{'id': 3") as error:
        read(write(root, {"data": {"image": "a.png"}, "annotations": [mine, yours]}))
    assert error.value.code == "ambiguous_annotation"
    for one in ({"was_cancelled": True}, {"skipped": True}):
        (sample,) = read(write(root, {"data": {"image": "a.png"}, "completions": [mine, yours | one]}))
        assert sample.prompts == ("vessel",)
    (sample,) = read(
        write(root, {"data": {"image": "a.png"}, "annotations": [mine | {"ground_truth": True}, yours]})
    )
    assert sample.prompts == ("vessel",)


def test_predictions_are_not_read_and_notes_say_what_is_not(root: Path) -> None:
    predicted = {"data": {"image": "a.png"}, "predictions": [{"result": [BOX]}]}
    cancelled = {"data": {"image": "b.png"}, "annotations": [{"was_cancelled": True, "result": [BOX]}]}
    dataset = open_dataset(write(root, predicted, cancelled))
    assert dataset.format == "labelstudio"
    assert [sample.masks for sample in dataset.samples] == [None, None]
    assert dataset.notes[:3] == (
        "tasks whose predictions are not read, which are a model's: 1",
        "annotations that were cancelled, and are not read: 1",
        "tasks that nobody drew on, read as not annotated: 2",
    )


def test_a_shape_and_its_label_in_two_regions_are_one_object(root: Path) -> None:
    bare = BOX | {"type": "rectangle"}
    labeled = BOX | {"type": "labels", "value": {**BOX["value"], "labels": ["catheter", "wire"]}}
    (sample,) = read(write(root, task(bare, labeled)))
    assert sample.prompts == ("catheter", "wire")
    with pytest.raises(AnnotationError, match="needs a label") as error:
        read(write(root, task(bare)))
    assert error.value.code == "no_phrase"


def test_other_fields_and_remarks_are_metadata(root: Path) -> None:
    chosen = {"type": "choices", "from_name": "view", "value": {"choices": ["LAO"]}}
    texts = [{"type": "textarea", "from_name": "size", "value": {"textarea": [one]}} for one in ("x", "y")]
    entry = task(BOX, chosen, *texts, {"type": "relation", "from_id": "r1"})
    entry["data"] |= {"patient": "p7", "group": 3}
    dataset = open_dataset(write(root, entry), group="patient")
    (sample,) = dataset.samples
    assert sample.metadata == {
        "patient": "p7",
        "labelstudio_group": 3,
        "view": "LAO",
        "labelstudio_size": ["x", "y"],
    }
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
        "label": [
            {
                "x": 10,
                "y": 25,
                "width": 40,
                "height": 50,
                "rotation": 0,
                "rectanglelabels": ["vessel"],
                **size,
            }
        ],
        "brush": [{"format": "rle", "rle": rle, "brushlabels": ["wire"], **size}],
    }
    dataset = open_dataset(write(root, entry))
    assert dataset.format == "labelstudio"
    item = load_item(dataset.samples[0])
    assert item.prompts == ("vessel", "wire") and item.masks is not None
    np.testing.assert_array_equal(item.masks[0, 0], box(slice(2, 6), slice(1, 5)))
    np.testing.assert_array_equal(item.masks[1, 0], box(slice(0, 1), slice(0, 2)))
    assert dataset.samples[0].metadata == {"patient": "p1"}


@pytest.mark.parametrize(
    ("wrong", "code", "words"),
    [
        (region("keypointlabels", x=1, y=1, width=0.4), "no_area", "has no area"),
        (region("polygonlabels", points=[[1, 1], [9, 9], [5, 9]], closed=False), "no_area", "has no area"),
        (region("vectorlabels", vertices=[]), "no_area", "has no area"),
        (region("bitmasklabels", imageDataURL="data:"), "unknown_shape", "is a form that is not read"),
        (region("polygonlabels", points=[[1, 1], [2]]), "invalid_points", r"a list of \[x, y\]"),
        (
            region("polygonlabels", points=[[1, 1], [2, "3"], [4, 4]]),
            "invalid_annotation",
            "not a finite number: '3'",
        ),
        (region(x=1, y=2, width=float("inf"), height=4), "invalid_points", "width must be a number"),
        (region(x=1, y=2, width=None, height=4), "invalid_points", "width must be a number"),
        (region(label=" ", x=1, y=2, width=3, height=4), "no_phrase", "needs a label"),
        (BOX | {"image_rotation": 90}, "rotated_annotation", "was turned by 90 degrees"),
        (
            BOX | {"original_width": 99_999, "original_height": 99_999},
            "size_mismatch",
            "whole numbers of pixels",
        ),
        (BOX | {"original_width": -10, "original_height": -8}, "size_mismatch", "whole numbers of pixels"),
        (BOX | {"original_width": None}, "size_mismatch", "whole numbers of pixels"),
        (BOX | {"value": []}, "invalid_annotation", "value must be an object"),
        (BOX | {"type": None}, "unknown_shape", "must be an object with type"),
        ([], "unknown_shape", "must be an object with type"),
    ],
)
def test_what_is_no_mask_is_refused_with_its_place(root: Path, wrong: Any, code: str, words: str) -> None:
    path = write(root, task(wrong), task(BOX, image="b.png"))
    with pytest.raises(AnnotationError, match=words) as error:
        read(path)
    assert error.value.code == code
    assert str(error.value).startswith(f"{path}, task 0 ('a.png'), annotation 5, region 0: ")
    problems: list[DataError] = []
    assert [sample.id for sample in read(path, problems)] == ["b"]
    assert len(problems) == 1


def test_tasks_that_are_wrong_as_a_whole_are_refused(root: Path) -> None:
    good = task(BOX)
    other = BOX | {"original_width": 20}
    wrong: list[tuple[Any, str]] = [
        (7, "must be an object, not a number"),
        ({"annotations": []}, "has no data"),
        ({"data": {}, "annotations": []}, "data must name one image, and has none"),
        ({"data": {"x": "a.png", "y": "b.png"}, "annotations": []}, "has 'x', 'y'"),
        ({"data": {"image": 3}, "annotations": []}, "image must be a path"),
        (task(image="a.png"), "has the same image a as"),
        (task(BOX, other, image="b.png"), "was drawn at 8 x 20"),
        ({"data": {"image": "b.png"}, "annotations": [{"result": None}]}, "result must be a list"),
    ]
    problems: list[DataError] = []
    assert len(read(write(root, good, *(each for each, _ in wrong)), problems)) == 1
    for problem, (_, words) in zip(problems, wrong, strict=True):
        assert words in str(problem)


def test_other_lists_are_not_recognized(root: Path) -> None:
    for value in ([], [{"image": "a.png", "mask": [], "text": []}], [{"data": 3}], ["a"], {"data": {}}):
        (root / "b.json").write_text(json.dumps(value))
        assert not labelstudio.recognize(Source(root / "b.json"))


VALUES = (None, True, -1, 0, 1e300, 10**400, float("nan"), "", "a.png", [], {}, [[]], [None], {"a": 1})


def mutate(value: Any, rng: np.random.Generator) -> Any:
    """The value with one place in it exchanged, dropped or put elsewhere."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[rng.integers(len(keys))]
        changed = value.copy()
        changed[key] = mutate(value[key], rng)
        if rng.random() < 0.1:
            del changed[key]
        return changed
    return VALUES[rng.integers(len(VALUES))]


def test_random_values_give_samples_or_data_errors(root: Path) -> None:
    rng = np.random.default_rng(0)
    brush = region("brushlabels", format="rle", rle=encode(np.zeros(320, dtype=np.uint8)))
    ellipse = region("ellipselabels", x=50, y=50, radiusX=40, radiusY=25, rotation=30)
    polygon = region("polygonlabels", points=[[1, 1], [50, 1], [50, 50]])
    whole: Any = [task(BOX, brush), task(ellipse, polygon, image="b.png")]
    for case in range(400):
        broken = whole
        for _ in range(1 + case % 3):
            broken = mutate(broken, rng)
        source = Source(write(root, *broken) if isinstance(broken, list) else write(root, broken))
        with contextlib.suppress(DataError):
            if labelstudio.recognize(source):
                labelstudio.notes(source)
                for sample in labelstudio.read(source, "", [] if case % 2 else None):
                    load_item(sample)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_random_bits_are_a_brush_or_an_annotation_error(bits: bytes) -> None:
    header = encode(np.zeros(320, dtype=np.uint8))[:4]
    for values in ([*bits], [*header, *bits], [*header, 0x39, 0x1B, 0xBF, *bits]):
        with contextlib.suppress(AnnotationError):
            assert decode_brush(values, SIZE, "here").shape == SIZE
