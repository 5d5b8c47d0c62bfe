"""Spatial resampling of images and masks: an affine transform and an elastic deformation in one map."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from vesalius.masks import Size

BAND_PIXELS = 2**15
"""Output pixels processed at once, so that intermediate results stay in the CPU cache."""


@dataclass(frozen=True)
class Elastic:
    """An elastic deformation: a cubic B-spline displacement field over randomly displaced control points.

    No pixel is displaced further than the control points, along either axis.
    """

    rows: Float32[np.ndarray, "h k"]
    """Weight of each row of control points (k) for each row of pixels (h); each row sums to 1."""
    columns: Float32[np.ndarray, "2 k w"]
    """Displacement (x, y) of each row of control points (k), for each column of pixels (w)."""

    @classmethod
    def sample(cls, rng: np.random.Generator, size: Size, amplitude: float, extent: float) -> Self:
        """A random deformation: control points `extent` pixels apart, displaced by up to `amplitude` pixels per axis."""
        rows, columns = (_spline_weights(side, extent) for side in size)
        points = rng.uniform(-amplitude, amplitude, (2, rows.shape[1], columns.shape[1]))
        return cls(rows.astype(np.float32), (points @ columns.T).astype(np.float32))

    def displacement(self, first: int, last: int) -> Float32[np.ndarray, "2 r w"]:
        """Displacement (x, y) in pixels of the output rows `first` to `last` - 1."""
        return self.rows[first:last] @ self.columns


@dataclass(frozen=True)
class SamplingMap:
    """Map from each output pixel to its source point in the input."""

    size: Size
    inverse: Float64[np.ndarray, "3 3"]
    """Matrix from an output point (x, y, 1) to the input; applied after the elastic deformation."""
    elastic: Elastic | None = None

    def resample(
        self, channels: UInt8[np.ndarray, "p h w"], masks: Bool[np.ndarray, "m h w"]
    ) -> tuple[UInt8[np.ndarray, "p h w"], Bool[np.ndarray, "m h w"]]:
        """Pixels and masks after bilinear resampling.

        Edge pixels are repeated outside the input. A mask is true where the value interpolated from the four pixels
        around the source point is at least 0.5, and False outside the input.
        """
        moved, moved_masks = np.empty_like(channels, order="C"), np.zeros_like(masks, order="C")
        pairs = [(_Corners(channel), target) for channel, target in zip(channels, moved, strict=True)]
        mask_pairs = [
            (_MaskCorners(mask), target) for mask, target in zip(masks, moved_masks, strict=True) if mask.any()
        ]
        for rows, x, y in self._bands():
            at, across, down, inside = self._corner(x, y)
            for source, target in pairs:
                # assignment truncates, so adding half a level rounds
                target[rows] = source.between(at, across, down) + np.float32(0.5)
            for mask, target in mask_pairs:
                near = np.flatnonzero(mask.touched.take(at) & inside)
                coverage = mask.between(at.take(near), across.take(near), down.take(near))
                target[rows].reshape(-1)[near] = coverage >= 0.5
        return moved, moved_masks

    def _bands(self) -> Iterator[tuple[slice, Float32[np.ndarray, "r w"], Float32[np.ndarray, "r w"]]]:
        """(slice of output rows, x, y of their source points); (0, 0) is the center of the first input pixel."""
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
        Int64[np.ndarray, "r w"], Float32[np.ndarray, "r w"], Float32[np.ndarray, "r w"], Bool[np.ndarray, "r w"]
    ]:
        """(flat index of the upper left neighbor of each source point, offsets in x and y, true if inside)."""
        height, width = self.size
        inside = (np.abs(x - (width - 1) / 2) <= width / 2) & (np.abs(y - (height - 1) / 2) <= height / 2)
        x, y = x.clip(0, width - 1), y.clip(0, height - 1)
        left, top = np.floor(x), np.floor(y)
        # rows of `_Corners` are one pixel longer than those of the image
        return top.astype(np.int64) * (width + 1) + left.astype(np.int64), x - left, y - top, inside


class _Corners:
    """A channel padded by its last row and column, so that each pixel has a right and a lower neighbor."""

    def __init__(self, channel: np.ndarray) -> None:
        wide = np.pad(channel, ((0, 1), (0, 1)), mode="edge")
        self._row = wide.shape[1]
        self._pixels = wide.ravel()

    def between(
        self, at: Int64[np.ndarray, ...], across: Float32[np.ndarray, ...], down: Float32[np.ndarray, ...]
    ) -> Float32[np.ndarray, ...]:
        """Bilinear interpolation between each pixel `at` and its right, lower and lower right neighbors."""
        upper, lower = (self._along(at + start, across) for start in (0, self._row))
        return upper + (lower - upper) * down

    def _along(self, at: np.ndarray, across: np.ndarray) -> np.ndarray:
        left = self._pixels.take(at).astype(np.float32)
        right = self._pixels.take(at + 1).astype(np.float32)
        return left + (right - left) * across


class _MaskCorners(_Corners):
    """A mask with a flag for each 2 x 2 neighborhood that contains a true pixel; only these are interpolated."""

    def __init__(self, mask: np.ndarray) -> None:
        super().__init__(mask)
        wide = self._pixels.reshape(-1, self._row)
        below = wide[:-1] | wide[1:]
        self.touched = np.pad(below[:, :-1] | below[:, 1:], ((0, 1), (0, 1))).ravel()


def _spline_weights(side: int, extent: float) -> Float64[np.ndarray, "s k"]:
    """Uniform cubic B-spline weights of control points `extent` apart, for each pixel center along one axis.

    Example for side 1, extent 1: the pixel lies halfway between two points, so its weights are (1, 23, 23, 1) / 48.
    """
    position = (np.arange(side) + 0.5) / extent
    first = position.astype(np.int64)
    t = position - first
    basis = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    weights = np.zeros((side, math.floor(position[-1]) + 4))
    for offset, values in enumerate(basis):
        weights[np.arange(side), first + offset] = values / 6
    return weights
