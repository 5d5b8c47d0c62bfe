"""Which images are the same, exactly or nearly: hashes, and a closer look where hashes are near."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from vesalius.lineage import NEAR_BITS, hash_look, hash_pixels

GRAIN_SIDE = 20

NEAR_GRAIN = 0.85
"""Least correlation of the grain of two images that look alike. The look alone takes retinas for one another: of 378
pairs of CHASE_DB1, 37 differ in at most `NEAR_BITS`, and the grain of none of these correlates by more than 0.75. The same
image brightened by a fifth, cut by 2 of 512 pixels, resized, with noise or at JPEG quality 50 keeps 0.89 or more."""

LOOK_BITS = 256

BLOCK = (512, 8192)
"""Looks that are compared with one another at once; 16 MB."""

CHUNK = 1 << 14
"""Pairs whose grain is compared at once; 26 MB."""


@dataclass(frozen=True)
class Likeness:
    """What an image is known again by."""

    pixels: str
    """`lineage.hash_pixels`."""
    look: str
    """`lineage.hash_look`."""
    grain: bytes
    """int8 (20, 20): what tells apart images of the same broad look, such as two retinas."""


def likeness_of(pixels: UInt8[np.ndarray, "h w 3"]) -> Likeness:
    """The likeness of an image."""
    return Likeness(hash_pixels(pixels), hash_look(pixels), _grain_of(pixels))


def near_pairs(
    likenesses: Sequence[Likeness], wanted: Callable[[np.ndarray], np.ndarray] | None = None
) -> Iterator[Int64[np.ndarray, "2 p"]]:
    """Pairs of places, the first before the second, of images that look nearly alike, some at a time.

    Their looks differ in at most `NEAR_BITS`, and their grain correlates by at least `NEAR_GRAIN`. Pairs with the same
    pixels are among them. `wanted` says of some pairs (2, p) which are worth the closer look, bool (p,).
    """
    if len(likenesses) < 2:
        return
    grain = np.array([np.frombuffer(each.grain, np.int8) for each in likenesses])
    for near in _near_looks([each.look for each in likenesses]):
        pairs = near if wanted is None else near[:, wanted(near)]
        yield pairs[:, _correlation(grain, *pairs) >= NEAR_GRAIN]


def _near_looks(looks: Sequence[str]) -> Iterator[np.ndarray]:
    """Bits written as 1 and -1 have the product 256 - 2 x (bits that differ), which BLAS finds for 10^8 pairs a second."""
    table = np.frombuffer(bytes.fromhex("".join(looks)), np.uint8).reshape(len(looks), -1)
    least = LOOK_BITS - 2 * NEAR_BITS
    for row in range(0, len(table), BLOCK[0]):
        here = _signs(table[row : row + BLOCK[0]])
        for column in range(row, len(table), BLOCK[1]):
            products = here @ _signs(table[column : column + BLOCK[1]]).T
            found = np.flatnonzero(products >= least)
            for begin in range(0, len(found), CHUNK):
                places = np.divmod(found[begin : begin + CHUNK], products.shape[1])
                pairs = np.stack(places) + np.array([[row], [column]])
                yield pairs[:, pairs[0] < pairs[1]]


def _signs(looks: np.ndarray) -> np.ndarray:
    return np.unpackbits(looks, axis=1).astype(np.float32) * 2 - 1


def _correlation(grain: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """For each pair of places; 0 for images without any grain, which are like none."""
    one, other = grain[first].astype(np.float32), grain[second].astype(np.float32)
    product = np.einsum("ij,ij->i", one, other)
    lengths = np.sqrt(np.einsum("ij,ij->i", one, one) * np.einsum("ij,ij->i", other, other))
    return product / np.maximum(lengths, 1)


def _grain_of(pixels: np.ndarray) -> bytes:
    """The green channel, in which retinas and stained tissue show most, at 20 x 20, each cell less the mean of the 3 x 3
    around it; strong edges, such as that of a round field of view, are clipped at twice the median.
    """
    side = GRAIN_SIDE
    green = Image.fromarray(np.ascontiguousarray(pixels[:, :, 1]))
    small = green.resize((side, side), Image.Resampling.BOX)
    padded = np.pad(np.asarray(small, dtype=np.float32), 1, mode="edge")
    around = sum(padded[y : y + side, x : x + side] for y in range(3) for x in range(3)) / 9
    detail = padded[1:-1, 1:-1] - around
    strength = np.abs(detail[detail != 0])
    most = 2 * float(np.median(strength)) if len(strength) else 1.0
    return np.round(np.clip(detail / most, -1, 1) * 127).astype(np.int8).tobytes()
