"""The orientation in the EXIF data of an image file."""

from __future__ import annotations

import struct

UPRIGHT = 1
"""EXIF orientation of an image that is not turned."""
SIDES_SWAPPED = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""
TAG = 0x0112

ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
ENTRY_BYTES = 12


def read_orientation(exif: bytes) -> int:
    """The orientation, 1 (upright) to 8; 1 if it is not stated or the data are damaged.

    Only the first directory is parsed, because Pillow's parser warns of damage elsewhere in the data.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = ORDERS.get(tiff[:4])
    if order is None:
        return UPRIGHT
    try:
        (start,) = struct.unpack_from(f"{order}L", tiff, 4)
        (n,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + n * ENTRY_BYTES, ENTRY_BYTES):
            tag, _, _, value = struct.unpack_from(f"{order}HHLH", tiff, entry)
            if tag == TAG:
                return valid_orientation(value)
    except struct.error:
        pass
    return UPRIGHT


def valid_orientation(value: object) -> int:
    """The value of the orientation tag, or 1 if it is none of 1 to 8."""
    return value if isinstance(value, int) and 1 <= value <= 8 else UPRIGHT
