"""The annotation format of the house: the official fine-tuning JSON of Sa2VA.

    [{"image": "a.png", "mask": [object, ...], "text": [str, ...], "group": "p1", "size": [h, w]}, ...]

`mask[i]` is one object of the phrase `text[i]`: nested polygons `[[x1, y1, ...], ...]`, one flat polygon
`[x1, y1, ...]`, COCO RLE, or null where the phrase is not in the image.
"""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vesalius.data.images import sample_id
from vesalius.errors import AnnotationError, DataError
from vesalius.masks import Size, check_polygon
from vesalius.types import Absent, MaskReference, Polygons, RleMask, Sample

KEYS = ("image", "mask", "text", "group", "size", "spacing_mm")


def read(path: Path, problems: list[DataError] | None = None) -> list[Sample]:
    """Samples of an annotation file, in its order; one prompt for each text, repeated where the text is.

    Images lie beside the file or in `images/` beside it, and their paths may not leave its folder. Raises
    AnnotationError naming file, entry (counted from 0) and image; with `problems`, a wrong entry is put there
    instead and left out. A file that is no list of entries raises in both cases.
    """
    samples: dict[str, Sample] = {}
    for index, entry in enumerate(_read_entries(path)):
        try:
            sample = _read_entry(entry, f"{path}, entry {index}", path.parent)
            if sample.id in samples:
                raise AnnotationError(
                    f"{sample.source}: has the same id {sample.id} as {samples[sample.id].source}; "
                    "put all objects of an image in one entry, and name images apart by more than the suffix"
                )
        except AnnotationError as error:
            if problems is None:
                raise
            problems.append(error)
        else:
            samples[sample.id] = sample
    return list(samples.values())


def _read_entries(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}: is not JSON ({error}); write it again as UTF-8 JSON") from error
    if not isinstance(entries, list):
        raise AnnotationError(f"{path}: must hold a list of entries, not {_kind(entries)}")
    if not entries:
        raise AnnotationError(f"{path}: has no entries; give at least one image")
    return entries


def _read_entry(entry: Any, place: str, root: Path) -> Sample:
    if not isinstance(entry, dict):
        raise AnnotationError(f"{place}: must be an object with image, mask and text, not {_kind(entry)}")
    if "video" in entry:
        raise AnnotationError(f"{place}: video entries cannot be read; give images")
    missing = [key for key in ("image", "mask", "text") if key not in entry]
    if missing:
        raise AnnotationError(
            f"{place}: has no {' and no '.join(missing)}; an entry needs image, mask and text"
        )
    image, name = _find_image(entry["image"], place, root)
    place = f"{place} ({entry['image']})"
    texts, size = _read_texts(entry, place), _read_size(entry.get("size"), place)
    objects = [_read_object(value, f"{place}: mask {i}", size) for i, value in enumerate(entry["mask"])]
    return Sample(
        id=name,
        image=image,
        prompts=tuple(texts),
        masks=tuple((each,) for each in objects),
        source=place,
        group=_read_group(entry.get("group"), place),
        size=size,
        spacing_mm=_read_spacing(entry.get("spacing_mm"), place),
        metadata=_read_metadata(entry, place),
    )


def _find_image(value: Any, place: str, root: Path) -> tuple[Path, str]:
    """The image file and the sample id; the file is looked for in `root`, then in `images/` in it."""
    if not isinstance(value, str) or not value.strip():
        raise AnnotationError(f"{place}: image must be a path, not {_kind(value) if value else 'empty'}")
    name = PurePosixPath(posixpath.normpath(value))
    # judged by name alone: a folder of images that is a link to another disk is the user's own choice
    if name.is_absolute() or name.parts[:1] == ("..",):
        raise AnnotationError(
            f"{place}: image {value} lies outside of {root}; give a path relative to the annotation file"
        )
    for candidate in (root / name, root / "images" / name):
        if _is_file(candidate):
            return candidate, sample_id(name)
    raise AnnotationError(f"{place}: image {value} is neither in {root} nor in images/ there")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or one that no file system has
        return False


def _read_texts(entry: dict[str, Any], place: str) -> list[str]:
    masks, texts = entry["mask"], entry["text"]
    if not isinstance(masks, list) or not isinstance(texts, list):
        raise AnnotationError(f"{place}: mask and text must be lists of equal length, one text an object")
    if len(masks) != len(texts):
        raise AnnotationError(
            f"{place}: has {len(masks)} masks but {len(texts)} texts; give one text an object"
        )
    if not texts:
        raise AnnotationError(
            f"{place}: names no phrase; give at least one text, with null where it is not in the image"
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise AnnotationError(
                f"{place}: text {index} must be a phrase, not {_kind(text) if text else 'empty'}"
            )
    return texts


def _read_object(value: Any, place: str, size: Size | None) -> MaskReference:
    if value is None:
        return Absent()
    if isinstance(value, dict):
        return _read_rle(value, place, size)
    if not isinstance(value, list):
        raise AnnotationError(f"{place} must be polygons, RLE or null, not {_kind(value)}")
    if not value:
        raise AnnotationError(f"{place} is empty; use null to say that the phrase is not there")
    nested = value if isinstance(value[0], list) else [value]
    return Polygons(tuple(_read_polygon(part, f"{place}, polygon {i}") for i, part in enumerate(nested)))


def _read_polygon(value: Any, place: str) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise AnnotationError(f"{place} must be a list of coordinates, not {_kind(value)}")
    for number in value:
        if not _is_number(number):
            raise AnnotationError(f"{place} has a coordinate that is not a finite number: {_show(number)}")
    try:
        check_polygon(value, place)
    except ValueError as error:
        raise AnnotationError(f"{error}; draw it again or remove it") from error
    return tuple(float(number) for number in value)


def _read_rle(value: dict[str, Any], place: str, size: Size | None) -> RleMask:
    stated = _read_size(value.get("size"), f"{place}, RLE")
    counts = value.get("counts")
    if stated is None or not isinstance(counts, (str, list)):
        raise AnnotationError(f"{place}: COCO RLE needs size [h, w] and counts (text or a list)")
    if isinstance(counts, list) and not all(type(run) is int and run >= 0 for run in counts):
        raise AnnotationError(f"{place}: the RLE counts must be whole numbers >= 0")
    if size is not None and stated != size:
        raise AnnotationError(
            f"{place}: the RLE is {stated[0]} x {stated[1]} (h x w), the entry states {size[0]} x {size[1]}"
        )
    return RleMask({"size": list(stated), "counts": counts})


def _read_size(value: Any, place: str) -> Size | None:
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(type(side) is int and side > 0 for side in value)
    ):
        raise AnnotationError(f"{place}: size must be [height, width] in pixels, not {_show(value)}")
    return value[0], value[1]


def _read_group(value: Any, place: str) -> str | None:
    if value is None:
        return None
    if type(value) not in (str, int) or value == "":
        raise AnnotationError(f"{place}: group must be a name or a whole number, not {_show(value)}")
    return str(value)


def _read_spacing(value: Any, place: str) -> tuple[float, float] | None:
    """(y, x) in mm; one number stands for both."""
    if value is None:
        return None
    pair: Sequence[Any] = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or not all(_is_number(number) and number > 0 for number in pair):
        raise AnnotationError(
            f"{place}: spacing_mm must be one number or [y, x], above 0, not {_show(value)}"
        )
    return float(pair[0]), float(pair[1])


def _read_metadata(entry: dict[str, Any], place: str) -> dict[str, Any]:
    metadata = {key: value for key, value in entry.items() if key not in KEYS}
    try:
        json.dumps(metadata, allow_nan=False)
    except ValueError as error:
        raise AnnotationError(
            f"{place}: NaN and Infinity are not JSON; use null in {', '.join(metadata)}"
        ) from error
    return metadata


def _is_number(value: Any) -> bool:
    """Whether it is a finite number; JSON's true and false are none, nor is an integer beyond float."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
