"""Decode brush strokes of Label Studio: a run-length encoded bit stream of the RGBA bytes of an image, row by row.

The most significant bit of each byte comes first. The header states the number of values (32 bits), the bits per value
minus 1 (5 bits), and four widths of length fields, each minus 1 (4 bits each). A run has 1 bit for its type, 2 bits that
select one of the four widths, and its length minus 1 in a field of this width. Type 1 is followed by one value, repeated
`length` times; type 0 is followed by `length` values. The alpha byte of a painted pixel is not 0.
Source: brush.py in the package label-studio-converter, which describes rle-pack of thi.ng/umbrella.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool

from vesalius.masks import Size
from vesalius.types import Location

CHANNELS = 4
VALUE_BITS = 8


def decode_brush(values: Any, size: Size, where: Location) -> Bool[np.ndarray, "h w"]:
    """Mask of the painted pixels of an image of `size`, decoded from a list of bytes.

    Raises AnnotationError unless the runs fill the image exactly.
    """
    try:
        return _decode(_Bits(values), size)
    except ValueError as error:
        raise where.inside("value.rle").error(f"the brush {error}", "invalid_rle", "export it again") from error


class _Bits:
    """Bit stream over a list of bytes; ValueError for anything else."""

    def __init__(self, values: Any) -> None:
        if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 256 for value in values):
            raise ValueError("must be a list of bytes, whole numbers from 0 to 255")
        self.data = bytes(values)
        self.offset = 0

    def read(self, n: int) -> int:
        """The next n bits (at most 57) as a number."""
        end = self.offset + n
        if end > 8 * len(self.data):
            raise ValueError("ends before the image does")
        word = int.from_bytes(self.data[self.offset // 8 : (end + 7) // 8], "big")
        self.offset = end
        return word >> -end % 8 & (1 << n) - 1

    def read_bytes(self, n: int) -> np.ndarray:
        """The next n bytes, which may start at any bit."""
        end = self.offset + 8 * n
        if end > 8 * len(self.data):
            raise ValueError("ends before the image does")
        first, shift = divmod(self.offset, 8)
        block = np.frombuffer(self.data, dtype=np.uint8, count=(end + 7) // 8 - first, offset=first)
        self.offset = end
        if not shift:
            return block
        return block[:-1] << shift | block[1:] >> 8 - shift


def _decode(bits: _Bits, size: Size) -> Bool[np.ndarray, "h w"]:
    """True where alpha is not 0; only the alpha values are kept, so an image takes one byte per pixel."""
    n = bits.read(32)
    if n != CHANNELS * size[0] * size[1]:
        raise ValueError(f"has {n} values, but an image of {size[0]} x {size[1]} (h x w) needs four per pixel")
    if bits.read(5) + 1 != VALUE_BITS:
        raise ValueError("has values that are not 8 bits wide")
    length_bits = [bits.read(4) + 1 for _ in range(4)]
    alpha = np.zeros(size[0] * size[1], dtype=bool)
    i = 0
    while i < n:
        repeats = bits.read(1)
        j = i + 1 + bits.read(length_bits[bits.read(2)])
        if j > n:
            raise ValueError("has runs beyond the end of the image")
        # values 3, 7, 11 and so on are alpha: the run from value i to j covers the pixels from i // 4 to before j // 4
        if repeats:
            alpha[i // CHANNELS : j // CHANNELS] = bits.read(VALUE_BITS) != 0
        else:
            alpha[i // CHANNELS : j // CHANNELS] = bits.read_bytes(j - i)[3 - i % CHANNELS :: CHANNELS] != 0
        i = j
    return alpha.reshape(size)
