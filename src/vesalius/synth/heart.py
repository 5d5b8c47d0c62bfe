"""Random coronary trees, projected by a C-arm at a random angle.

Centerlines lie on an ellipsoid (the heart) in coordinates (longitude, latitude) in degrees. Lengths are given for a
frame of 512 x 512 pixels and scaled to the requested size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from vesalius.synth.tubes import REFERENCE_SIZE, resample, wind
from vesalius.synth.vessels import Vessel, caliber, choose_origins, fork, murray_ratio, narrow

N_CONTROL = 160
"""Number of centerline points before resampling."""

# radius of a branch at its origin, in pixels of a frame of 512 x 512; real annotations omit thinner branches
THINNEST_ANNOTATED = 2.0

HEART_MM = 46.0
"""Short radius of the heart; with it, the left main has a diameter of about 4 to 5 mm."""

# waypoints (longitude, latitude) in degrees: longitude 0 is the front, 90 the patient's left; latitude -90 is the apex
LEFT_MAIN = ((-8, 66), (6, 54), (14, 46))
LAD = ((14, 46), (6, 20), (0, -15), (4, -48), (18, -72))
LCX = ((14, 46), (42, 38), (78, 26), (112, 16), (134, -8))
RCA = ((-16, 64), (-38, 46), (-76, 30), (-122, 20), (-168, 20))
PDA = ((-168, 20), (-180, 2), (-186, -40))
PLB = ((-168, 20), (-194, 18), (-216, -6), (-222, -26))


@dataclass(frozen=True)
class Projection:
    """Parallel projection of the heart onto the frame: rotation, scale and translation."""

    rotation: Rotation
    heart_px: float
    """Short radius of the heart in pixels."""
    origin: Float[np.ndarray, " 2"]
    """(x, y) of the heart's center in pixels."""
    size: int
    """Side of the frame in pixels."""

    @property
    def scale(self) -> float:
        """Side of the frame relative to 512 pixels."""
        return self.size / REFERENCE_SIZE

    @property
    def spacing_mm(self) -> float:
        """Pixel spacing in mm, at the heart, rounded to 0.1 micrometer."""
        return round(HEART_MM / self.heart_px, 4)

    def project(self, centerline: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "k 2"]:
        """(x, y) in pixels for each point (longitude, latitude) in degrees."""
        longitude, latitude = np.radians(centerline).T
        ring = np.cos(latitude)
        left, front, up = ring * np.sin(longitude), ring * np.cos(longitude), 1.25 * np.sin(latitude)
        left, front, up = self.rotation.apply(np.stack([left, front, up], axis=1)).T
        return np.stack([left, -up], axis=1) * self.heart_px + self.origin


@dataclass(frozen=True)
class Tree:
    """The coronary tree of one image."""

    vessels: tuple[Vessel, ...]
    """Annotated vessels. The first begins at the ostium; parents precede their branches."""
    twigs: tuple[Vessel, ...]
    """Vessels that are too thin to be annotated."""
    projection: Projection


def grow_tree(rng: np.random.Generator, size: int) -> Tree:
    """A random right or left coronary tree in a frame of `size` x `size` pixels."""
    right = rng.random() < 0.45
    projection = _choose_projection(rng, right, size)
    found = _grow_right(rng, projection) if right else _grow_left(rng, projection)
    return Tree(
        tuple(vessel for vessel in found if vessel.kind != "twig"),
        tuple(vessel for vessel in found if vessel.kind == "twig"),
        projection,
    )


def _grow_right(rng: np.random.Generator, projection: Projection) -> list[Vessel]:
    """The right coronary artery, its marginal branches, and usually the two terminal branches."""
    trunk = _grow(rng, projection, RCA, rng.uniform(4.4, 8.4) * projection.scale, 0.88)
    trunk, sides = _sprout(rng, projection, trunk, int(rng.integers(1, 5)), (20, 55), (-75, -30), (0.3, 0.65))
    ratio, end = rng.uniform(0.6, 0.8), trunk.reference_radius[-1]
    vessels = [trunk, *sides]
    if rng.random() < 0.85:
        pda = _grow(rng, projection, PDA, end * ratio, 0.6, trunk)
        vessels += _with_twigs(rng, projection, pda)
    if rng.random() < 0.8:
        plb = _grow(rng, projection, PLB, end * murray_ratio(ratio), 0.55, trunk)
        vessels += _with_twigs(rng, projection, plb)
    return vessels


def _grow_left(rng: np.random.Generator, projection: Projection) -> list[Vessel]:
    """The left main, LAD and LCX, and their diagonal and marginal branches."""
    trunk = _grow(rng, projection, LEFT_MAIN, rng.uniform(5.5, 10.5) * projection.scale, 0.97)
    trunk, *twigs = _with_twigs(rng, projection, trunk)
    ratio, end = rng.uniform(0.72, 0.86), trunk.reference_radius[-1]
    lad = _grow(rng, projection, LAD, end * ratio, 0.62, trunk)
    lcx = _grow(rng, projection, LCX, end * murray_ratio(ratio), 0.62, trunk)
    lad, sides = _sprout(rng, projection, lad, int(rng.integers(2, 7)), (18, 55), (-75, -35), (0.35, 0.75))
    lcx, others = _sprout(rng, projection, lcx, int(rng.integers(1, 5)), (-12, 25), (-70, -30), (0.35, 0.75))
    return [trunk, lad, lcx, *sides, *others, *twigs]


def _choose_projection(rng: np.random.Generator, right: bool, size: int) -> Projection:
    """A usual C-arm angle that roughly centers the tree, with its ostium inside the frame."""
    tilt = Rotation.from_euler("yx", [rng.uniform(-55, -35), rng.uniform(20, 45)], degrees=True)
    around = rng.uniform(10, 60) if right and rng.random() < 0.75 else rng.uniform(-45, 60)
    arm = Rotation.from_euler("zxy", [around, rng.uniform(-32, 32), rng.uniform(-12, 12)], degrees=True)
    projection = Projection(arm * tilt, rng.uniform(0.29, 0.44) * size, np.zeros(2), size)
    centerlines = (RCA, PDA) if right else (LEFT_MAIN, LAD, LCX)
    points = projection.project(np.concatenate([np.array(centerline, dtype=float) for centerline in centerlines]))
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    origin = size * rng.uniform(0.42, 0.58, 2) - middle
    ostium = points[0] + origin
    return replace(projection, origin=origin + np.clip(ostium, 0.12 * size, 0.88 * size) - ostium)


def _grow(
    rng: np.random.Generator,
    projection: Projection,
    waypoints: Sequence[Sequence[float]] | np.ndarray,
    radius: float,
    taper: float,
    parent: Vessel | None = None,
    start: int = -1,
) -> Vessel:
    """A tortuous vessel through jittered waypoints that tapers from `radius` pixels to about `taper * radius`.

    With a `parent`, it begins at the parent's point number `start`.
    """
    waypoints = np.array(waypoints, dtype=float)
    waypoints[1:] += rng.normal(0, 5, waypoints[1:].shape)
    if parent is not None and parent.centerline is not None:
        waypoints[0] = parent.centerline[start]
    centerline = _smooth(waypoints)
    bends = (((35, 120), 14 * rng.uniform(0.3, 1) ** 2), ((18, 50), 3.5 * rng.uniform() ** 2))
    points = wind(rng, projection.project(centerline), bends, projection.scale)
    if parent is not None:
        points = points + (parent.points[start] - points[0])
        start %= len(parent.points)
    positions, points = resample(points)
    centerline = np.stack([np.interp(positions, np.linspace(0, 1, N_CONTROL), each) for each in centerline.T], axis=1)
    reference_radius = caliber(rng, positions, radius, taper)
    return Vessel(points, reference_radius, narrow(rng, positions), parent, max(start, 0), centerline)


def _smooth(waypoints: Float[np.ndarray, "w 2"]) -> Float[np.ndarray, "n 2"]:
    """N_CONTROL points of a cubic Hermite spline through the waypoints, with central-difference slopes."""
    knots = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(waypoints, axis=0).T))])
    slopes = np.gradient(waypoints, knots, axis=0)
    at = np.linspace(0, knots[-1], N_CONTROL)
    part = np.clip(np.searchsorted(knots, at, "right") - 1, 0, len(knots) - 2)
    span = (knots[part + 1] - knots[part])[:, None]
    u = (at - knots[part])[:, None] / span
    v = 1 - u
    ends = (1 + 2 * u) * v**2 * waypoints[part] + (1 + 2 * v) * u**2 * waypoints[part + 1]
    return np.asarray(ends + span * u * v * (v * slopes[part] - u * slopes[part + 1]))


def _sprout(
    rng: np.random.Generator,
    projection: Projection,
    vessel: Vessel,
    n: int,
    turn_deg: tuple[float, float],
    drop_deg: tuple[float, float],
    ratios: tuple[float, float],
) -> tuple[Vessel, list[Vessel]]:
    """The vessel, thinner after each bifurcation, and its `n` side branches with all descendants and twigs.

    A side branch ends up to `turn_deg` of longitude and `drop_deg` of latitude from its origin; `ratios` is the range of
    its initial radius relative to the vessel's radius at the origin.
    """
    n_twigs = int(rng.integers(2, 9))
    origins = choose_origins(rng, vessel, n + n_twigs, (0.12, 0.8))
    is_side = rng.permutation(np.arange(len(origins)) < n)
    sides = iter(is_side)
    thickest_twig = 1.5 * projection.scale + 0.3

    def choose_ratio(radius: float) -> float:
        if next(sides):
            return rng.uniform(*ratios)
        return min(rng.uniform(0.15, 0.45), thickest_twig / radius)

    vessel, radii = fork(vessel, origins, choose_ratio)
    branches: list[Vessel] = []
    for origin, side, radius in zip(origins, is_side, radii, strict=True):
        turn, drop = (turn_deg, drop_deg) if side else ((-50.0, 55.0), (-50.0, 8.0))
        waypoints = _choose_waypoints(rng, vessel, origin, turn, drop)
        branch = _grow(rng, projection, waypoints, radius, 0.5, vessel, origin)
        branches += _with_twigs(rng, projection, branch) if side else [_as_twig(branch)]
    return vessel, branches


def _with_twigs(rng: np.random.Generator, projection: Projection, vessel: Vessel) -> list[Vessel]:
    """The vessel and its twigs; a vessel thinner than THINNEST_ANNOTATED becomes a twig itself."""
    if vessel.reference_radius[0] < THINNEST_ANNOTATED * projection.scale:
        return [_as_twig(vessel)]
    vessel, twigs = _sprout(rng, projection, vessel, 0, (0, 0), (0, 0), (0, 0))
    return [vessel, *twigs]


def _as_twig(vessel: Vessel) -> Vessel:
    return replace(vessel, kind="twig", stenosis=np.zeros(len(vessel.points)))


def _choose_waypoints(
    rng: np.random.Generator, vessel: Vessel, origin: int, turn_deg: tuple[float, float], drop_deg: tuple[float, float]
) -> np.ndarray:
    """Three waypoints (longitude, latitude) of a branch that begins at point number `origin` of the vessel."""
    assert vessel.centerline is not None
    first = vessel.centerline[origin]
    offset = np.array([rng.uniform(*turn_deg), rng.uniform(*drop_deg)]) * rng.uniform(0.5, 1)
    offset[1] = max(offset[1], -78 - first[1])
    return np.stack([first, first + offset * (0.45, 0.35), first + offset])
