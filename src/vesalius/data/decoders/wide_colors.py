"""Read 16-bit colors of PNG and TIFF files, which Pillow opens as 8-bit colors without the low bytes.

Pillow takes the high byte of each value. If the file is decoded once more with the opposite byte order, Pillow takes
the low byte, so the two passes together give all 16 bits, whatever the compression.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt16
from PIL import Image

LITTLE, BIG = "L", "B"
OPPOSITE = {LITTLE: BIG, BIG: LITTLE, "N": BIG if sys.byteorder == "little" else LITTLE}
GRAY_ALPHA = "LA;16B"
"""Raw mode of gray with alpha in PNG, four bytes a pixel."""


def raw_mode(image: Image.Image) -> str:
    """Pillow's name of the values in the file, such as `RGB;16B`, before the image is loaded; "" if unknown."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0].args
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def is_wide(image: Image.Image) -> bool:
    """True if the colors of an image that is not yet loaded have 16 bits, of which Pillow drops 8."""
    if image.mode.startswith("I"):
        return False
    if image.format == "PPM":  # the second argument is the highest value
        return any(isinstance(each, int) and each > 255 for tile in image.tile for each in tile.args)  # type: ignore[attr-defined]
    return ";16" in raw_mode(image)


def read_wide(open_image: Callable[[], Image.Image]) -> tuple[UInt16[np.ndarray, "h w c"], bytes] | None:
    """The 16-bit channels, RGB or RGBA or gray with alpha, and the EXIF data; None for other color models.

    `open_image` opens the file at the frame to read, without loading it.
    """
    with open_image() as image:
        high = raw_mode(image)
        if high == GRAY_ALPHA:
            four = _load(image, "RGBA").astype(np.uint16)
            return four[:, :, ::2] << 8 | four[:, :, 1::2], image.info.get("exif", b"")
        model, _, order = high.partition(";16")
        if model not in ("RGB", "RGBA") or order not in OPPOSITE:
            return None
        highs = _load(image, high)
        exif = image.info.get("exif", b"")
    with open_image() as image:
        lows = _load(image, f"{model};16{OPPOSITE[order]}")
    return highs.astype(np.uint16) << 8 | lows, exif


def _load(image: Image.Image, raw: str) -> np.ndarray:
    image.tile = [tile._replace(args=_with_raw_mode(tile.args, raw)) for tile in image.tile]  # type: ignore[attr-defined]
    return np.asarray(image)


def _with_raw_mode(arguments: Any, raw: str) -> Any:
    return (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw
