"""LabelMe: one JSON file an image, beside the image or in a folder beside that of the images.

    {"version": "5.5.0", "imagePath": "a.png", "imageHeight": h, "imageWidth": w, "imageData": null,
     "shapes": [{"label": "vessel", "shape_type": "polygon", "points": [[x, y], ...], "group_id": null}, ...]}

The label is the phrase. Shapes that share label and `group_id` are one object. Points have (0, 0) at the
outer corner of the first pixel, as here; but the two points of a mask are the indices of its first and last
pixel. LabelMe's own export draws the outline too, so its masks are fatter by half a pixel all round. It
shows images turned as their EXIF says, which is not done here: the stated size then differs. `imageData`, a
copy of the image, is never looked at.

What LabelMe has no word for stands under the key `vesalius`, which it keeps: `absent` (phrases that are not
in the image), `group`, `sequence`, `frame`, `spacing_mm` as in the format `vesalius`, and metadata.
"""

from __future__ import annotations

import base64
import io
import math
import posixpath
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image

from vesalius.data.decoders.limits import MAX_PIXELS
from vesalius.data.images import frame_id, list_images
from vesalius.data.readers import fields
from vesalius.data.readers.fields import is_number, kind, show
from vesalius.data.readers.shapes import ellipse
from vesalius.data.sample_fields import KEYS as PARTICULARS
from vesalius.data.sample_fields import read_particulars
from vesalius.data.source import Problems, Source, read_json, report
from vesalius.errors import AnnotationError
from vesalius.masks import Size, encode_rle
from vesalius.types import Absent, MaskReference, Polygons, RleMask, Sample

OURS = ("absent", *PARTICULARS)
"""Keys under `vesalius` that are no metadata."""

KEYS = ("version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth", "vesalius")
OLD_KEYS = ("lineColor", "fillColor")
SHAPE_KEYS = ("label", "points", "group_id", "shape_type", "mask", "line_color", "fill_color")

UNSAID: tuple[Any, ...] = (None, "", {}, [])
"""What a shape's description, flags and the like are where nobody wrote any."""

LOOKED_INTO = 5
"""Files of a folder that may tell that it is LabelMe's."""

Outline = tuple[float, ...]


def recognize(source: Source) -> bool:
    """Whether the file, or one of the first JSON files of the folder, has `shapes` and `imagePath`."""
    if not source.path.is_dir():
        return _is_labelme(source.json)
    return any(_holds_labelme(file) for file in _list_files(source)[:LOOKED_INTO])


def read(source: Source, phrase: str = "", problems: Problems = None) -> list[Sample]:
    """Samples in order of their files; one prompt for each object, in the order of shapes, then what is
    absent.

    Without any shape the image is not annotated, unless `vesalius` says what is absent. An image is looked
    for where `imagePath` says, else under the same path in `images/` and in the other folders of the
    source; it must lie in the source. Raises AnnotationError naming file and shape (counted from 0); with
    `problems` it is put there instead, and the file is left out.
    """
    folders = sorted(each.name for each in source.root.iterdir() if each.is_dir() and each.name[0] != ".")
    samples: dict[str, Sample] = {}
    for file in _list_files(source):
        try:
            value = source.json if file == source.path else read_json(file)
            sample = _read_file(value, file, source.root, folders)
            if sample.id in samples:
                raise AnnotationError(
                    f"{file}: has the same id {sample.id} as {samples[sample.id].source}; "
                    "keep one file an image, and name images apart by more than the suffix",
                    code="duplicate_id",
                )
        except AnnotationError as error:
            report(error, problems)
        else:
            samples[sample.id] = sample
    return list(samples.values())


def notes(source: Source) -> list[str]:
    """How many images of the folder no JSON file is named after."""
    if not source.path.is_dir():
        return []
    stems = {file.stem for file in _list_files(source)}
    bare = [image.name for image in list_images(source.root) if image.stem not in stems]
    shown = ", ".join(bare[:5]) + (", ..." if len(bare) > 5 else "")
    return [f"images that no JSON file is named after, not read: {len(bare)} ({shown})"] if bare else []


def _list_files(source: Source) -> list[Path]:
    """The JSON files of the source in order of their paths; hidden ones and hidden folders are left out.

    So is the record that `vesalius import` leaves beside them.
    """
    if not source.path.is_dir():
        return [source.path]
    jsons = (file for file in source.root.rglob("*") if file.suffix.lower() == ".json" and file.is_file())
    found = (file for file in jsons if file != source.root / "import.json")
    return sorted(
        file for file in found if not any(part[0] == "." for part in file.relative_to(source.root).parts)
    )


def _holds_labelme(file: Path) -> bool:
    try:
        return _is_labelme(read_json(file))
    except AnnotationError:  # another file may tell; reading the folder names this one
        return False


def _is_labelme(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("shapes"), list) and "imagePath" in value


def _read_file(value: Any, file: Path, root: Path, folders: Sequence[str]) -> Sample:
    place = str(file)
    if not _is_labelme(value):
        raise AnnotationError(
            f"{place}: is no LabelMe file, which has shapes and imagePath; move it out of {root}",
            code="not_labelme",
        )
    image, name = _find_image(value["imagePath"], file, root, folders)
    stated = [value.get("imageHeight"), value.get("imageWidth")]
    size = (
        None if stated == [None, None] else fields.read_size(stated, f"{place}: imageHeight and imageWidth")
    )
    ours = value.get("vesalius", {})
    if not isinstance(ours, dict):
        raise AnnotationError(f"{place}: vesalius must be an object, not {kind(ours)}")
    rows = _read_objects(value["shapes"], place, size)
    rows += [(phrase, (Absent(),)) for phrase in _read_absent(ours.get("absent", []), place)]
    particulars = read_particulars(ours, f"{place}: vesalius")
    frame = particulars["frame"]
    return Sample(
        name if frame is None else frame_id(name, frame),
        image,
        tuple(phrase for phrase, _ in rows),
        tuple(objects for _, objects in rows) or None,
        place,
        size=size,
        metadata=_read_metadata(value, ours, place),
        **particulars,
    )


def _find_image(value: Any, file: Path, root: Path, folders: Sequence[str]) -> tuple[Path, str]:
    """The image file, and the sample id by its path under `root`."""
    place = str(file)
    if not isinstance(value, str) or not value.strip():
        return fields.find_image(value, place, root)  # says what is wrong with it
    path = PureWindowsPath(value)
    if path.drive:
        raise AnnotationError(
            f"{place}: image {value} is on another machine; write imagePath relative to this file",
            code="outside_path",
        )
    own = file.parent.relative_to(root)
    named = posixpath.join(own.as_posix(), path.as_posix())
    elsewhere = {folder: posixpath.join(folder, *own.parts[1:], path.as_posix()) for folder in folders}
    found: list[str] = []
    for names in ([named], [elsewhere.get("images", named)], elsewhere.values()):
        found = found or [each for each in names if fields.is_file(root / each)]
    if len(found) > 1:
        raise AnnotationError(
            f"{place}: image {value} is not beside it, but both {found[0]} and {found[1]} are there; "
            "write imagePath relative to this file",
            code="missing_image",
        )
    return fields.find_image(found[0] if found else named, place, root)


def _read_metadata(value: dict[str, Any], ours: dict[str, Any], place: str) -> dict[str, Any]:
    """Unknown keys, and under `shapes` the label and what else each shape has beside its form."""
    shapes = [
        {"label": shape["label"]} | kept
        for shape in value["shapes"]
        if (
            kept := {key: each for key, each in shape.items() if key not in SHAPE_KEYS and each not in UNSAID}
        )
    ]
    metadata = {key: each for key, each in ours.items() if key not in OURS}
    metadata |= {key: each for key, each in value.items() if key not in (*KEYS, *OLD_KEYS)}
    metadata |= {"flags": value["flags"]} if value.get("flags") else {}
    metadata |= {"shapes": shapes} if shapes else {}
    fields.check_metadata(metadata, place)
    return metadata


def _read_absent(value: Any, place: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) and each.strip() for each in value):
        raise AnnotationError(
            f"{place}: absent must be a list of phrases, not {show(value)}", code="no_phrase"
        )
    return value


def _read_objects(
    shapes: list[Any], place: str, size: Size | None
) -> list[tuple[str, tuple[MaskReference, ...]]]:
    """Phrase and masks of each object: the polygons of a group are one mask, each mask shape is another."""
    objects: dict[Hashable, tuple[str, list[MaskReference]]] = {}
    for index, shape in enumerate(shapes):
        at = f"{place}, shape {index}"
        if not isinstance(shape, dict):
            raise AnnotationError(f"{at}: must be an object, not {kind(shape)}")
        label, group = shape.get("label"), shape.get("group_id")
        if not isinstance(label, str) or not label.strip():
            raise AnnotationError(
                f"{at}: label must be a phrase, not {kind(label) if label else 'empty'}", code="no_phrase"
            )
        if group is not None and type(group) not in (int, str):
            raise AnnotationError(f"{at}: group_id must be a whole number, not {show(group)}")
        key: Hashable = index if group is None else (label, group)
        reference = _read_shape(shape, f"{at} ({show(label)})", size)
        objects.setdefault(key, (label, []))[1].append(reference)
    return [(label, _join(references)) for label, references in objects.values()]


def _join(references: list[MaskReference]) -> tuple[MaskReference, ...]:
    parts = tuple(part for each in references if isinstance(each, Polygons) for part in each.parts)
    drawn: tuple[MaskReference, ...] = (Polygons(parts),) if parts else ()
    return drawn + tuple(each for each in references if not isinstance(each, Polygons))


def _read_shape(shape: dict[str, Any], place: str, size: Size | None) -> MaskReference:
    form = shape.get("shape_type") or "polygon"  # files of before 2018 have polygons only
    if form in WITHOUT_AREA:
        raise AnnotationError(
            f"{place}: a {form} has no area; draw a polygon around what is meant, or remove it",
            code="no_area",
        )
    points = _read_points(shape.get("points"), place)
    if form == "mask":
        return _read_mask(shape.get("mask"), points, place, size)
    if not isinstance(form, str) or form not in OUTLINES:
        raise AnnotationError(
            f"{place}: the shape_type {show(form)} is unknown; draw it as a polygon", code="unknown_shape"
        )
    return Polygons((OUTLINES[form](points, place, size),))


def _read_points(value: Any, place: str) -> Outline:
    """`(x1, y1, x2, y2, ...)`."""
    if not isinstance(value, list) or not all(isinstance(point, list) and len(point) == 2 for point in value):
        raise AnnotationError(f"{place}: points must be a list of [x, y]")
    return fields.read_polygon([number for point in value for number in point], place)


def _polygon(points: Outline, place: str, size: Size | None) -> Outline:
    return points


def _rectangle(points: Outline, place: str, size: Size | None) -> Outline:
    """By two opposite corners, or by all four, in any order."""
    xs, ys = points[::2], points[1::2]
    if len(xs) == 2:
        return xs[0], ys[0], xs[1], ys[0], xs[1], ys[1], xs[0], ys[1]
    if len(xs) != 4:
        raise AnnotationError(f"{place}: a rectangle has 2 or 4 points, not {len(xs)}", code="invalid_points")
    x, y = sum(xs) / 4, sum(ys) / 4
    corners = sorted(zip(xs, ys, strict=True), key=lambda corner: math.atan2(corner[1] - y, corner[0] - x))
    return tuple(number for corner in corners for number in corner)


def _circle(points: Outline, place: str, size: Size | None) -> Outline:
    """By center and a point of the edge: a polygon of the same area.

    LabelMe lets both be set within the image only, and the circle ends at its border.
    """
    if len(points) != 4:
        raise AnnotationError(
            f"{place}: a circle has 2 points, not {len(points) // 2}", code="invalid_points"
        )
    x, y, edge_x, edge_y = points
    radius = math.hypot(edge_x - x, edge_y - y)
    if not math.isfinite(radius):
        raise AnnotationError(f"{place} has a coordinate that is not a finite number")
    outline = ellipse(x, y, radius, radius)
    if size is not None and min(points) >= 0 and max(x, edge_x) <= size[1] and max(y, edge_y) <= size[0]:
        outline = np.clip(outline, 0, size[::-1])
    return tuple(outline.ravel().tolist())


WITHOUT_AREA = ("point", "points", "line", "linestrip")
OUTLINES: dict[str, Callable[[Outline, str, Size | None], Outline]] = {
    "polygon": _polygon,
    "rectangle": _rectangle,
    "oriented_rectangle": _rectangle,
    "circle": _circle,
}


def _read_mask(value: Any, points: Outline, place: str, size: Size | None) -> RleMask:
    """A patch of the image, with the indices of its first and last pixel."""
    if size is None or size[0] * size[1] > MAX_PIXELS:
        raise AnnotationError(
            f"{place}: a mask needs imageHeight and imageWidth, of at most {MAX_PIXELS // 10**6} megapixels",
            code="size_mismatch",
        )
    if len(points) != 4 or not all(map(is_number, points)):
        raise AnnotationError(
            f"{place}: a mask has 2 points, those of its first and last pixel", code="invalid_points"
        )
    patch = _decode_patch(value, place, size)
    left, top = round(points[0]), round(points[1])
    spanned = round(points[3] - points[1]) + 1, round(points[2] - points[0]) + 1
    rows, columns = _span(top, patch.shape[0], size[0]), _span(left, patch.shape[1], size[1])
    # LabelMe 5 spans a row and a column too many, and cuts the patch at the border of the image
    if (rows, columns) != (_span(top, spanned[0], size[0]), _span(left, spanned[1], size[1])):
        raise AnnotationError(
            f"{place}: the mask is {patch.shape[0]} x {patch.shape[1]} pixels (h x w) but its points span "
            f"{spanned[0]} x {spanned[1]}",
            code="size_mismatch",
        )
    seen = patch[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    if seen.sum() < patch.sum():
        raise AnnotationError(
            f"{place}: the mask reaches outside of the image, {size[0]} x {size[1]} (h x w); "
            "was it drawn on another?",
            code="size_mismatch",
        )
    mask = np.zeros(size, dtype=bool)
    mask[rows, columns] = seen
    return RleMask(encode_rle(mask))


def _span(first: int, length: int, border: int) -> slice:
    """The pixels from `first` on that lie in the image."""
    return slice(min(max(first, 0), border), min(max(first + length, 0), border))


def _decode_patch(value: Any, place: str, most: Size) -> np.ndarray:
    """bool (h, w) of a gray PNG in base64, no larger than `most`; pixels other than 0 are the object."""
    if not isinstance(value, str):
        raise AnnotationError(
            f"{place}: mask must be a PNG in base64, not {kind(value)}", code="unreadable_file"
        )
    try:
        with Image.open(io.BytesIO(base64.b64decode(value, validate=True)), formats=["PNG"]) as image:
            if image.height > most[0] or image.width > most[1] or image.mode not in ("1", "L"):
                raise ValueError(f"{image.height} x {image.width} pixels of mode {image.mode}")
            return np.array(image) != 0
    except MemoryError:
        raise
    # base64 and Pillow raise whatever their parser met
    except Exception as error:
        raise AnnotationError(
            f"{place}: mask must be a gray PNG in base64, not larger than the image ({error})",
            code="unreadable_file",
        ) from error
