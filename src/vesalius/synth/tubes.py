"""Tubes and their projections: the common geometry of images and masks. Lengths are in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

REFERENCE_SIZE = 512
"""Side of the frame in pixels for which all constants are given; they are scaled to the requested size."""

SAMPLE_STEP = 0.6
"""Distance between adjacent points of a centerline, in pixels."""

THINNEST_RADIUS = 0.75
"""Minimum radius in pixels. Above sqrt(2) / 2, each point has a pixel center within its radius: no vessel has gaps."""


@dataclass(frozen=True)
class Tube:
    """A vessel, catheter or wire: a centerline with a radius at each point."""

    points: Float[np.ndarray, "k 2"]
    """(x, y) in pixels, SAMPLE_STEP apart; (0, 0) is the outer corner of the first pixel."""
    radii: Float[np.ndarray, " k"]
    """Radius at each point in pixels."""


@dataclass(frozen=True)
class Shadow:
    """Projection of one tube: path lengths in its bounding box; the box of a tube outside the frame is empty."""

    rows: slice
    columns: slice
    chords: Float[np.ndarray, "h w"]
    """Path length through the tube in pixels, float32; > 0 exactly where a pixel center is inside the tube."""


NO_SHADOW = Shadow(slice(0, 0), slice(0, 0), np.zeros((0, 0), dtype=np.float32))


def cast(tube: Tube, size: int, filling: Float[np.ndarray, " k"] | None = None) -> Shadow:
    """The projection of one tube in a frame of `size` x `size` pixels.

    The path length is the maximum of 2 sqrt(r^2 - d^2) over spheres at the points of the tube. The weights `filling` in
    [0, 1] multiply it, for a partly filled lumen; spheres of weight 0 are left out.
    """
    near = ((tube.points > -tube.radii[:, None]) & (tube.points < size + tube.radii[:, None])).all(axis=1)
    if filling is not None:
        near &= filling > 0
    if not near.any():
        return NO_SHADOW
    points, radii = tube.points[near], tube.radii[near]
    reach = int(np.ceil(radii.max())) + 1
    left, top = np.floor(points.min(axis=0)).astype(int) - reach
    right, bottom = np.floor(points.max(axis=0)).astype(int) + reach + 1
    weights = None if filling is None else filling[near]
    box = _sphere_chords(points - (left, top), radii, (bottom - top, right - left), reach, weights)
    rows, columns = slice(max(0, top), min(size, bottom)), slice(max(0, left), min(size, right))
    own = box[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return Shadow(rows, columns, own)


def add_up(tubes: Sequence[Tube], shadows: Sequence[Shadow], size: int) -> Float[np.ndarray, "h w"]:
    """The sum of the path lengths of all tubes in one frame, float32.

    Near a tube's first point, the maximum with earlier tubes is taken instead of the sum: a branch joins its parent.
    """
    total = np.zeros((size, size), dtype=np.float32)
    for tube, shadow in zip(tubes, shadows, strict=True):
        own, before = shadow.chords, total[shadow.rows, shadow.columns]
        y, x = np.ogrid[shadow.rows, shadow.columns]
        (start_x, start_y), radius = tube.points[0] - 0.5, 4 * tube.radii[0] + 4
        joint = (x - start_x) ** 2 + (y - start_y) ** 2 < radius**2
        total[shadow.rows, shadow.columns] = np.where(joint, np.maximum(before, own), before + own)
    return total


def chords(tubes: Sequence[Tube], size: int) -> Float[np.ndarray, "h w"]:
    """The path lengths of completely filled tubes in one frame, float32; see `add_up`."""
    return add_up(tubes, [cast(tube, size) for tube in tubes], size)


def _sphere_chords(
    points: np.ndarray, radii: np.ndarray, shape: tuple[int, int], reach: int, weights: np.ndarray | None
) -> Float[np.ndarray, "h w"]:
    """Maximum path length through the spheres at each pixel center of their bounding box, float32."""
    box = np.zeros(shape[0] * shape[1], dtype=np.float32)
    offsets = np.arange(-reach, reach + 1)
    first = np.floor(points).astype(np.int64)
    away = (first + 0.5 - points).astype(np.float32)
    x2 = (away[:, :1] + offsets.astype(np.float32)) ** 2
    y2 = (away[:, 1:] + offsets.astype(np.float32)) ** 2
    half2 = (radii.astype(np.float32) ** 2)[:, None, None] - y2[:, :, None] - x2[:, None, :]
    flat = (first[:, 1, None, None] + offsets[:, None]) * shape[1] + first[:, 0, None, None] + offsets
    within = half2 > 0
    found = 2 * np.sqrt(half2[within])
    if weights is not None:
        found *= np.repeat(weights.astype(np.float32), within.sum(axis=(1, 2)))
    np.maximum.at(box, flat[within], found)
    return box.reshape(shape)


def resample(points: Float[np.ndarray, "n 2"]) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k 2"]]:
    """Points (x, y) about SAMPLE_STEP pixels apart along a line, preceded by their positions in [0, 1].

    A position is linear in the index of the given points, so that other values at these points can be interpolated.
    """
    reached = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    steps = np.linspace(0, reached[-1], max(4, int(reached[-1] / SAMPLE_STEP)))
    line = np.stack([np.interp(steps, reached, each) for each in points.T], axis=1)
    return np.interp(steps, reached, np.linspace(0, 1, len(points))), line


def wind(
    rng: np.random.Generator,
    points: Float[np.ndarray, "n 2"],
    bends: Sequence[tuple[tuple[float, float], float]],
    scale: float,
) -> Float[np.ndarray, "n 2"]:
    """The line with smooth lateral bends, given as (range of wavelengths, amplitude) in pixels.

    Wavelengths and amplitudes are multiplied by `scale`; short lines bend less.
    """
    along = np.diff(points, axis=0, prepend=2 * points[:1] - points[1:2])
    length = np.sqrt(along[:, 0] ** 2 + along[:, 1] ** 2)
    reached = np.cumsum(length) - length[0]
    positions = reached / reached[-1]
    aside = np.zeros(len(points))
    for span, strength in bends:
        periods = max(1.0, reached[-1] / (rng.uniform(*span) * scale))
        aside += strength * wave(rng, positions, periods) * (0.35 + 0.65 * np.abs(wave(rng, positions, 2)))
    aside *= scale * min(1.0, reached[-1] / (200 * scale)) * np.minimum(1, 1.6 * positions)
    normal = along[:, ::-1] * (-1, 1) / np.maximum(length, 1e-6)[:, None]
    return np.asarray(points + normal * aside[:, None])


def wave(rng: np.random.Generator, positions: np.ndarray, periods: float) -> Float[np.ndarray, " k"]:
    """A smooth random wave at `positions` in [0, 1], with about `periods` periods; values are about in [-1.5, 1.5]."""
    frequencies = periods * rng.uniform(0.4, 1.3, 3)
    phases, weights = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.3, 0.7, 3)
    return np.asarray(np.sin(np.outer(positions, 2 * np.pi * frequencies) + phases) @ weights)
