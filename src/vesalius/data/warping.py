"""Where the pixels of a changed image come from, an affine map and a smooth bending, and taking them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from vesalius.masks import Size

BAND_PIXELS = 2**15
"""Of the result that are worked on at once: what is computed for them stays in a processor's cache."""


@dataclass(frozen=True)
class Elastic:
    """A displacement for each pixel: a cubic B-spline surface over points that were moved at random.

    No pixel moves further than the points do, along either axis.
    """

    rows: Float32[np.ndarray, "h k"]
    """How much each row of points moves each row of pixels; sums to 1."""
    columns: Float32[np.ndarray, "2 k w"]
    """Displacement (x, y) of each row of points, for each column of pixels."""

    @classmethod
    def drawn(cls, rng: np.random.Generator, size: Size, amplitude: float, extent: float) -> Self:
        """Points `extent` pixels apart, each moved by up to `amplitude` pixels along either axis."""
        rows, columns = (_spline_weights(side, extent) for side in size)
        points = rng.uniform(-amplitude, amplitude, (2, rows.shape[1], columns.shape[1]))
        return cls(rows.astype(np.float32), (points @ columns.T).astype(np.float32))

    def displacement(self, first: int, last: int) -> Float32[np.ndarray, "2 r w"]:
        """(x, y) pixels, of the rows from `first` to before `last`."""
        return self.rows[first:last] @ self.columns


@dataclass(frozen=True)
class PlaceMap:
    """For each pixel of the result the place of the original that is shown there."""

    size: Size
    inverse: Float64[np.ndarray, "3 3"]
    """A point (x, y, 1) of the result to the original; applied after the bending."""
    elastic: Elastic | None = None

    def move(
        self, planes: UInt8[np.ndarray, "p h w"], masks: Bool[np.ndarray, "m h w"]
    ) -> tuple[UInt8[np.ndarray, "p h w"], Bool[np.ndarray, "m h w"]]:
        """Pixels and masks resampled bilinearly.

        Beyond the border pixels continue with those of the edge. A mask is true where the four pixels around
        the place cover at least half, and False beyond the border.
        """
        moved, moved_masks = np.empty_like(planes, order="C"), np.zeros_like(masks, order="C")
        pairs = [(_Corners(plane), target) for plane, target in zip(planes, moved, strict=True)]
        mask_pairs = [
            (_MaskCorners(mask), target)
            for mask, target in zip(masks, moved_masks, strict=True)
            if mask.any()
        ]
        for rows, x, y in self._bands():
            at, across, down, inside = self._corner(x, y)
            for source, target in pairs:
                # half a level, and the rest is cut off: this rounds
                target[rows] = source.between(at, across, down) + np.float32(0.5)
            for mask, target in mask_pairs:
                near = np.flatnonzero(mask.touched.take(at) & inside)
                share = mask.between(at.take(near), across.take(near), down.take(near))
                target[rows].reshape(-1)[near] = share >= 0.5
        return moved, moved_masks

    def _bands(
        self,
    ) -> Iterator[tuple[slice, Float32[np.ndarray, "r w"], Float32[np.ndarray, "r w"]]]:
        """(rows of the result, x, y): places in the original; (0, 0) is the center of its first pixel."""
        height, width = self.size
        step = max(1, BAND_PIXELS // width)
        (xx, xy, x0), (yx, yy, y0) = self.inverse[:2]
        for first in range(0, height, step):
            last = min(first + step, height)
            column, row = np.arange(width) + 0.5, np.arange(first, last)[:, None] + 0.5
            x = (xx * column + (xy * row + x0 - 0.5)).astype(np.float32)
            y = (yx * column + (yy * row + y0 - 0.5)).astype(np.float32)
            if self.elastic is not None:
                by_x, by_y = self.elastic.displacement(first, last)
                x += np.float32(xx) * by_x + np.float32(xy) * by_y
                y += np.float32(yx) * by_x + np.float32(yy) * by_y
            yield slice(first, last), x, y

    def _corner(
        self, x: Float32[np.ndarray, "r w"], y: Float32[np.ndarray, "r w"]
    ) -> tuple[
        Int64[np.ndarray, "r w"],
        Float32[np.ndarray, "r w"],
        Float32[np.ndarray, "r w"],
        Bool[np.ndarray, "r w"],
    ]:
        """(number of the pixel up and left of each place, how far right and below, inside the image)."""
        height, width = self.size
        inside = (np.abs(x - (width - 1) / 2) <= width / 2) & (np.abs(y - (height - 1) / 2) <= height / 2)
        x, y = x.clip(0, width - 1), y.clip(0, height - 1)
        left, top = np.floor(x), np.floor(y)
        # a row of `_Corners` is a pixel longer
        return top.astype(np.int64) * (width + 1) + left.astype(np.int64), x - left, y - top, inside


class _Corners:
    """A plane with its last row and column repeated: each pixel has one to the right and one below."""

    def __init__(self, plane: np.ndarray) -> None:
        wide = np.pad(plane, ((0, 1), (0, 1)), mode="edge")
        self._row = wide.shape[1]
        self._pixels = wide.ravel()

    def between(
        self, at: Int64[np.ndarray, ...], across: Float32[np.ndarray, ...], down: Float32[np.ndarray, ...]
    ) -> Float32[np.ndarray, ...]:
        """Bilinear value between the pixel `at`, and those to its right and below."""
        upper, lower = (self._along(at + start, across) for start in (0, self._row))
        return upper + (lower - upper) * down

    def _along(self, at: np.ndarray, across: np.ndarray) -> np.ndarray:
        left = self._pixels.take(at).astype(np.float32)
        right = self._pixels.take(at + 1).astype(np.float32)
        return left + (right - left) * across


class _MaskCorners(_Corners):
    """A mask, and which pixels have a true one among the four; few do, and the rest need not be computed."""

    def __init__(self, mask: np.ndarray) -> None:
        super().__init__(mask)
        wide = self._pixels.reshape(-1, self._row)
        below = wide[:-1] | wide[1:]
        self.touched = np.pad(below[:, :-1] | below[:, 1:], ((0, 1), (0, 1))).ravel()


def _spline_weights(side: int, extent: float) -> Float64[np.ndarray, "s k"]:
    """Weights of points `extent` apart for each pixel center of a side, by the uniform cubic B-spline.

    Worked case side 1, extent 1: the pixel lies half way between two points; (1, 23, 23, 1) / 48.
    """
    place = (np.arange(side) + 0.5) / extent
    first = place.astype(np.int64)
    t = place - first
    parts = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    weights = np.zeros((side, math.floor(place[-1]) + 4))
    for offset, part in enumerate(parts):
        weights[np.arange(side), first + offset] = part / 6
    return weights
