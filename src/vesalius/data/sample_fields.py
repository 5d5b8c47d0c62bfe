"""Optional fields of an image (frame, group, sequence, spacing) in all formats that allow further keys."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, NonNegativeInt
from pydantic_core import PydanticCustomError

from vesalius.data.readers.fields import ForeignObject
from vesalius.types import Sample

KEYS = ("frame", "group", "sequence", "spacing_mm")


def _read_name(value: Any) -> str | None:
    if value is not None and (type(value) not in (str, int) or value == ""):
        raise PydanticCustomError("bad_value", "must be a name or a whole number")
    return None if value is None else str(value)


def _read_spacing(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    pair = value if isinstance(value, list) else [value, value]
    try:
        if len(pair) == 2 and all(type(each) in (int, float) and 0 < each < float("inf") for each in pair):
            return float(pair[0]), float(pair[1])
    except OverflowError:  # an integer too large for float
        pass
    raise PydanticCustomError("bad_value", "must be one number or [y, x], above 0")


Name = Annotated[str | None, BeforeValidator(_read_name)]


class SampleFields(ForeignObject):
    """The optional fields of an image; a single number for `spacing_mm` applies to y and x."""

    frame: NonNegativeInt | None = None
    group: Name = None
    sequence: Name = None
    spacing_mm: Annotated[tuple[float, float] | None, BeforeValidator(_read_spacing)] = None

    def as_arguments(self) -> dict[str, Any]:
        """The four fields as keyword arguments of Sample."""
        return {key: getattr(self, key) for key in KEYS}


def write_sample_fields(sample: Sample) -> dict[str, Any]:
    """The optional fields that a sample has, as JSON values that `SampleFields` reads back."""
    known = {key: getattr(sample, key) for key in KEYS}
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in known.items() if value is not None
    }
