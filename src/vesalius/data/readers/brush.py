"""Strokes of Label Studio's brush: a run-length encoding of bits over the RGBA bytes of an image, in rows.

A stream of bits, the highest of each byte first: 32 bits for how many values follow, 5 for the bits of a value less 1,
four times 4 for the bits of a length less 1; then runs. A run is 1 bit, 2 bits that pick one of the four lengths, and
the length less 1; after a 1 comes one value that is repeated so often, after a 0 as many values. The alpha byte of a
pixel that was painted is not 0. Source: the description in the package label-studio-converter, brush.py, of the
encoding that the package rle-pack of thi.ng/umbrella defines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool

from vesalius.errors import AnnotationError
from vesalius.masks import Size

CHANNELS = 4
VALUE_BITS = 8


def decode_brush(values: Any, size: Size, place: str) -> Bool[np.ndarray, "h w"]:
    """What was painted on an image of `size`, from a list of bytes.

    AnnotationError, beginning with `place`, unless the runs fill the image exactly.
    """
    try:
        return _decode(_Bits(values), size)
    except ValueError as error:
        raise AnnotationError(
            f"{place}: the rle of the brush {error}; export it again", code="invalid_rle"
        ) from error


class _Bits:
    """A list of bytes as a stream of bits."""

    def __init__(self, values: Any) -> None:
        if not isinstance(values, list) or not all(
            type(value) is int and 0 <= value < 256 for value in values
        ):
            raise ValueError("must be a list of bytes, whole numbers from 0 to 255")
        self.data = bytes(values)
        self.place = 0

    def read(self, n: int) -> int:
        """The next n bits, at most 57, as a number."""
        end = self.place + n
        if end > 8 * len(self.data):
            raise ValueError("ends before the image does")
        word = int.from_bytes(self.data[self.place // 8 : (end + 7) // 8], "big")
        self.place = end
        return word >> -end % 8 & (1 << n) - 1

    def read_bytes(self, n: int) -> np.ndarray:
        """The next n bytes, wherever they begin."""
        end = self.place + 8 * n
        if end > 8 * len(self.data):
            raise ValueError("ends before the image does")
        first, shift = divmod(self.place, 8)
        block = np.frombuffer(self.data, dtype=np.uint8, count=(end + 7) // 8 - first, offset=first)
        self.place = end
        if not shift:
            return block
        return block[:-1] << shift | block[1:] >> 8 - shift


def _decode(bits: _Bits, size: Size) -> Bool[np.ndarray, "h w"]:
    """Only every fourth value is kept, so an image takes a byte a pixel."""
    n = bits.read(32)
    if n != CHANNELS * size[0] * size[1]:
        raise ValueError(f"is of {n} values, and an image of {size[0]} x {size[1]} (h x w) has four a pixel")
    if bits.read(5) + 1 != VALUE_BITS:
        raise ValueError("has values that are not of 8 bits")
    length_bits = [bits.read(4) + 1 for _ in range(4)]
    alpha = np.zeros(size[0] * size[1], dtype=bool)
    i = 0
    while i < n:
        repeats = bits.read(1)
        j = i + 1 + bits.read(length_bits[bits.read(2)])
        if j > n:
            raise ValueError("has runs beyond the end of the image")
        # values 3, 7, 11 and so on are alpha: of those from i to j, i // 4 is the first pixel and j // 4 the one after
        if repeats:
            alpha[i // CHANNELS : j // CHANNELS] = bits.read(VALUE_BITS) != 0
        else:
            alpha[i // CHANNELS : j // CHANNELS] = bits.read_bytes(j - i)[3 - i % CHANNELS :: CHANNELS] != 0
        i = j
    return alpha.reshape(size)
