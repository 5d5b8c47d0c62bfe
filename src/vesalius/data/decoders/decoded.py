"""`Decoded`, the result of all decoders: gray levels or colors of 8 bits, and the window that made them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vesalius.data.decoders.exif import SIDES_SWAPPED, UPRIGHT
from vesalius.window import Range, Window, apply_range, clipped_fraction

UNDONE_BY = {6: 8, 8: 6}
"""EXIF orientation -> the one that turns the image back; each of the others undoes itself."""


@dataclass(frozen=True)
class Decoded:
    """One image or frame as it is displayed."""

    pixels: UInt8[np.ndarray, "h w 3"]
    """RGB, upright."""
    window: Range | None
    """Values shown as black and white; None if the stored values or a lookup table of the file are the gray levels."""
    depth: str
    """Type of the stored values, such as `8-bit`, `12-bit`, `signed 16-bit`, `32-bit float`."""
    clipped: float = 0.0
    """Fraction of the values outside a window that the caller asked for; 0 under `auto`."""
    orientation: int = UPRIGHT
    """EXIF orientation of the stored pixels, from 1 (upright) to 8; `pixels` were turned by it."""

    @property
    def stored(self) -> UInt8[np.ndarray, "h w 3"]:
        """RGB pixels in the orientation in which the file stores them."""
        return turn(self.pixels, UNDONE_BY.get(self.orientation, self.orientation))


def show(
    values: np.ndarray, window: Window, where: Path | str, find_range: Callable[[], Range], depth: str = ""
) -> Decoded:
    """Values (h, w) or (h, w, 3) as displayed under a window.

    `find_range` returns the range of the whole file; it is called unless the window keeps these values or is a range.
    ImageError, starting with `where`, if a value is NaN or infinite.
    """
    depth = depth or depth_of(values.dtype)
    if window.keeps(values.dtype):
        return Decoded(as_rgb(values), None, depth)
    shown = (window.low, window.high) if window.kind == "range" else find_range()
    clipped = 0.0 if window.kind == "auto" else clipped_fraction(values, shown)
    return Decoded(as_rgb(apply_range(values, shown, where)), shown, depth, clipped)


def as_rgb(levels: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h w 3"]:
    """Gray levels (h, w) as three equal channels; colors (h, w, 3) unchanged."""
    return np.repeat(levels[:, :, None], 3, axis=2) if levels.ndim == 2 else levels


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (h, w, ...) as an EXIF orientation asks viewers to show them."""
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation in SIDES_SWAPPED:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels)


def depth_of(dtype: np.dtype[Any], bits: int | None = None) -> str:
    """The depth of stored values, such as `signed 16-bit`; `bits` are those in use, if the file states them."""
    bits = bits or (1 if dtype == np.bool_ else 8 * dtype.itemsize)
    return f"{bits}-bit float" if dtype.kind == "f" else f"{'signed ' * (dtype.kind == 'i')}{bits}-bit"
