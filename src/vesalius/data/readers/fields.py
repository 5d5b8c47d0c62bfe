"""Values of annotation files, checked: paths, polygons, RLE, sizes. Each error begins with the place it is given.

Whether a polygon is a shape at all (three points, finite numbers) is not asked here but by `masks.fault`,
when a dataset is opened: `vesalius check` has to see such polygons to tell of them, and to drop them.
"""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vesalius.data.images import sample_id
from vesalius.errors import AnnotationError
from vesalius.masks import Size
from vesalius.types import Polygons, RleMask


def find_image(
    value: Any, place: str, root: Path, folders: Sequence[str] = ("", "images")
) -> tuple[Path, str]:
    """The image file and the sample id; a relative path, looked for in each of `folders` of `root`, in that order.

    Raises AnnotationError where it is no path, leaves `root`, or is in none of the folders.
    """
    if not isinstance(value, str) or not value.strip():
        raise AnnotationError(f"{place}: image must be a path, not {kind(value) if value else 'empty'}")
    name = PurePosixPath(posixpath.normpath(value))
    # judged by name alone: a folder of images that is a link to another disk is the user's own choice
    if name.is_absolute() or name.parts[:1] == ("..",):
        raise AnnotationError(
            f"{place}: image {value} lies outside of {root}; give a path relative to the annotation file",
            code="outside_path",
        )
    for folder in folders:
        if is_file(root / folder / name):
            return root / folder / name, sample_id(name)
    others = " and ".join(f"{folder}/" for folder in folders if folder)
    raise AnnotationError(
        f"{place}: image {value} is neither in {root} nor in {others} there", code="missing_image"
    )


def is_file(path: Path) -> bool:
    """Whether there is such a file; False too for names that no file system has."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False


def read_polygons(value: list[Any], place: str) -> Polygons:
    """One object: a list of flat polygons `[[x1, y1, ...], ...]`, or one flat polygon `[x1, y1, ...]`."""
    flat = not isinstance(value[0], list)
    parts = [value] if flat else value
    return Polygons(tuple(read_polygon(part, f"{place}, polygon {i}") for i, part in enumerate(parts)), flat)


def read_polygon(value: Any, place: str) -> tuple[float, ...]:
    """The numbers of one flat polygon, NaN and Infinity included; AnnotationError where it is no list of numbers."""
    if not isinstance(value, list):
        raise AnnotationError(f"{place} must be a list of coordinates, not {kind(value)}")
    try:
        if all(type(number) in (int, float) for number in value):
            return tuple(map(float, value))
    except OverflowError:  # an integer beyond float
        pass
    wrong = next(number for number in value if not is_number(number))
    raise AnnotationError(f"{place} has a coordinate that is not a finite number: {show(wrong)}")


def read_rle(value: Mapping[str, Any], place: str, size: Size | None = None) -> RleMask:
    """COCO RLE `{"size": [h, w], "counts": text or list}`; AnnotationError where `size` is stated and differs."""
    stated = read_size(value.get("size"), f"{place}, RLE")
    counts = value.get("counts")
    if stated is None or not isinstance(counts, (str, list)):
        raise AnnotationError(f"{place}: COCO RLE needs size [h, w] and counts (text or a list)")
    if isinstance(counts, list) and not all(type(run) is int and run >= 0 for run in counts):
        raise AnnotationError(f"{place}: the RLE counts must be whole numbers >= 0")
    if size is not None and stated != size:
        raise AnnotationError(
            f"{place}: the RLE is {stated[0]} x {stated[1]} (h x w), the entry states {size[0]} x {size[1]}",
            code="size_mismatch",
        )
    return RleMask({"size": list(stated), "counts": counts})


def read_size(value: Any, place: str) -> Size | None:
    """`[height, width]`; None where nothing is stated."""
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(type(side) is int and side > 0 for side in value)
    ):
        raise AnnotationError(f"{place}: size must be [height, width] in pixels, not {show(value)}")
    return value[0], value[1]


def check_metadata(metadata: Mapping[str, Any], place: str) -> None:
    """Raise AnnotationError unless it can be written as strict JSON."""
    try:
        json.dumps(metadata, allow_nan=False)
    except ValueError as error:
        raise AnnotationError(
            f"{place}: NaN and Infinity are not JSON; use null in {', '.join(metadata)}"
        ) from error
    except RecursionError as error:
        raise AnnotationError(f"{place}: is nested too deeply in {', '.join(metadata)}") from error


def is_number(value: Any) -> bool:
    """Whether it is a finite number; JSON's true and false are none, nor is an integer beyond float."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def show(value: Any) -> str:
    """A value in at most 40 characters."""
    try:
        text = repr(value)
    except RecursionError:
        return "something nested too deeply"
    return text if len(text) <= 40 else text[:37] + "..."
