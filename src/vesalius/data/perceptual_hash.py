"""Find exact and near-duplicate images by a pixel hash, a perceptual hash and a texture hash."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from vesalius.lineage import NEAR_BITS, hash_pixels, perceptual_hash

TEXTURE_SIDE = 20
TEXTURE_LEVEL = 7
"""Largest magnitude in a texture hash: its values have 4 bits, with which correlations are the same to 0.005."""

NEAR_TEXTURE = 0.85
"""Minimum correlation of the texture hashes of near duplicates. The perceptual hash alone confuses retinas: of 378
image pairs of CHASE_DB1, 37 differ in at most `NEAR_BITS` bits, but none of them correlates in texture by more than
0.75. The same image brightened by 20 %, cropped by 2 of 512 pixels, resized, with noise or at JPEG quality 50 keeps
0.89 or more."""

HASH_BITS = 256

BLOCK = (512, 8192)
"""Numbers of perceptual hashes (rows, columns) compared in one matrix product; 16 MB."""

CHUNK = 1 << 14
"""Number of pairs of texture hashes compared at once; 26 MB."""


@dataclass(frozen=True)
class ImageHashes:
    """Three hashes of one image."""

    pixel_hash: str
    """Hash by `lineage.hash_pixels`, equal for equal pixels only."""
    perceptual_hash: str
    """256 bits by `lineage.perceptual_hash`; small changes of the image flip only a few."""
    texture_hash: bytes
    """Bytes of int8 (20, 20), -7 to 7: fine texture, which differs between images of similar composition, such as two
    retinas."""


class KnownImages:
    """Finds near duplicates of known images, such as training images, of which only hashes are left."""

    def __init__(self, perceptual_hashes: Sequence[str], texture_hashes: Sequence[str] = ()) -> None:
        """Hashes of the same images in the same order; a texture hash by `encode_texture`, or "" where it is unknown.

        Without `texture_hashes` all are unknown. ValueError for a malformed hash and for lists of unequal length.
        """
        n = len(perceptual_hashes)
        if texture_hashes and len(texture_hashes) != n:
            raise ValueError(f"{n} perceptual hashes, but {len(texture_hashes)} texture hashes")
        self._bits = np.frombuffer(bytes.fromhex("".join(perceptual_hashes)), np.uint8).reshape(n, HASH_BITS // 8)
        self._texture = texture_hashes or [""] * n

    def __len__(self) -> int:
        return len(self._bits)

    def find(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Literal["near", "unconfirmed"] | None:
        """Whether the image is a near duplicate of a known image, by the test of `near_pairs`.

        "unconfirmed": its perceptual hash is similar to that of known images whose texture hash is unknown; different
        images of similar composition, such as retinas, often have similar perceptual hashes. None: no near duplicate.
        """
        own = np.frombuffer(bytes.fromhex(perceptual_hash(pixels)), np.uint8)
        near = np.flatnonzero(np.bitwise_count(self._bits ^ own).sum(axis=1) <= NEAR_BITS)
        known = [texture for i in near.tolist() if (texture := self._texture[i])]
        if known:
            table = np.array([np.frombuffer(each, np.int8) for each in (_texture_hash(pixels), *map(_decode, known))])
            others = np.arange(1, len(table))
            if (_correlation(table, np.zeros_like(others), others) >= NEAR_TEXTURE).any():
                return "near"
        return "unconfirmed" if len(known) < len(near) else None


def encode_texture(texture_hash: bytes) -> str:
    """A texture hash as text of 268 characters, for JSON: base64 of 4 bits a cell."""
    nibbles = (np.frombuffer(texture_hash, np.int8) + TEXTURE_LEVEL).astype(np.uint8)
    return base64.b64encode((nibbles[::2] << 4 | nibbles[1::2]).tobytes()).decode("ascii")


def _decode(text: str) -> bytes:
    """The texture hash of a text by `encode_texture`; ValueError if it is malformed."""
    try:
        pairs = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except binascii.Error as error:
        raise ValueError(f"a texture hash is no base64: {error}") from error
    if pairs.size * 2 != TEXTURE_SIDE**2:
        raise ValueError(f"a texture hash has {pairs.size * 2} values, not {TEXTURE_SIDE**2}")
    return (np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1).astype(np.int8) - TEXTURE_LEVEL).tobytes()


def hash_image(pixels: UInt8[np.ndarray, "h w 3"]) -> ImageHashes:
    """The pixel, perceptual and texture hash of an image."""
    return ImageHashes(hash_pixels(pixels), perceptual_hash(pixels), _texture_hash(pixels))


def near_pairs(
    hashes: Sequence[ImageHashes], wanted: Callable[[np.ndarray], np.ndarray] | None = None
) -> Iterator[Int64[np.ndarray, "2 p"]]:
    """Index pairs (i, j), i < j, of near-duplicate images, in arrays of up to `CHUNK` pairs.

    The perceptual hashes of a pair differ in at most `NEAR_BITS` bits, and its texture hashes correlate by at least
    `NEAR_TEXTURE`. Images with equal pixels are included. `wanted` maps candidate pairs (2, p) to bool (p,): only true
    pairs are compared by texture and returned.
    """
    if len(hashes) < 2:
        return
    texture = np.array([np.frombuffer(each.texture_hash, np.int8) for each in hashes])
    for near in _near_hashes([each.perceptual_hash for each in hashes]):
        pairs = near if wanted is None else near[:, wanted(near)]
        yield pairs[:, _correlation(texture, *pairs) >= NEAR_TEXTURE]


def _near_hashes(hashes: Sequence[str]) -> Iterator[np.ndarray]:
    """Index pairs of hashes that differ in at most `NEAR_BITS` bits; matrix products compare 10^8 pairs per second.

    With bits encoded as 1 and -1, the dot product of two hashes is 256 - 2 x (number of differing bits).
    """
    table = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(hashes), -1)
    least = HASH_BITS - 2 * NEAR_BITS
    for row in range(0, len(table), BLOCK[0]):
        block = _signs(table[row : row + BLOCK[0]])
        for column in range(row, len(table), BLOCK[1]):
            products = block @ _signs(table[column : column + BLOCK[1]]).T
            found = np.flatnonzero(products >= least)
            for begin in range(0, len(found), CHUNK):
                indices = np.divmod(found[begin : begin + CHUNK], products.shape[1])
                pairs = np.stack(indices) + np.array([[row], [column]])
                yield pairs[:, pairs[0] < pairs[1]]


def _signs(hashes: np.ndarray) -> np.ndarray:
    return np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1


def _correlation(texture: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlation of each pair of rows; 0 for images without any texture."""
    one, other = texture[first].astype(np.float32), texture[second].astype(np.float32)
    product = np.einsum("ij,ij->i", one, other)
    lengths = np.sqrt(np.einsum("ij,ij->i", one, one) * np.einsum("ij,ij->i", other, other))
    return product / np.maximum(lengths, 1)


def _texture_hash(pixels: np.ndarray) -> bytes:
    """Green channel at 20 x 20, each cell minus the mean of its 3 x 3 neighborhood, as int8 from -7 to 7.

    Retinas and stained tissue show most contrast in green. Values are clipped at twice the median magnitude, so that
    strong edges, such as the border of a round field of view, do not dominate.
    """
    side = TEXTURE_SIDE
    green = Image.fromarray(np.ascontiguousarray(pixels[:, :, 1]))
    small = green.resize((side, side), Image.Resampling.BOX)
    padded = np.pad(np.asarray(small, dtype=np.float32), 1, mode="edge")
    mean = sum(padded[y : y + side, x : x + side] for y in range(3) for x in range(3)) / 9
    detail = padded[1:-1, 1:-1] - mean
    strength = np.abs(detail[detail != 0])
    most = 2 * float(np.median(strength)) if len(strength) else 1.0
    return np.round(np.clip(detail / most, -1, 1) * TEXTURE_LEVEL).astype(np.int8).tobytes()
