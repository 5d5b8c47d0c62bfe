"""Conversion of stored DICOM values to gray levels and colors for display (PS3.3 C.7.6.3, C.11.1, C.11.2).

A gray image is mapped through one lookup table with an entry for each possible stored value, at most 65536: modality
transform, then window or VOI lookup table, then polarity. The header alone determines the table. Without a window in
the header, images of at most 8 bits show the full range of their bits, and deeper images a range of values in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vesalius.data.decoders.limits import image_error
from vesalius.window import Range

GRAYS = ("MONOCHROME1", "MONOCHROME2")
XRAY_CLASSES = ("1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.12.2", "1.2.840.10008.5.1.4.1.1.12.3")
"""SOP classes of angiography, fluoroscopy, and the retired biplane angiography."""

StoredRange = tuple[int, int]
"""Lowest and highest stored value."""


@dataclass(frozen=True)
class GrayTable:
    """The display of the stored values of an image; the arrays are indexed by a value's bits read as unsigned."""

    levels: np.ndarray
    """uint8 (256 or 65536,): gray level."""
    window: Range | None
    """Values after the modality transform that are black and white (or white and black for MONOCHROME1); None for a
    lookup table, and for images of 8 bits without a window."""
    outside: np.ndarray | None = None
    """bool (256 or 65536,): whether the value is outside a window that the caller asked for; None under `auto`."""


def gray_table(
    tags: Any,
    frame: int,
    dtype: np.dtype[Any],
    find_range: Callable[[], StoredRange],
    where: str,
    asked: Range | None = None,
) -> GrayTable:
    """The display of a frame with stored values of type `dtype`.

    `asked` are values after the modality transform that replace the window of the header. `find_range` returns the
    lowest and highest stored value; it is called only if there is no window and the image is deeper than 8 bits.
    Padding pixels are black. Raises ImageError, starting with `where`, for a window or lookup table that cannot be
    applied.
    """
    stored = np.arange(2 ** (8 * dtype.itemsize)).astype(f"u{dtype.itemsize}").view(dtype)
    values = apply_modality(tags, frame, stored, where)
    outside = None
    gray: np.ndarray | None
    if asked is None:
        gray, shown = _apply_voi(tags, frame, values, where)
    else:
        gray, shown, outside = _stretch(values, *asked), asked, (values < asked[0]) | (values > asked[1])
    if gray is None:
        full = int(tags.BitsStored) <= 8
        low, high = _bits_range(tags) if full else find_range()
        inside = values[(stored >= low) & (stored <= high)]
        limits = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 0.0)
        gray, shown = _stretch(values, *limits), None if full else limits
    if tags.PhotometricInterpretation == "MONOCHROME1" or tags.get("PresentationLUTShape") == "INVERSE":
        gray = 1 - gray
    levels = np.floor(np.clip(gray, 0, 1) * 255 + 0.5).astype(np.uint8)
    levels[is_padding(tags, stored)] = 0
    return GrayTable(levels, shown, outside)


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Gray levels from 0 at `low` to 1 at `high`; if they are equal, 1 above and 0 elsewhere."""
    return (values - low) / (high - low) if high > low else (values > high).astype(np.float64)


def is_padding(tags: Any, stored: np.ndarray) -> np.ndarray:
    """Bool array in the shape of `stored`: true for padding (Pixel Padding Value or Range)."""
    value = tags.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    limit = tags.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return (stored >= low) & (stored <= high)


def colors(pixels: np.ndarray, bits: int) -> np.ndarray:
    """uint8 (h, w, 3) of color pixels with `bits` bits; more than 8 bits are scaled, because colors have no window."""
    if bits == 8 and pixels.dtype == np.uint8:
        return pixels
    full = 2.0**bits - 1
    return np.floor(np.clip(pixels / full, 0, 1) * 255 + 0.5).astype(np.uint8)


def functional_group(tags: Any, frame: int, keyword: str) -> Any:
    """Functional group macro `keyword` of an enhanced image: of the frame, else the shared one, else None."""
    for groups, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = tags.get(groups) or ()
        found = items[index].get(keyword) if index < len(items) else None
        if found:
            return found[0]
    return None


def _bits_range(tags: Any) -> StoredRange:
    bits = int(tags.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if tags.PixelRepresentation else (0, 2**bits - 1)


def apply_modality(tags: Any, frame: int, stored: np.ndarray, where: str) -> np.ndarray:
    """Values after the modality transform, float64 in the shape of `stored`."""
    # their modality transform recovers X-ray intensity, not display values (PS3.4 N.2.1.1, PS3.17 FFF.2.3.1.3.4)
    if tags.get("SOPClassUID") in XRAY_CLASSES and tags.get("PixelIntensityRelationship") in ("LOG", "DISP"):
        return stored.astype(np.float64)
    if tags.get("ModalityLUTSequence"):
        return _look_up(tags, tags.ModalityLUTSequence[0], stored, where)[0]
    stated = functional_group(tags, frame, "PixelValueTransformationSequence") or tags
    slope = _number(stated, "RescaleSlope", where)
    intercept = _number(stated, "RescaleIntercept", where)
    return stored * (1.0 if slope is None else slope) + (intercept or 0.0)


def _apply_voi(tags: Any, frame: int, values: np.ndarray, where: str) -> tuple[np.ndarray | None, Range | None]:
    """(gray level in [0, 1] of each value, window), by the first VOI table or window of the header.

    The window is None for a table; both are None if the header states neither.
    """
    stated = functional_group(tags, frame, "FrameVOILUTSequence") or tags
    if stated.get("VOILUTSequence"):
        found, bits = _look_up(tags, stated.VOILUTSequence[0], values, where)
        return found / (2.0**bits - 1), None
    center, width = (_number(stated, keyword, where) for keyword in ("WindowCenter", "WindowWidth"))
    if center is None and width is None:
        return None, None
    function = str(stated.get("VOILUTFunction") or "LINEAR")
    least = {"LINEAR": 1.0, "LINEAR_EXACT": 0.0, "SIGMOID": 0.0}.get(function)
    if center is None or width is None or least is None or width < least or width == 0:
        raise image_error(where, f"the window (center {center}, width {width}) cannot be applied", "invalid_window")
    if function == "SIGMOID":
        shown = center - width / 2, center + width / 2
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))), shown
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    shown = center - width / 2, center + width / 2
    # a window of width 0 is a threshold
    return (values - center) / width + 0.5 if width else (values > center).astype(np.float64), shown


def _look_up(tags: Any, item: Any, values: np.ndarray, where: str) -> tuple[np.ndarray, int]:
    """(table entry of each value, bits per entry); values outside the table get its first or last entry."""
    stated, first, bits = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    n = stated or 2**16
    if isinstance(data, bytes):
        order = "<" if tags.original_encoding[1] else ">"
        table = np.frombuffer(data, "u1" if len(data) < 2 * n else f"{order}u2")
    else:
        table = np.atleast_1d(np.asarray(data))
    if len(table) < n or not 1 <= bits <= 16:
        wrong = f"a lookup table states {n} entries of {bits} bits and has {len(table)}"
        raise image_error(where, wrong, "invalid_lut")
    index = np.clip(np.floor(values - first), 0, n - 1).astype(np.int64)
    return table[index].astype(np.float64), bits


def _number(stated: Any, keyword: str, where: str) -> float | None:
    """The first value of a numeric attribute; None if absent."""
    value = stated.get(keyword)
    if value is None or value == "":
        return None
    number = float(value if isinstance(value, int | float | str) else value[0])
    if not math.isfinite(number):
        raise image_error(where, f"{keyword} is not a finite number", "invalid_window")
    return number
