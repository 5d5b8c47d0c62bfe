"""Read LabelMe: one JSON file for each image, beside the image or in a folder beside the image folder.

    {"version": "5.5.0", "imagePath": "a.png", "imageHeight": h, "imageWidth": w, "imageData": null,
     "shapes": [{"label": "vessel", "shape_type": "polygon", "points": [[x, y], ...], "group_id": null}, ...]}

The label is the phrase. Shapes with the same label and `group_id` are one object. Points have (0, 0) at the outer
corner of the first pixel, as in Vesalius, but the two points of a mask are the indices of its first and last pixel.
LabelMe's own export also draws the outline, so its masks are half a pixel larger on every side. LabelMe and Vesalius
turn images by their EXIF tag. `imageData`, a copy of the image, is never read.

The key `vesalius`, which LabelMe preserves, holds fields that LabelMe does not have: `absent` (phrases that are not in
the image), `group`, `sequence`, `frame`, `spacing_mm` as in the format `vesalius`, and metadata.
"""

from __future__ import annotations

import base64
import io
import math
import posixpath
from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field, PositiveInt

from vesalius.data.images import frame_id, list_images
from vesalius.data.readers import fields
from vesalius.data.readers.fields import Id, kind, parse, show
from vesalius.data.readers.shapes import ellipse
from vesalius.data.sample_fields import KEYS as SAMPLE_KEYS
from vesalius.data.sample_fields import SampleFields
from vesalius.data.source import Problems, Samples, Source, read_json, reporting
from vesalius.errors import AnnotationError
from vesalius.masks import Size, encode_rle
from vesalius.types import Absent, Location, MaskReference, Polygons, RleMask, Sample

OURS = ("absent", *SAMPLE_KEYS)
"""Keys under `vesalius` that are not metadata."""

UNSET: tuple[Any, ...] = (None, "", {}, [])
"""Values that LabelMe writes for empty fields of a shape (description, flags, ...)."""

MAX_PROBED_FILES = 5
"""Maximum number of files of a folder that are opened to recognize LabelMe."""

Outline = tuple[float, ...]


class _Shape(fields.ForeignObject):
    label: fields.Phrase
    points: Any = None
    group_id: Id | None = None
    shape_type: Any = None
    mask: Any = None
    line_color: Any = None
    fill_color: Any = None


class _Ours(SampleFields):
    absent: list[fields.Phrase] = Field(default_factory=list)


class _File(fields.ForeignObject):
    version: Any = None
    flags: Any = None
    shapes: list[_Shape]
    imagePath: Any
    imageData: Any = None
    imageHeight: PositiveInt | None = None
    imageWidth: PositiveInt | None = None
    lineColor: Any = None
    fillColor: Any = None
    vesalius: _Ours = Field(default_factory=_Ours)


def recognize(source: Source) -> bool:
    """True if the file, or one of the first JSON files of the folder, has `shapes` and `imagePath`."""
    if not source.path.is_dir():
        return _is_labelme(source.json)
    return any(_holds_labelme(file) for file in _list_files(source)[:MAX_PROBED_FILES])


def read(source: Source, phrase: str = "", problems: Problems = None) -> list[Sample]:
    """Samples in the order of the files; one prompt for each object, in the order of shapes, then absent phrases.

    An image without shapes is not annotated, unless `vesalius` lists absent phrases. An image is searched at its
    `imagePath`, then under the same path in `images/` and in the other folders of the source; it must be inside the
    source. Raises AnnotationError with file and shape (counted from 0); with `problems`, the error is added there and
    the file is skipped.
    """
    folders = sorted(each.name for each in source.root.iterdir() if each.is_dir() and each.name[0] != ".")
    samples = Samples()
    for file in _list_files(source):
        with reporting(problems):
            value = source.json if file == source.path else read_json(file)
            where = Location(file)
            samples.add(_read_file(value, where, source.root, folders), where, "keep one file for each image")
    return samples


def notes(source: Source) -> list[str]:
    """A note with the number of images in the folder without a JSON file of the same name."""
    if not source.path.is_dir():
        return []
    stems = {file.stem for file in _list_files(source)}
    bare = [image.name for image in list_images(source.root) if image.stem not in stems]
    shown = ", ".join(bare[:5]) + (", ..." if len(bare) > 5 else "")
    return [f"images without a JSON file of the same name, not read: {len(bare)} ({shown})"] if bare else []


def _list_files(source: Source) -> list[Path]:
    """The JSON files of the source, sorted by path, except hidden files and the `import.json` of an import."""
    if not source.path.is_dir():
        return [source.path]
    jsons = (file for file in source.root.rglob("*") if file.suffix.lower() == ".json" and file.is_file())
    found = (file for file in jsons if file != source.root / "import.json")
    return sorted(file for file in found if not any(part[0] == "." for part in file.relative_to(source.root).parts))


def _holds_labelme(file: Path) -> bool:
    try:
        return _is_labelme(read_json(file))
    except AnnotationError:  # `read` reports this file if another one is LabelMe's
        return False


def _is_labelme(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("shapes"), list) and "imagePath" in value


def _read_file(value: Any, where: Location, root: Path, folders: Sequence[str]) -> Sample:
    if not _is_labelme(value):
        raise where.error(
            "is not a LabelMe file, which has shapes and imagePath", "not_labelme", f"move it out of {root}"
        )
    image, name = _find_image(value["imagePath"], where, root, folders)
    file = parse(_File, value, where)
    size = fields.read_size(file.imageHeight, file.imageWidth, where)
    rows = _read_objects(file.shapes, where, size)
    rows += [(phrase, (Absent(),)) for phrase in file.vesalius.absent]
    frame = file.vesalius.frame
    return Sample(
        name if frame is None else frame_id(name, frame),
        image,
        tuple(phrase for phrase, _ in rows),
        tuple(objects for _, objects in rows) or None,
        where,
        size=size,
        metadata=_read_metadata(file, where),
        **file.vesalius.as_arguments(),
    )


def _find_image(value: Any, where: Location, root: Path, folders: Sequence[str]) -> tuple[Path, str]:
    """(image file, sample id by its path under `root`)."""
    if not isinstance(value, str) or not value.strip():
        return fields.find_image(value, where, root)  # raises with the reason
    path = PureWindowsPath(value)
    remedy = "write imagePath relative to this file"
    if path.drive:
        raise where.error(f"image {show(value)} is a path on another machine", "outside_path", remedy)
    own = where.path.parent.relative_to(root)
    beside = posixpath.join(own.as_posix(), path.as_posix())
    elsewhere = {folder: posixpath.join(folder, *own.parts[1:], path.as_posix()) for folder in folders}
    found: list[str] = []
    for names in ([beside], [elsewhere.get("images", beside)], elsewhere.values()):
        found = found or [each for each in names if fields.is_file(root / each)]
    if len(found) > 1:
        raise where.error(
            f"image {show(value)} is not at this path, and {found[0]} and {found[1]} both exist",
            "ambiguous_image",
            remedy,
        )
    return fields.find_image(found[0] if found else beside, where, root)


def _read_metadata(file: _File, where: Location) -> dict[str, Any]:
    """Unknown keys of the file, and under `shapes` the label and unknown keys of each shape that has any."""
    kept = [
        (shape.label, {key: each for key, each in shape.unknown.items() if each not in UNSET}) for shape in file.shapes
    ]
    metadata = file.vesalius.unknown | file.unknown
    metadata |= {"flags": file.flags} if file.flags else {}
    shapes = [{"label": label} | others for label, others in kept if others]
    return fields.check_metadata(metadata | ({"shapes": shapes} if shapes else {}), where)


def _read_objects(
    shapes: list[_Shape], where: Location, size: Size | None
) -> list[tuple[str, tuple[MaskReference, ...]]]:
    """(phrase, masks) of each object: the polygons of a group are one mask, and each mask shape is another."""
    objects: dict[Hashable, tuple[str, list[MaskReference]]] = {}
    for index, shape in enumerate(shapes):
        key: Hashable = index if shape.group_id is None else (shape.label, shape.group_id)
        reference = _read_shape(shape, where.inside(f"shapes[{index}] ({show(shape.label)})"), size)
        objects.setdefault(key, (shape.label, []))[1].append(reference)
    return [(label, _join(references)) for label, references in objects.values()]


def _join(references: list[MaskReference]) -> tuple[MaskReference, ...]:
    parts = tuple(part for each in references if isinstance(each, Polygons) for part in each.parts)
    drawn: tuple[MaskReference, ...] = (Polygons(parts),) if parts else ()
    return drawn + tuple(each for each in references if not isinstance(each, Polygons))


def _read_shape(shape: _Shape, where: Location, size: Size | None) -> MaskReference:
    form = shape.shape_type or "polygon"  # files from before 2018 have polygons only
    if form in ("point", "points", "line", "linestrip"):
        raise where.error(f"a {form} has no area", "no_area")
    points = tuple(map(float, chain.from_iterable(fields.check_points(shape.points, where.inside("points")))))
    if form == "mask":
        return _read_mask(shape.mask, points, where, size)
    if not isinstance(form, str) or form not in OUTLINES:
        raise where.error(f"the shape_type {show(form)} is unknown", "unknown_shape")
    return Polygons((OUTLINES[form](points, where, size),))


def _polygon(points: Outline, where: Location, size: Size | None) -> Outline:
    return points


def _rectangle(points: Outline, where: Location, size: Size | None) -> Outline:
    """The outline of a rectangle, from two opposite corners or from all four, in any order."""
    xs, ys = points[::2], points[1::2]
    if len(xs) == 2:
        return xs[0], ys[0], xs[1], ys[0], xs[1], ys[1], xs[0], ys[1]
    if len(xs) != 4:
        raise where.error(f"a rectangle has 2 or 4 points, not {len(xs)}", "invalid_points")
    x, y = sum(xs) / 4, sum(ys) / 4
    corners = sorted(zip(xs, ys, strict=True), key=lambda corner: math.atan2(corner[1] - y, corner[0] - x))
    return tuple(number for corner in corners for number in corner)


def _circle(points: Outline, where: Location, size: Size | None) -> Outline:
    """A polygon with the area of the circle through an edge point around a center point.

    It is clipped to the image if both points are inside, as LabelMe requires.
    """
    if len(points) != 4:
        raise where.error(f"a circle has 2 points, not {len(points) // 2}", "invalid_points")
    x, y, edge_x, edge_y = points
    radius = math.hypot(edge_x - x, edge_y - y)
    if not math.isfinite(radius):
        raise where.error("has a coordinate that is not a finite number", "not_finite")
    outline = ellipse(x, y, radius, radius)
    if size is not None and min(points) >= 0 and max(x, edge_x) <= size[1] and max(y, edge_y) <= size[0]:
        outline = np.clip(outline, 0, size[::-1])
    return tuple(outline.ravel().tolist())


OUTLINES: dict[str, Callable[[Outline, Location, Size | None], Outline]] = {
    "polygon": _polygon,
    "rectangle": _rectangle,
    "oriented_rectangle": _rectangle,
    "circle": _circle,
}


def _read_mask(value: Any, points: Outline, where: Location, size: Size | None) -> RleMask:
    """The mask in a rectangular patch; `points` are the pixel indices of its first and last pixel."""
    if size is None:
        raise where.error("a mask needs imageHeight and imageWidth", "missing_field")
    fields.check_area(size, where)
    if len(points) != 4 or not all(map(math.isfinite, points)):
        raise where.error("a mask has 2 points, its first and its last pixel", "invalid_points")
    patch = _decode_patch(value, where, size)
    left, top = round(points[0]), round(points[1])
    spanned = round(points[3] - points[1]) + 1, round(points[2] - points[0]) + 1
    rows, columns = _span(top, patch.shape[0], size[0]), _span(left, patch.shape[1], size[1])
    # LabelMe 5 states one row and one column too many, and crops the patch to the image
    if (rows, columns) != (_span(top, spanned[0], size[0]), _span(left, spanned[1], size[1])):
        raise where.error(
            f"the mask is {patch.shape[0]} x {patch.shape[1]} pixels (h x w) but its points span "
            f"{spanned[0]} x {spanned[1]}",
            "size_mismatch",
        )
    inside = patch[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    if inside.sum() < patch.sum():
        raise where.error(f"the mask extends beyond the image, {size[0]} x {size[1]} (h x w)", "size_mismatch")
    mask = np.zeros(size, dtype=bool)
    mask[rows, columns] = inside
    return RleMask(encode_rle(mask))


def _span(first: int, length: int, side: int) -> slice:
    """The indices from `first` to `first` + `length`, clipped to an image side."""
    return slice(min(max(first, 0), side), min(max(first + length, 0), side))


def _decode_patch(value: Any, where: Location, most: Size) -> np.ndarray:
    """bool (h, w) of a gray PNG in base64, no larger than `most`; nonzero pixels are foreground."""
    try:
        if not isinstance(value, str):
            raise ValueError(kind(value))
        with Image.open(io.BytesIO(base64.b64decode(value, validate=True)), formats=["PNG"]) as image:
            if image.height > most[0] or image.width > most[1] or image.mode not in ("1", "L"):
                raise ValueError(f"{image.height} x {image.width} pixels of mode {image.mode}")
            return np.array(image) != 0
    except MemoryError:
        raise
    # base64 and Pillow raise errors of many classes
    except Exception as error:
        message = f"must be a gray PNG in base64, not larger than the image ({error})"
        raise where.inside("mask").error(message, "unreadable_mask") from error
