"""Validate annotation files of other programs with strict pydantic models.

Unknown keys are allowed and become metadata. An invalid value raises an AnnotationError with its location in the file.
Polygons are checked for numbers only; `masks.fault` checks their shape when a dataset is opened, so that
`vesalius check` can list and drop polygons with too few points or with NaN.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    PositiveInt,
    Strict,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from vesalius.codes import CODES
from vesalius.data.decoders.limits import MAX_PIXELS
from vesalius.data.images import sample_id
from vesalius.errors import DataError
from vesalius.masks import Size
from vesalius.types import Location, MaskReference, Polygons, RleMask

STRICT = ConfigDict(strict=True)


class StrictObject(BaseModel):
    """JSON object of another program: known keys are validated strictly, unknown keys are ignored."""

    model_config = STRICT


class ForeignObject(StrictObject):
    """JSON object of another program: known keys are validated strictly, unknown keys are kept."""

    model_config = ConfigDict(extra="allow")

    @property
    def unknown(self) -> dict[str, Any]:
        """Keys that are not fields of the model, with their values."""
        return self.model_extra or {}


M = TypeVar("M", bound=BaseModel)

TYPES = {
    "model_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
}
"""Type of a pydantic error -> message in JSON terms; other types keep pydantic's message."""


def parse(model: type[M], value: Any, where: Location) -> M:
    """The value validated as `model`; AnnotationError for its first invalid part."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(error, where) from error


def invalid(error: ValidationError, where: Location, code: str = "bad_value") -> DataError:
    """The first error of a pydantic ValidationError, as an AnnotationError with its location.

    The code is `missing_field` for a missing key, the type of a PydanticCustomError, or else `code`.
    """
    first = error.errors(include_url=False)[0]
    kind, loc = first["type"], first["loc"]
    part = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in loc)
    at = where.inside(part.removeprefix(".")) if part else where
    code = kind if kind in CODES else code
    if kind == "missing":
        return at.error("is missing", "missing_field" if code == "bad_value" else code)
    wrong = TYPES.get(kind) or first["msg"].replace("Input should be", "must be")
    return at.error(f"{wrong}, not {show(first['input'])}", code)


def _check_id(value: Any) -> int | str:
    if type(value) not in (int, str):
        raise PydanticCustomError("bad_value", "must be a whole number or text")
    return value


def _check_phrase(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise PydanticCustomError("no_phrase", "must be a phrase")
    return value


def _check_counts(value: Any) -> str | list[int]:
    if isinstance(value, str) or (isinstance(value, list) and all(type(run) is int and run >= 0 for run in value)):
        return value
    raise PydanticCustomError("invalid_rle", "must be text or a list of whole numbers >= 0")


Id = Annotated[Any, AfterValidator(_check_id)]
Phrase = Annotated[str, BeforeValidator(_check_phrase)]
Coordinates = Annotated[list[float], FailFast()]
Point = Annotated[tuple[float, float], Strict(False)]
ImageSize = Annotated[tuple[PositiveInt, PositiveInt], Strict(False)]

_ONE_POLYGON: TypeAdapter[list[float]] = TypeAdapter(Coordinates, config=STRICT)
_POLYGONS: TypeAdapter[list[list[float]]] = TypeAdapter(list[Coordinates], config=STRICT)
_POINTS: TypeAdapter[list[tuple[float, float]]] = TypeAdapter(Annotated[list[Point], FailFast()], config=STRICT)


class _Rle(StrictObject):
    size: ImageSize
    counts: Annotated[Any, AfterValidator(_check_counts)]


def read_mask(value: Any, where: Location, size: Size | None) -> MaskReference:
    """Mask of one object: COCO RLE, flat polygons `[[x1, y1, ...], ...]`, or one flat polygon `[x1, y1, ...]`.

    NaN and Infinity are kept. AnnotationError for any other value, and for an RLE that is not of `size`.
    """
    if isinstance(value, dict):
        rle = parse(_Rle, value, where)
        if size is not None and rle.size != size:
            raise where.error(
                f"the RLE is {rle.size[0]} x {rle.size[1]} (h x w), the entry states {size[0]} x {size[1]}",
                "size_mismatch",
            )
        return RleMask({"size": list(rle.size), "counts": rle.counts})
    if not isinstance(value, list) or not value:
        raise where.error(f"must be polygons or RLE, not {show(value)}", "bad_value")
    flat = not isinstance(value[0], list)
    try:
        (_ONE_POLYGON if flat else _POLYGONS).validate_python(value)
    except ValidationError as error:
        raise invalid(error, where, "invalid_points") from error
    # pydantic's output is discarded: copies of 6 million numbers would take 144 MB and longer than the validation
    return Polygons(tuple(tuple(map(float, part)) for part in ([value] if flat else value)), flat)


def check_points(value: Any, where: Location) -> list[list[float]]:
    """The value, if it is a list of points [x, y] (NaN and Infinity are allowed); else AnnotationError."""
    try:
        _POINTS.validate_python(value)
    except ValidationError as error:
        raise invalid(error, where, "invalid_points") from error
    return value


def read_size(height: int | None, width: int | None, where: Location) -> Size | None:
    """(h, w); None if neither is stated, AnnotationError if only one is."""
    if height is None and width is None:
        return None
    if height is None or width is None:
        raise where.error("states only one of height and width", "missing_field")
    return height, width


def check_area(size: Size, where: Location) -> Size:
    """The size; AnnotationError if a side is below 1, or the image has more than `MAX_PIXELS`."""
    height, width = size
    if min(size) < 1:
        raise where.error(f"a size of {height} x {width} (h x w) has no pixels", "bad_value")
    if height * width > MAX_PIXELS:
        limit = f"more than {MAX_PIXELS // 10**6} million pixels"
        raise where.error(f"a size of {height} x {width} (h x w) has {limit}", "image_too_large")
    return size


def find_image(value: Any, where: Location, root: Path, folders: Sequence[str] = ("", "images")) -> tuple[Path, str]:
    """(image file, sample id) of a relative path, searched in each of the `folders` of `root`, in this order.

    Raises AnnotationError if the value is not a path, points outside `root`, or is in none of the folders.
    """
    if not isinstance(value, str) or not value.strip():
        raise where.error(f"image must be a path, not {show(value)}", "bad_value")
    name = PurePosixPath(posixpath.normpath(value))
    # links are not resolved: users may link a folder of images from another disk
    if name.is_absolute() or name.parts[:1] == ("..",):
        raise where.error(
            f"image {show(value)} is outside {root}", "outside_path", "give a path relative to the annotation file"
        )
    for folder in folders:
        if is_file(root / folder / name):
            return root / folder / name, sample_id(name)
    others = " or ".join(f"{folder}/" for folder in folders if folder)
    raise where.error(f"image {show(value)} is not in {root} or its {others}", "missing_image")


def is_file(path: Path) -> bool:
    """True if the file exists; False also for names that no file system allows."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # the name is too long or contains a zero byte
        return False


def check_metadata(metadata: Mapping[str, Any], where: Location) -> dict[str, Any]:
    """The metadata; AnnotationError if it cannot be written as strict JSON."""
    try:
        json.dumps(metadata, allow_nan=False)
    except ValueError as error:
        raise where.error(
            f"{', '.join(metadata)}: NaN and Infinity are not JSON", "bad_value", "write null instead"
        ) from error
    except RecursionError as error:
        raise where.error(f"{', '.join(metadata)}: nested too deeply", "bad_value") from error
    return dict(metadata)


def named(entry: str, name: Any) -> str:
    """`entry 3 (a.png)`, or `entry 3` if the name is not one printable line of text."""
    shown = name if isinstance(name, str) and name.isprintable() and len(name) <= 200 else ""
    return f"{entry} ({shown})" if shown else entry


def kind(value: Any) -> str:
    """The JSON type of a value, with article: `a list`."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def show(value: Any) -> str:
    """The repr of a value, shortened to 40 characters."""
    try:
        text = repr(value)
    except RecursionError:
        return "something nested too deeply"
    return text if len(text) <= 40 else text[:37] + "..."
