"""`Window`: the range of pixel values that an image of more than 8 bits shows from black to white."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vesalius.codes import CODES
from vesalius.errors import ImageError, SettingError
from vesalius.language import note

Range = tuple[float, float]
"""Values shown as black and as white. If they are equal, higher values are white and all others black."""

MAX_SAMPLED = 2**22
"""Maximum number of values sampled for percentiles."""
USED_FRACTION = 0.25
"""Floats in [0, 1] whose maximum is above this fraction count as scaled to [0, 1]."""

EXPECTED = (
    "auto, LOW HIGH with LOW below HIGH (such as 100 4000), or percentile P Q with 0 <= P < Q <= 100 "
    "(such as percentile 0.5 99.5)"
)


@dataclass(frozen=True)
class Window:
    """How pixel values become gray levels from 0 (black) to 255 (white).

    auto: values of 8 bits stay as they are; deeper ones are shown from their lowest to their highest value, over all
    frames of a file; floats in [0, 1] of which one is above `USED_FRACTION` are shown from 0 to 1; DICOM and NIfTI show
    the window of their header. range: from `low` to `high`. percentile: from the `low`-th to the `high`-th percentile
    of the values of a file. A range and percentiles also apply to 8-bit images.
    """

    kind: Literal["auto", "range", "percentile"] = "auto"
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def parse(cls, value: Any) -> Window:
        """The window written as `auto`, (low, high) or ("percentile", p, q), as a list of words, or as one text.

        ValueError for any other value.
        """
        if isinstance(value, Window):
            return value
        words = value.replace(",", " ").split() if isinstance(value, str) else value
        if not isinstance(words, Sequence) or not words:
            raise ValueError(f"must be {EXPECTED}; got {value!r}")
        name, *rest = words
        if name == "auto" and not rest:
            return AUTO
        try:
            low, high = (float(each) for each in (rest if name == "percentile" else words))
        except (TypeError, ValueError):
            low = high = math.nan
        limits = (0, 100) if name == "percentile" else (-math.inf, math.inf)
        if not (limits[0] <= low < high <= limits[1] and math.isfinite(high - low)):
            shown = value if isinstance(value, str) else " ".join(map(str, words))
            raise ValueError(f"must be {EXPECTED}; got {shown}")
        return cls("percentile" if name == "percentile" else "range", low, high)

    @classmethod
    def of(cls, value: Any) -> Window:
        """The window as in `parse`; SettingError for any other value."""
        try:
            return cls.parse(value)
        except ValueError as error:
            raise SettingError(f"the window {error}", code="bad_value", field="window") from error

    @property
    def plain(self) -> str | list[str | float]:
        """The value that `parse` reads, as JSON and YAML store it."""
        if self.kind == "auto":
            return "auto"
        return [*(["percentile"] if self.kind == "percentile" else []), self.low, self.high]

    def __str__(self) -> str:
        """The window as words of the command line, such as `100 4000`."""
        return " ".join(each if isinstance(each, str) else f"{each:g}" for each in self._words)

    @property
    def _words(self) -> Sequence[str | float]:
        return ["auto"] if isinstance(self.plain, str) else self.plain

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Settings accept what `parse` accepts, and store `plain`."""
        from pydantic_core import core_schema

        plain = core_schema.plain_serializer_function_ser_schema(lambda window: window.plain)
        return core_schema.no_info_plain_validator_function(cls.parse, serialization=plain)

    def keeps(self, dtype: np.dtype[Any]) -> bool:
        """True if values of this type are gray levels already: `auto` leaves 8-bit and boolean pixels as they are."""
        return self.kind == "auto" and dtype in (np.uint8, np.bool_)

    def find_range(self, parts: Iterable[np.ndarray], n_values: int, where: Path | str) -> Range:
        """The range over `parts`, such as the frames of a file, which have `n_values` values in total.

        Percentiles are those of an even sample of at most `MAX_SAMPLED` values. ImageError, starting with `where`, if a
        value is NaN or infinite.
        """
        if self.kind == "range":
            return self.low, self.high
        if self.kind == "percentile":
            return self._find_percentiles(parts, n_values, where)
        low, high, is_float = math.inf, -math.inf, False
        for part in parts:
            check_finite(part, where)
            low, high = min(low, float(part.min())), max(high, float(part.max()))
            is_float = part.dtype.kind == "f"
        return (0.0, 1.0) if is_float and low >= 0 and USED_FRACTION < high <= 1 else (low, high)

    def _find_percentiles(self, parts: Iterable[np.ndarray], n_values: int, where: Path | str) -> Range:
        # an odd stride visits all columns even if the row length is a power of two
        stride, seen, sampled = -(-n_values // MAX_SAMPLED) | 1, 0, []
        for part in parts:
            check_finite(part, where)
            sampled.append(part.ravel()[-seen % stride :: stride])
            seen += part.size
        low, high = np.percentile(np.concatenate(sampled).astype(np.float64), (self.low, self.high))
        return float(low), float(high)


AUTO = Window()
"""The default window."""


@dataclass
class ShownRanges:
    """The ranges that the images of a job show, in total."""

    n: int = 0
    """Number of images with a range, the deep ones."""
    black: Range = (math.inf, -math.inf)
    """Lowest and highest value that is shown as black."""
    white: Range = (math.inf, -math.inf)
    """Lowest and highest value that is shown as white."""

    def add(self, shown: Sequence[float]) -> None:
        """Count the range of one image."""
        low, high = shown
        self.n += 1
        self.black = min(self.black[0], low), max(self.black[1], low)
        self.white = min(self.white[0], high), max(self.white[1], high)

    def as_json(self) -> dict[str, Any]:
        """`images`, `black` and `white`."""
        return {"images": self.n, "black": list(self.black), "white": list(self.white)}


def describe_ranges(counted: Mapping[str, Any], window: Any) -> str:
    """One line about `ShownRanges.as_json` under a window."""

    def words(ends: Sequence[float]) -> str:
        return " to ".join(f"{each:g}" for each in dict.fromkeys(ends))

    n = counted["images"]
    return note(
        "window {window}: black at {black}, white at {white} ({images})",
        window=Window.parse(window),
        black=words(counted["black"]),
        white=words(counted["white"]),
        images=f"{n} image{'s' * (n != 1)}",
    )


def to_8_bit(
    values: np.ndarray, window: Window = AUTO, where: Path | str = "the image"
) -> tuple[np.ndarray, Range | None]:
    """uint8 gray levels of the same shape, and the range that was shown; None if 8-bit values were left as they are.

    `values` are the pixels of one image, gray or color, of any integer, float or boolean type; all channels share one
    range. True becomes 255. A constant image is black under `auto`. ImageError, starting with `where`, if a value is
    NaN or infinite.
    """
    if window.keeps(values.dtype):
        return (values if values.dtype == np.uint8 else values * np.uint8(255)), None
    shown = window.find_range([values], values.size, where)
    return apply_range(values, shown, where), shown


def apply_range(values: np.ndarray, shown: Range, where: Path | str = "the image") -> np.ndarray:
    """uint8 gray levels of the same shape: `shown[0]` and lower values are 0, `shown[1]` and higher ones 255.

    ImageError, starting with `where`, if a value is NaN or infinite.
    """
    check_finite(values, where)
    if values.dtype in (np.uint8, np.uint16):
        table = _gray_levels(np.arange(2 ** (8 * values.dtype.itemsize)), shown)
        return table[values]
    return _gray_levels(values, shown)


def _gray_levels(values: np.ndarray, shown: Range) -> np.ndarray:
    low, high = shown
    if low >= high:
        return (values > high).astype(np.uint8) * np.uint8(255)
    gray = values.astype(np.float64)
    gray -= low
    gray /= high - low
    return np.floor(np.clip(gray, 0, 1, out=gray) * 255 + 0.5).astype(np.uint8)


def check_finite(values: np.ndarray, where: Path | str) -> None:
    """Raise ImageError, starting with `where`, if a value is NaN or infinite."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    n = int(np.count_nonzero(~np.isfinite(values)))
    code = "not_finite_pixels"
    raise ImageError(
        f"{where}: {n} of {values.size} values are NaN or infinite",
        code=code,
        path=where if isinstance(where, Path) else None,
        remedy=CODES[code].remedy,
    )


def clipped_fraction(values: np.ndarray, shown: Range) -> float:
    """Fraction of the values that lie outside the range, and are black or white without difference."""
    outside = np.count_nonzero(values < shown[0]) + np.count_nonzero(values > shown[1])
    return outside / max(values.size, 1)
