"""The table of wrong entries for `test_wrong_annotations.py`.

A row is (wrong value, code of the error, part of the location in the entry, text that the message contains).
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .annotation_files import (
    BOX,
    CVAT_BOX,
    POINTS,
    SIZE,
    TRIANGLE,
    brush,
    coco_annotation,
    coco_file,
    coco_image,
    cvat_file,
    cvat_image,
    entry,
    labelme_file,
    png,
    region,
    task,
    write_json,
)
from .annotation_files import labelme_mask as mask
from .annotation_files import labelme_shape as shape

Damaged = tuple[Path, Path, str, list[str]]
"""(path to open, file named in the error, entry named in the error, ids of the valid samples)."""
Row = tuple[Any, str, str, str]

NAN, INF, HUGE = float("nan"), float("inf"), 10**400
KEPT = "mask 0, polygon 0"
"""Location of an invalid polygon, which readers keep so that `vesalius check` can list and drop it."""


def _entry(root: Path, value: Any) -> Damaged:
    path = write_json(root, [entry("b.png"), value])
    return path, path, "entry 1", ["b"]


def _coco_image(root: Path, value: Any) -> Damaged:
    path = write_json(root, coco_file([coco_image(2, "b.png"), value], [coco_annotation(of=2)]))
    return path, path, "image 1", ["b"]


def _coco_annotation(root: Path, value: Any) -> Damaged:
    images = [coco_image(), coco_image(2, "b.png")]
    path = write_json(root, coco_file(images, [coco_annotation(of=2), value, coco_annotation()]))
    known = isinstance(value, dict) and value["image_id"] == 1
    return path, path, "annotation 1", ["b"] if known else ["a", "b"]


def _coco_category(root: Path, value: Any) -> Damaged:
    categories = [{"id": 7, "name": "stent"}, value]
    path = write_json(root, coco_file([coco_image(2, "b.png")], [], categories))
    return path, path, "category 1", ["b"]


def _labelme(root: Path, value: Any) -> Damaged:
    write_json(root, labelme_file(shape(), image="images/b.png"), "b.json")
    return root, write_json(root, value, "a.json"), "", ["b"]


def _labelme_shape(root: Path, value: Any) -> Damaged:
    return _labelme(root, labelme_file(value))


def _labelme_image(root: Path, value: Any) -> Damaged:
    write_json(root, labelme_file(shape(), image="images/b.png"), "b.json")
    return root, write_json(root, labelme_file(image=value), "labels/a.json"), "", ["b"]


def _task(root: Path, value: Any) -> Damaged:
    path = write_json(root, [task(BOX), value], "project.json")
    return path, path, "task 1", ["a"]


def _region(root: Path, value: Any) -> Damaged:
    path = write_json(root, [task(value), task(BOX, image="b.png")], "project.json")
    return path, path, "task 0 ('a.png'), annotation 5, region 0", ["b"]


def _brush(root: Path, value: Any) -> Damaged:
    return _region(root, region("brushlabels", format="rle", rle=value))


def _upload(root: Path, value: Any) -> Damaged:
    path = write_json(root, [task(BOX, image=value), task(BOX, image="b.png")], "project.json")
    return path, path, "task 0", ["b"]


def _cvat(root: Path, value: str) -> Damaged:
    path = cvat_file(root, value, cvat_image(CVAT_BOX, name="b.png"))
    return path, path, "image ", ["b"]


def _cvat_shape(root: Path, value: str) -> Damaged:
    path = cvat_file(root, cvat_image(value), cvat_image(CVAT_BOX, name="b.png"))
    return path, path, f"image 'a.png', {value[1:].split(' ', maxsplit=1)[0]} 0", ["b"]


FILES: dict[str, Callable[[Path, Any], Damaged]] = {
    "vesalius": _entry,
    "coco image": _coco_image,
    "coco annotation": _coco_annotation,
    "coco category": _coco_category,
    "labelme": _labelme,
    "labelme shape": _labelme_shape,
    "labelme image": _labelme_image,
    "labelstudio task": _task,
    "labelstudio region": _region,
    "labelstudio brush": _brush,
    "labelstudio upload": _upload,
    "cvat image": _cvat,
    "cvat shape": _cvat_shape,
}


def _rle(*, size: Any = SIZE, counts: Any = (80,)) -> dict[str, Any]:
    return {"size": list(size), "counts": counts if isinstance(counts, str) else list(counts)}


def _bomb() -> str:
    """A PNG of one pixel, with a header that states 30,000 x 30,000."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    content = bytearray(base64.b64decode(png([[1]])))
    content[12:33] = header + struct.pack(">I", zlib.crc32(header))
    return base64.b64encode(content).decode()


def _cvat_mask(left: int, top: int, width: int, height: int, rle: str) -> str:
    return f'<mask label="v" left="{left}" top="{top}" width="{width}" height="{height}" rle="{rle}"/>'


NOISE = np.random.default_rng(0).integers(0, 255, (8, 8))
BLANK = np.zeros(320, dtype=np.uint8)
CLIP = {"video": ["a.png", "images/b.png"], "text": ["v"]}

ENTRIES: dict[str, list[Row]] = {
    "vesalius": [
        (entry(mask=[[[1, 2]]]), "too_few_points", KEPT, "has 1 point;"),
        (entry(mask=[[[]]]), "too_few_points", KEPT, "has 0 points"),
        (entry(mask=[[[1, 2, 3, 4, 5, 6, 7]]]), "too_few_points", KEPT, "7 numbers"),
        (entry(mask=[[[1, 2, 3, 4, 5, NAN]]]), "not_finite", KEPT, ""),
        (entry(mask=[[1, 2, 3, 4, 5, INF]]), "not_finite", KEPT, ""),
        (entry(mask=[[1, 2, 3, 4, 5, HUGE]]), "invalid_points", "mask[0][5]", "1000"),
        (entry(mask=[[1, 2, 3, 4, 5, "6"]]), "invalid_points", "mask[0][5]", "'6'"),
        (entry(mask=[[[1, 2, 3, 4, 5, True]]]), "invalid_points", "mask[0][0][5]", "True"),
        (entry(mask=[[1, 2, 3, 4, 5, [6]]]), "invalid_points", "mask[0][5]", "[6]"),
        (entry(mask=[[TRIANGLE, 5]]), "invalid_points", "mask[0][1]", "not 5"),
        (entry(mask=[[]]), "empty_object", "mask[0]", ""),
        (entry(mask=["vessel"]), "bad_value", "mask[0]", "'vessel'"),
        (entry(text=["a", "b"]), "phrase_count_mismatch", "", "1 masks but 2 texts"),
        (entry(mask=[], text=[]), "no_phrase", "", ""),
        (entry(text=[" "]), "no_phrase", "text[0]", "' '"),
        (entry(text=[3]), "no_phrase", "text[0]", "not 3"),
        (entry(text="v"), "bad_value", "text", "'v'"),
        (entry("none.png"), "missing_image", "(none.png)", "'none.png'"),
        (entry("a\x00.png"), "missing_image", "", ""),
        (entry("a" * 5000), "missing_image", "", ""),
        (entry("../a.png"), "outside_path", "(../a.png)", ""),
        (entry("images/../../a.png"), "outside_path", "", ""),
        (entry("/etc/passwd"), "outside_path", "", "'/etc/passwd'"),
        (entry(None), "bad_value", "", "not None"),
        ({"mask": [], "text": []}, "missing_field", "", "no image"),
        ([1], "bad_value", "", "[1]"),
        (5, "bad_value", "", "not 5"),
        ({"video": "a.mp4", "mask": [], "text": []}, "bad_value", "video", "'a.mp4'"),
        ({"video": [], "mask": [], "text": []}, "bad_value", "video", "at least 1"),
        (CLIP | {"mask": [[TRIANGLE]]}, "bad_value", "(a.png), mask[0]", "2 values, one for each frame, not 1"),
        (CLIP | {"mask": [None], "frame": 3}, "bad_value", "frame", ""),
        (CLIP | {"mask": [None], "video": ["a.png", "a.png"]}, "duplicate_id", "(a.png)", "id a"),
        (entry("images/b.png"), "duplicate_id", "(images/b.png)", "entry 0 (b.png)"),
        (entry(frame=-1), "bad_value", "frame", "-1"),
        (entry(sequence=1.5), "bad_value", "sequence", "1.5"),
        ({"image": "a.png", "mask": [None]}, "missing_field", "(a.png)", "no text"),
        (entry(mask=[_rle(size=(4, 4), counts=[16])], size=[8, 10]), "size_mismatch", "mask[0]", "4 x 4"),
        (entry(mask=[{"size": [8, 10]}]), "missing_field", "mask[0], counts", ""),
        (entry(mask=[{"counts": [80]}]), "missing_field", "mask[0], size", ""),
        (entry(mask=[_rle(counts=[79.5])]), "invalid_rle", "mask[0], counts", "[79.5]"),
        (entry(size=[8]), "missing_field", "size[1]", ""),
        (entry(size=["8", "10"]), "bad_value", "(a.png), size[0]", "'8'"),
        (entry(group=[1]), "bad_value", "group", "[1]"),
        (entry(spacing_mm=[0.1, 0]), "bad_value", "spacing_mm", "[0.1, 0]"),
        (entry(weight=NAN), "bad_value", "(a.png)", "weight"),
    ],
    "coco image": [
        (5, "bad_value", "", "not 5"),
        ({"file_name": "a.png"}, "missing_field", "id", ""),
        (coco_image(True), "bad_value", "id", "True"),
        (coco_image([1]), "bad_value", "id", "[1]"),
        (coco_image(2), "duplicate_id", "(a.png)", "id 2 as"),
        (coco_image(1, "images/b.png"), "duplicate_id", "(images/b.png)", "id b as"),
        ({"id": 1}, "bad_value", "", "not None"),
        (coco_image(1, "none.png"), "missing_image", "(none.png)", "'none.png'"),
        (coco_image(1, "../a.png"), "outside_path", "", "'../a.png'"),
        (coco_image(1, "/etc/passwd"), "outside_path", "", "'/etc/passwd'"),
        (coco_image(width=None), "missing_field", "", "height and width"),
        (coco_image(width="10"), "bad_value", "width", "'10'"),
        (coco_image(width=0), "bad_value", "width", "not 0"),
        (coco_image(weight=NAN), "bad_value", "", "weight"),
        (coco_image(group=[]), "bad_value", "group", "[]"),
        (coco_image(spacing_mm=[1]), "bad_value", "spacing_mm", "[1]"),
        (coco_image(neg_category_ids=3), "bad_value", "neg_category_ids", "not 3"),
        (coco_image(neg_category_ids=[[]]), "bad_value", "neg_category_ids[0]", "[]"),
        (coco_image(neg_category_ids=[9]), "unknown_id", "neg_category_ids", "id 9"),
    ],
    "coco annotation": [
        (coco_annotation([[1, 2]]), "too_few_points", KEPT, "1 point;"),
        (coco_annotation([[1, 2, 3, 4, 5, NAN]]), "not_finite", KEPT, ""),
        ("x", "bad_value", "", "'x'"),
        (coco_annotation(of=9), "unknown_id", "", "image has the id 9"),
        (coco_annotation(of="1"), "unknown_id", "", "'1'"),
        (coco_annotation(of=None), "bad_value", "image_id", "None"),
        (coco_annotation(category=9), "unknown_id", "", "category has the id 9"),
        (coco_annotation(category=1.5), "bad_value", "category_id", "1.5"),
        (coco_annotation([], bbox=[0, 0, 4, 4]), "no_mask", "", "only a box (bbox)"),
        (coco_annotation(None), "no_mask", "", "has no segmentation"),
        (coco_annotation({}), "no_mask", "", "has no segmentation"),
        (coco_annotation("x"), "bad_value", "segmentation", "'x'"),
        (coco_annotation([[1, 2, 3, 4, 5, "6"]]), "invalid_points", "segmentation[0][5]", "'6'"),
        (coco_annotation([[1, 2, 3, 4, 5, HUGE]]), "invalid_points", "segmentation[0][5]", "1000"),
        (coco_annotation([TRIANGLE, 5]), "invalid_points", "segmentation[1]", "not 5"),
        (coco_annotation({"size": [8, 10]}), "missing_field", "segmentation, counts", ""),
        (coco_annotation(_rle(size=(4, 4), counts=[16])), "size_mismatch", "segmentation", "4 x 4"),
        (coco_annotation(_rle(counts=[1.5])), "invalid_rle", "segmentation, counts", "[1.5]"),
    ],
    "coco category": [
        ({"id": 1, "name": " "}, "no_phrase", "name", "' '"),
        ({"id": 1, "name": 3}, "no_phrase", "name", "not 3"),
        ({"id": None, "name": "v"}, "bad_value", "id", "None"),
        ("v", "bad_value", "", "'v'"),
        ({"id": 7, "name": "v"}, "duplicate_id", "", "id 7 as"),
    ],
    "labelme": [
        (labelme_file([]), "bad_value", "shapes[0]", "[]"),
        (labelme_file(shape(), shape("line", [[1, 1], [2, 2]])), "no_area", "shapes[1]", "line"),
        (labelme_file(mask([[1]]), imageHeight=None, imageWidth=None), "missing_field", "shapes[0]", "imageWidth"),
        (labelme_file(mask([[1]]), imageHeight=10**5, imageWidth=10**5), "image_too_large", "", "200"),
        (labelme_file(imageWidth=None), "missing_field", "", "height and width"),
        (labelme_file(imageWidth="10"), "bad_value", "imageWidth", "'10'"),
        (labelme_file(vesalius=[]), "bad_value", "vesalius", "[]"),
        (labelme_file(vesalius={"absent": [""]}), "no_phrase", "vesalius.absent[0]", "''"),
        (labelme_file(vesalius={"spacing_mm": 0}), "bad_value", "vesalius.spacing_mm", "not 0"),
        (labelme_file(vesalius={"group": []}), "bad_value", "vesalius.group", "[]"),
        (labelme_file(vesalius={"frame": -1}), "bad_value", "vesalius.frame", "-1"),
        (labelme_file(other=NAN), "bad_value", "", "other"),
        ({"classes": 3}, "not_labelme", "", ""),
        ("{", "unreadable_file", "", ""),
    ],
    "labelme shape": [
        (shape(label=""), "no_phrase", "shapes[0].label", "''"),
        (shape(label=3), "no_phrase", "shapes[0].label", "not 3"),
        (shape(group_id=[1]), "bad_value", "shapes[0].group_id", "[1]"),
        (shape("ellipse"), "unknown_shape", "shapes[0] ('vessel')", "'ellipse'"),
        (shape(["polygon"]), "unknown_shape", "shapes[0]", "['polygon']"),
        (shape("line", [[1, 1], [2, 2]]), "no_area", "shapes[0]", "line"),
        (shape("linestrip", [[1, 1], [2, 2]]), "no_area", "shapes[0]", "linestrip"),
        (shape("point", [[1, 1], [2, 2]]), "no_area", "shapes[0]", "point"),
        (shape("points", [[1, 1], [2, 2]]), "no_area", "shapes[0]", "points"),
        (shape(points=[1, 2, 3]), "invalid_points", "points[0]", "not 1"),
        (shape(points=[[1, 2, 3]] * 3), "invalid_points", "points[0]", "3"),
        (shape(points=[[1, "2"]] * 3), "invalid_points", "shapes[0] ('vessel'), points[0][1]", "'2'"),
        (shape(points=[[1, 2], [3, 4]]), "too_few_points", KEPT, "has 2 points"),
        (shape(points=[[1, NAN]] * 3), "not_finite", KEPT, ""),
        (shape("circle", [[1, 2], [NAN, 2]]), "not_finite", "shapes[0]", ""),
        (shape("circle", [[1, 2], [INF, 2]]), "not_finite", "shapes[0]", ""),
        (shape("rectangle", [[1, 2], [NAN, 2]]), "not_finite", KEPT, ""),
        (shape("rectangle", POINTS), "invalid_points", "shapes[0]", "not 3"),
        (shape("circle", POINTS), "invalid_points", "shapes[0]", "not 3"),
        (mask(None), "unreadable_mask", "shapes[0] ('vessel'), mask", "null"),
        (mask("%"), "unreadable_mask", "mask", ""),
        (mask("QUJD"), "unreadable_mask", "mask", ""),
        (mask(png([[1]], form="BMP")), "unreadable_mask", "mask", ""),
        (mask(png(NOISE)[:120], [[0, 0], [7, 7]]), "unreadable_mask", "mask", ""),
        (mask(png([[1]], "RGB")), "unreadable_mask", "mask", "1 x 1 pixels of mode RGB"),
        (mask(np.ones((99, 99)), [[0, 0], [99, 99]]), "unreadable_mask", "mask", "99 x 99"),
        (mask(_bomb()), "unreadable_mask", "mask", "900000000 pixels"),
        (mask([[1]], [[0, 0]]), "invalid_points", "shapes[0]", "2 points"),
        (mask([[1]], [[1e308, 0], [1e308, 0]]), "size_mismatch", "shapes[0]", "8 x 10"),
        (mask([[1]], [[-3, 0], [-3, 0]]), "size_mismatch", "shapes[0]", "8 x 10"),
        (mask([[1]], [[0, 9], [0, 9]]), "size_mismatch", "shapes[0]", "8 x 10"),
        (mask([[1]], [[NAN, 0], [0, 0]]), "invalid_points", "shapes[0]", "2 points"),
        (mask([[1]], [[0, 0], [1, 1]]), "size_mismatch", "shapes[0]", "span 2 x 2"),
    ],
    "labelme image": [
        ("../../a.png", "outside_path", "", ""),
        ("..\\..\\a.png", "outside_path", "", ""),
        ("/etc/hostname", "outside_path", "", ""),
        ("C:\\Users\\a.png", "outside_path", "", ""),
        ("gone.png", "missing_image", "", "gone.png"),
        ("a\x00.png", "missing_image", "", ""),
        ("a" * 5000, "missing_image", "", ""),
        ("", "bad_value", "", "''"),
        (None, "bad_value", "", "None"),
        (5, "bad_value", "", "not 5"),
    ],
    "labelstudio task": [
        (7, "bad_value", "", "not 7"),
        ({"annotations": []}, "missing_field", "data", ""),
        ({"data": {}, "annotations": []}, "missing_image", "", "none"),
        ({"data": {"x": "a.png", "y": "b.png"}, "annotations": []}, "missing_image", "", "'x', 'y'"),
        ({"data": {"image": 3}, "annotations": []}, "bad_value", "", "not 3"),
        (task(image="a.png"), "duplicate_id", "('a.png')", "task 0 ('a.png')"),
        (task(BOX, BOX | {"original_width": 20}, image="b.png"), "size_mismatch", "region 1", "8 x 20"),
        ({"data": {"image": "b.png"}, "annotations": [{"result": None}]}, "bad_value", "('b.png')", "null"),
    ],
    "labelstudio region": [
        (region("keypointlabels", x=1, y=1, width=0.4), "no_area", "", "'keypointlabels'"),
        (region("polygonlabels", points=[[1, 1], [9, 9], [5, 9]], closed=False), "no_area", "", ""),
        (region("vectorlabels", vertices=[]), "no_area", "", ""),
        (region("bitmasklabels", imageDataURL="data:"), "unknown_shape", "", "'bitmasklabels'"),
        (region("polygonlabels", points=[[1, 1], [2]]), "invalid_points", "points[1][1]", ""),
        (region("polygonlabels", points=[[1, 1], [2, "3"], [4, 4]]), "invalid_points", "points[1][1]", "'3'"),
        (region(x=1, y=2, width=INF, height=4), "bad_value", "width", "inf"),
        (region(x=1, y=2, width=NAN, height=4), "bad_value", "width", "nan"),
        (region(x=1, y=2, width=None, height=4), "bad_value", "width", "None"),
        (region(label=" ", x=1, y=2, width=3, height=4), "no_phrase", "", "[' ']"),
        (BOX | {"image_rotation": 90}, "rotated_annotation", "", "90 degrees"),
        (BOX | {"original_width": 99_999, "original_height": 99_999}, "image_too_large", "", "99999"),
        (BOX | {"original_width": -10, "original_height": -8}, "bad_value", "", "-8 x -10"),
        (BOX | {"original_width": None}, "missing_field", "", "original_width"),
        (BOX | {"original_width": "10"}, "bad_value", "original_width", "'10'"),
        (BOX | {"value": []}, "bad_value", "value", "[]"),
        (BOX | {"type": None}, "bad_value", "type", "None"),
        ({"type": "choices", "from_name": "view"}, "missing_field", "", "no value"),
        ([], "bad_value", "", "[]"),
        (BOX | {"type": "rectangle", "id": "other"}, "no_phrase", "", "'rectangle'"),
    ],
    "labelstudio brush": [
        ([], "invalid_rle", "value.rle", "ends before"),
        (None, "invalid_rle", "value.rle", "list of bytes"),
        ([256] * 9, "invalid_rle", "value.rle", "list of bytes"),
        ([True] * 9, "invalid_rle", "value.rle", "list of bytes"),
        ("AAAA", "invalid_rle", "value.rle", "list of bytes"),
        ([255] * 99, "invalid_rle", "value.rle", "4294967295 values, but an image of 8 x 10"),
        ([0, 0, 1, 64, 0, 0, 0, 0], "invalid_rle", "value.rle", "8 bits"),
        (brush(BLANK)[:-2], "invalid_rle", "value.rle", "ends before"),
        (brush(BLANK, literal=99)[:60], "invalid_rle", "value.rle", "ends before"),
        ([0, 0, 1, 64, *brush(np.zeros(324, dtype=np.uint8))[4:]], "invalid_rle", "value.rle", "beyond"),
    ],
    "labelstudio upload": [
        ("/data/upload/1/e.png", "ambiguous_image", "", "2 files"),
        ("/data/upload/1/99999999-e.png", "ambiguous_image", "", "2 files"),
        ("/data/upload/1/none.png", "missing_image", "", "'none.png'"),
        ("../a.png", "outside_path", "", ""),
        ("/data/local-files/?d=../../etc/passwd", "outside_path", "", ""),
        ("%2e%2e/b.png/x", "outside_path", "", ""),
        ("http://[a.png", "missing_image", "", ""),
        ("/", "outside_path", "", ""),
        (" ", "bad_value", "", "' '"),
        ("a" * 5000, "bad_value", "", "aaa"),
        ("a" * 400 + ".png", "missing_image", "", ""),
        ("\x00.png", "missing_image", "", ""),
    ],
    "cvat image": [
        *[(cvat_image(name=name), "missing_image", "", "") for name in ("none.png", "a" * 5000, "p1")],
        *[(cvat_image(name=name), "outside_path", "", "") for name in ("../a.png", "/etc/passwd")],
        (cvat_image(name=""), "bad_value", "", "''"),
        ('<image name="f/a.png" subset=".."/>', "missing_image", "", ""),
        (cvat_image(name="images/b.png"), "duplicate_id", "", "id b as"),
        (cvat_image(size='width="100000" height="100000"'), "image_too_large", "'a.png'", "200 million"),
        (cvat_image(size='width="0" height="8"'), "bad_value", "'a.png'", "8 x 0"),
        (cvat_image(size='width="-3" height="8"'), "bad_value", "'a.png'", "'-3'"),
        (cvat_image(_cvat_mask(0, 0, 99999, 99999, "9999800001"), size=""), "missing_field", "mask 0", ""),
    ],
    "cvat shape": [
        ('<polyline label="v" points="1,1;2,2"/>', "no_area", "", "polyline"),
        ('<points label="v" points="1,1"/>', "no_area", "", "points"),
        ('<skeleton label="v"/>', "no_area", "", "skeleton"),
        ('<cuboid label="v"/>', "no_area", "", "cuboid"),
        ('<star label="v"/>', "unknown_shape", "", ""),
        ('<polygon points="1,1;2,2;3,3"/>', "no_phrase", "", ""),
        ('<polygon label=" " points="1,1;2,2;3,3"/>', "no_phrase", "", ""),
        ('<polygon label="v" points="1,1;2;3,3"/>', "invalid_points", "", "1,1;2;3,3"),
        ('<polygon label="v" points="1,1;2,x;3,3"/>', "invalid_points", "", "2,x"),
        ('<box label="v" xtl="1" ytl="1" xbr="3"/>', "invalid_points", "", "ybr must be a number, not None"),
        ('<box label="v" xtl="nan" ytl="1" xbr="3" ybr="3"/>', "invalid_points", "", "xtl"),
        ('<ellipse label="v" cx="1" cy="1" rx="1e300" ry="3"/>', "invalid_points", "", "rx"),
        (_cvat_mask(3, 1, 3, 2, "1, 2, 2"), "invalid_rle", "", "3 x 2 pixels, not 5"),
        (_cvat_mask(3, 1, 3, 2, "7, -1"), "invalid_rle", "", "not 6"),
        (_cvat_mask(3, 1, 3, 2, "9999999999999, 1"), "invalid_rle", "", "not 10000000000000"),
        (_cvat_mask(3, 1, 3, 2, ""), "invalid_rle", "", ""),
        (_cvat_mask(8, 1, 3, 2, "6"), "invalid_rle", "", "x 8 to 11"),
        (_cvat_mask(-1, 1, 3, 2, "6"), "bad_value", "", "'-1'"),
        (_cvat_mask(0, 0, 999999999, 999999999, "1"), "invalid_rle", "", "999999999"),
    ],
}

# growing entities: 10 levels of 10, a billion laughs; and one long entity, repeated
NAMES = "zabcdefghij"
ENTITIES = "".join(f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in pairwise(NAMES))
LAUGHS = f'<!DOCTYPE annotations [<!ENTITY z "ha">{ENTITIES}]>\n<annotations><image name="&j;"/></annotations>'
LONG = f'<!DOCTYPE annotations [<!ENTITY z "{"ha" * 50_000}">]>\n<annotations>{"&z;" * 5000}</annotations>'
FOREIGN = '<!DOCTYPE annotations [<!ENTITY z SYSTEM "file:///etc/passwd">]>\n<annotations><image name="a.png">{}'

WHOLE_FILES: list[tuple[str, str, bytes, str, str | None]] = [
    *[
        ("vesalius", "annotations.json", text, "unreadable_file", None)
        for text in (b"", b"[{", b"\xff\xfe[", b"[" * 100_000)
    ],
    ("vesalius", "annotations.json", b'{"images": []}', "bad_value", None),
    ("vesalius", "annotations.json", b"[]", "no_image", None),
    ("coco", "a.json", b"[]", "bad_value", None),
    ("coco", "a.json", b'{"images": [], "annotations": []}', "missing_field", "categories"),
    ("coco", "a.json", b'{"images": {}, "annotations": [], "categories": []}', "bad_value", "images"),
    ("coco", "a.json", b'{"images": [], "annotations": [], "categories": []}', "no_image", None),
    *[
        ("cvat", "a.xml", text.encode(), "unreadable_file", None)
        for text in (
            "<annotations>",
            "<annotations></image>",
            "<annotations>&nbsp;</annotations>",
            '<?xml version="1.0" encoding="utf-7"?><annotations></annotations>',
            "<annotations>" + "<image>" * 100_000,
            LAUGHS,
            LONG,
            FOREIGN.format("&z;</image></annotations>"),
            FOREIGN.format('</image><image name="&z;"/></annotations>'),
        )
    ],
]
