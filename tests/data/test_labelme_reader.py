"""LabelMe files: what is read, and one sentence for each way to be wrong."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vesalius.data.dataset import check_polygons, check_size, load_item, merge_phrases, open_dataset
from vesalius.data.readers import labelme
from vesalius.data.source import Problems, Source
from vesalius.errors import AnnotationError, DataError
from vesalius.masks import decode_rle, rasterize
from vesalius.types import Absent, Polygons, RleMask, Sample

TRIANGLE = [[1, 1], [6, 1], [1, 6]]
FLAT = Polygons(((1.0, 1.0, 6.0, 1.0, 1.0, 6.0),))
SIZE = (8, 10)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images" / "p1").mkdir(parents=True)
    for name in ("a.png", "images/b.png", "images/p1/c.png"):
        Image.new("L", SIZE[::-1]).save(tmp_path / name)
    return tmp_path


def shape(form: str | None = "polygon", points: Any = TRIANGLE, label: Any = "vessel", **more: Any) -> Any:
    return {"label": label, "points": points, "group_id": None, "shape_type": form, "flags": {}, **more}


def entry(*shapes: Any, image: Any = "a.png", **more: Any) -> dict[str, Any]:
    stated = {"imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": image,
        "imageData": None,
    } | (stated | more)


def write(root: Path, value: Any, name: str = "a.json") -> Path:
    path = root / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def read(path: Path, problems: Problems = None) -> list[Sample]:
    """As a dataset is opened: polygons that are none are refused too."""
    samples = labelme.read(Source(path), "", problems)
    if problems is None:
        for sample in samples:
            check_polygons(sample)
    return samples


def png(patch: Any, mode: str = "L", form: str = "PNG") -> str:
    file = io.BytesIO()
    Image.fromarray(np.array(patch, dtype=np.uint8)).convert(mode).save(file, format=form)
    return base64.b64encode(file.getvalue()).decode()


def area(sample: Sample) -> float:
    """Of its first polygon, by the shoelace formula."""
    (reference, *_), *_ = sample.masks or ()
    assert isinstance(reference, Polygons)
    x, y = np.reshape(reference.parts[0], (-1, 2)).T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def test_a_folder_of_files_is_recognized_and_read_in_order(root: Path) -> None:
    write(root, entry(shape(), image="b.png"), "images/b.json")
    write(root, entry(shape(None), shape(label="other")))
    write(root, "hidden", ".labelme/x.json")
    assert labelme.recognize(Source(root))
    first, second = read(root)
    assert (first.id, second.id) == ("a", "b")
    assert first.prompts == ("vessel", "other")
    assert first.masks == ((FLAT,), (FLAT,))
    assert (first.image, first.size, first.source) == (root / "a.png", SIZE, str(root / "a.json"))
    assert not first.metadata
    dataset = open_dataset(root)
    assert dataset.format == "labelme"
    assert dataset.notes[0] == "images that no JSON file is named after, not read: 1 (c.png)"


def test_a_single_file_is_recognized(root: Path) -> None:
    path = write(root, entry(shape()))
    assert labelme.recognize(Source(path))
    assert read(path)[0].masks == ((FLAT,),)
    assert labelme.notes(Source(path)) == []


@pytest.mark.parametrize(
    "value", [{"images": [], "annotations": []}, [], {"shapes": {}, "imagePath": ""}, "["]
)
def test_a_folder_with_other_json_is_not_labelme(root: Path, value: Any) -> None:
    for i in range(7):
        path = write(root, value, f"{i}.json")
        if value == "[":
            path.write_text(value)
    assert not labelme.recognize(Source(root))
    assert not labelme.recognize(Source(root / "a.png"))
    assert not labelme.recognize(Source(root / "nowhere"))


def test_a_file_of_something_else_among_them_is_named(root: Path) -> None:
    write(root, entry(shape()))
    write(root, {"classes": 3}, "dataset.json")
    assert labelme.recognize(Source(root))
    with pytest.raises(AnnotationError, match=r"dataset\.json: is no LabelMe file.* move it out") as error:
        read(root)
    assert error.value.code == "not_labelme"


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
    with pytest.raises(AnnotationError, match="copy of another size"):
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


@pytest.mark.parametrize("form", ["line", "linestrip", "point", "points"])
def test_a_shape_without_area_is_named(root: Path, form: str) -> None:
    path = write(root, entry(shape(), shape(form, [[1, 1], [2, 2]])))
    with pytest.raises(AnnotationError, match=r"shape 1 \('vessel'\): a \w+ has no area") as error:
        read(path)
    assert (error.value.code, str(error.value).startswith(str(path))) == ("no_area", True)


def test_an_image_annotated_at_another_size_is_found(root: Path) -> None:
    (sample,) = read(write(root, entry(shape(), imageHeight=800, imageWidth=800)))
    with pytest.raises(AnnotationError, match="was annotated at 800 x 800") as error:
        check_size(sample, SIZE)
    assert error.value.code == "size_mismatch"
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
def test_an_image_is_found_from_its_file_or_in_another_folder(
    root: Path, name: str, image: str, expected: str
) -> None:
    write(root, entry(image=image), name)
    (sample,) = read(root)
    assert sample.id == expected
    assert sample.image.is_file()


def test_the_folder_of_images_comes_before_that_of_masks(root: Path) -> None:
    (root / "masks").mkdir()
    Image.new("L", SIZE[::-1]).save(root / "masks" / "b.png")
    write(root, entry(image="b.png"), "labels/b.json")
    assert read(root)[0].image == root / "images" / "b.png"
    (root / "frames").mkdir()
    (root / "images" / "b.png").rename(root / "frames" / "b.png")
    with pytest.raises(AnnotationError, match=r"both frames/b\.png and masks/b\.png are there"):
        read(root)


@pytest.mark.parametrize(
    ("image", "code"),
    [
        ("../../a.png", "outside_path"),
        ("..\\..\\a.png", "outside_path"),
        ("/etc/hostname", "outside_path"),
        ("C:\\Users\\a.png", "outside_path"),
        ("gone.png", "missing_image"),
        ("a\x00.png", "missing_image"),
        ("a" * 5000, "missing_image"),
        ("", "invalid_annotation"),
        (None, "invalid_annotation"),
        (5, "invalid_annotation"),
    ],
)
def test_an_image_outside_or_missing_is_refused(root: Path, image: Any, code: str) -> None:
    path = write(root, entry(image=image), "labels/a.json")
    with pytest.raises(AnnotationError) as error:
        read(root)
    assert (error.value.code, str(error.value).startswith(f"{path}: image ")) == (code, True)


def test_the_copy_of_the_image_is_never_looked_at(root: Path) -> None:
    (sample,) = read(write(root, entry(shape(), imageData="no base64 at all")))
    assert sample.masks == ((FLAT,),)
    assert not sample.metadata
    with pytest.raises(AnnotationError) as error:
        read(write(root, entry(shape(), image="gone.png", imageData=png(np.ones(SIZE)))))
    assert error.value.code == "missing_image"


def test_without_a_shape_an_image_is_not_annotated_unless_something_is_absent(root: Path) -> None:
    (bare,) = read(write(root, entry()))
    assert (bare.prompts, bare.masks) == ((), None)
    (sample,) = read(
        write(root, entry(vesalius={"absent": ["stent"], "group": 3, "spacing_mm": 0.5, "frame": 2}))
    )
    assert (sample.prompts, sample.masks) == (("stent",), ((Absent(),),))
    assert (sample.id, sample.group, sample.frame, sample.spacing_mm) == ("a__0002", "3", 2, (0.5, 0.5))


def test_what_has_no_place_in_a_sample_is_metadata(root: Path) -> None:
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


ONE = png([[1]])
NOISE = np.random.default_rng(0).integers(0, 255, (8, 8))
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "shape is a list": (entry([]), "shape 0: must be an object, not a list"),
    "no label": (entry(shape(label="")), "shape 0: label must be a phrase, not empty"),
    "label is a number": (entry(shape(label=3)), "label must be a phrase, not a number"),
    "group": (entry(shape(group_id=[1])), "group_id must be a whole number"),
    "unknown shape": (entry(shape("ellipse")), "shape_type 'ellipse' is unknown"),
    "shape type is a list": (entry(shape(["polygon"])), "is unknown"),  # type: ignore[arg-type]
    "points": (entry(shape(points=[1, 2, 3])), r"points must be a list of \[x, y\]"),
    "three numbers": (entry(shape(points=[[1, 2, 3]] * 3)), r"points must be a list of \[x, y\]"),
    "text": (entry(shape(points=[[1, "2"]] * 3)), "has a coordinate that is not a finite number: '2'"),
    "two points": (entry(shape(points=[[1, 2], [3, 4]])), "has 2 points; at least 3 are needed"),
    "NaN": (entry(shape(points=[[1, float("nan")]] * 3)), "is not a finite number"),
    "NaN circle": (entry(shape("circle", [[1, 2], [float("nan"), 2]])), "is not a finite number"),
    "infinite circle": (entry(shape("circle", [[1, 2], [float("inf"), 2]])), "is not a finite number"),
    "NaN rectangle": (entry(shape("rectangle", [[1, 2], [float("nan"), 2]])), "is not a finite number"),
    "rectangle": (entry(shape("rectangle", TRIANGLE)), "a rectangle has 2 or 4 points, not 3"),
    "circle": (entry(shape("circle", TRIANGLE)), "a circle has 2 points, not 3"),
    "no mask": (entry(shape("mask", [[0, 0], [0, 0]])), "mask must be a PNG in base64, not null"),
    "not base64": (entry(shape("mask", [[0, 0], [0, 0]], mask="%")), "mask must be a gray PNG in base64"),
    "not PNG": (entry(shape("mask", [[0, 0], [0, 0]], mask="QUJD")), "mask must be a gray PNG in base64"),
    "BMP": (entry(shape("mask", [[0, 0], [0, 0]], mask=png([[1]], form="BMP"))), "must be a gray PNG"),
    "cut short": (
        entry(shape("mask", [[0, 0], [7, 7]], mask=png(NOISE)[:120])),
        "must be a gray PNG in base64",
    ),
    "color": (entry(shape("mask", [[0, 0], [0, 0]], mask=png([[1]], "RGB"))), "1 x 1 pixels of mode RGB"),
    "larger": (entry(shape("mask", [[0, 0], [99, 99]], mask=png(np.ones((99, 99))))), "99 x 99 pixels"),
    "points of a mask": (entry(shape("mask", [[0, 0]], mask=ONE)), "a mask has 2 points"),
    "far mask": (
        entry(shape("mask", [[1e308, 0], [1e308, 0]], mask=ONE)),
        "reaches outside of the image, 8 x 10",
    ),
    "mask before": (entry(shape("mask", [[-3, 0], [-3, 0]], mask=ONE)), "reaches outside"),
    "mask after": (entry(shape("mask", [[0, 9], [0, 9]], mask=ONE)), "reaches outside"),
    "NaN mask": (entry(shape("mask", [[float("nan"), 0], [0, 0]], mask=ONE)), "a mask has 2 points"),
    "other span": (entry(shape("mask", [[0, 0], [1, 1]], mask=ONE)), "is 1 x 1 .* points span 2 x 2"),
    "mask without size": (
        entry(shape("mask", [[0, 0], [0, 0]], mask=ONE), imageHeight=None, imageWidth=None),
        "a mask needs imageHeight and imageWidth",
    ),
    "mask of a huge image": (
        entry(shape("mask", [[0, 0], [0, 0]], mask=ONE), imageHeight=10**5, imageWidth=10**5),
        "of at most 200 megapixels",
    ),
    "height only": (entry(imageWidth=None), "imageHeight and imageWidth: size must be"),
    "size of text": (entry(imageWidth="10"), "imageHeight and imageWidth: size must be"),
    "our key": (entry(vesalius=[]), "vesalius must be an object, not a list"),
    "absent": (entry(vesalius={"absent": [""]}), "absent must be a list of phrases"),
    "spacing": (entry(vesalius={"spacing_mm": 0}), "spacing_mm must be one number"),
    "group of the image": (entry(vesalius={"group": []}), "group must be a name"),
    "frame": (entry(vesalius={"frame": -1}), "frame must be a whole number"),
    "NaN in metadata": (entry(other=float("nan")), "NaN and Infinity are not JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_named(root: Path, case: str) -> None:
    value, reason = WRONG[case]
    path = write(root, value)
    with pytest.raises(AnnotationError, match=reason) as error:
        read(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_decompression_bomb_is_refused_by_its_header(root: Path) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    content = bytearray(base64.b64decode(ONE))
    content[12:33] = header + struct.pack(">I", zlib.crc32(header))
    packed = base64.b64encode(content).decode()
    with pytest.raises(AnnotationError, match="mask must be a gray PNG"):
        read(write(root, entry(shape("mask", [[0, 0], [0, 0]], mask=packed))))


def test_all_wrong_files_are_collected_where_asked(root: Path) -> None:
    write(root, entry(shape("line")), "0.json")
    write(root, entry(shape()), "1.json")
    write(root, entry(shape()), "2.json")
    (root / "3.json").write_text("{")
    problems: list[DataError] = []
    assert [sample.id for sample in read(root, problems)] == ["a"]
    assert [problem.code for problem in problems] == ["no_area", "duplicate_id", "unreadable_file"]
    assert "has the same id a as" in str(problems[1])


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([ONE, "mask"]),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["label", "points", "x"]), inner)
    ),
    max_leaves=8,
)
FULL = entry(
    shape(group_id=1),
    shape("rectangle", [[1, 1], [5, 5]], group_id=1),
    shape("circle", [[4, 4], [6, 4]], "lesion"),
    shape("mask", [[2, 3], [4, 4]], mask=png([[0, 1, 0], [1, 1, 0]])),
    vesalius={"absent": ["stent"], "group": "p1", "spacing_mm": [0.3, 0.3]},
)


def mutated(data: st.DataObject, value: Any) -> Any:
    """A copy in which something, at any depth, is replaced by another value, or gone."""
    if isinstance(value, (dict, list)) and value and data.draw(st.integers(0, 5)):
        copy: Any = value.copy()
        key = data.draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
        if data.draw(st.integers(0, 9)):
            copy[key] = mutated(data, value[key])
        else:
            del copy[key]
        return copy
    return data.draw(json_values)


def read_all(path: Path) -> None:
    """Read and rasterize; only AnnotationError may come out."""
    with contextlib.suppress(AnnotationError):
        for sample in read(path):
            load_item(merge_phrases(sample))


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_any_change_of_a_value_gives_a_sample_or_an_annotation_error(root: Path, data: st.DataObject) -> None:
    read_all(write(root, mutated(data, FULL)))


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_any_change_of_bytes_gives_a_sample_or_an_annotation_error(
    root: Path, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(json.dumps(FULL).encode())
    for place, byte in changes:
        content[place % len(content)] = byte
    path = root / "a.json"
    path.write_bytes(content)
    read_all(path)


def test_a_polygon_is_rasterized_as_everywhere(root: Path) -> None:
    (sample,) = read(write(root, entry(shape())))
    masks = load_item(sample).masks
    assert masks is not None
    assert (masks[0, 0] == rasterize(FLAT.parts, SIZE)).all()
