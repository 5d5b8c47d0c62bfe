"""What an annotation file may say of an image beside its masks: frame, group, sequence, spacing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vesalius.data.readers.fields import is_number, show
from vesalius.errors import AnnotationError
from vesalius.types import Sample

KEYS = ("frame", "group", "sequence", "spacing_mm")


def read_particulars(entry: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The four `KEYS` of an entry as arguments of Sample; None where not stated.

    One number of `spacing_mm` stands for y and x. Raises AnnotationError, beginning with `place`.
    """
    frame = entry.get("frame")
    if frame is not None and (type(frame) is not int or frame < 0):
        raise AnnotationError(f"{place}: frame must be a whole number >= 0, not {show(frame)}")
    return {
        "frame": frame,
        "group": _read_name(entry, "group", place),
        "sequence": _read_name(entry, "sequence", place),
        "spacing_mm": _read_spacing(entry.get("spacing_mm"), place),
    }


def write_particulars(sample: Sample) -> dict[str, Any]:
    """What is known of them, ready for JSON; `read_particulars` gives the same back."""
    known = {key: getattr(sample, key) for key in KEYS}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in known.items()
        if value is not None
    }


def _read_name(entry: Mapping[str, Any], key: str, place: str) -> str | None:
    value = entry.get(key)
    if value is None:
        return None
    if type(value) not in (str, int) or value == "":
        raise AnnotationError(f"{place}: {key} must be a name or a whole number, not {show(value)}")
    return str(value)


def _read_spacing(value: Any, place: str) -> tuple[float, float] | None:
    if value is None:
        return None
    pair: Sequence[Any] = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or not all(is_number(number) and number > 0 for number in pair):
        raise AnnotationError(f"{place}: spacing_mm must be one number or [y, x], above 0, not {show(value)}")
    return float(pair[0]), float(pair[1])
