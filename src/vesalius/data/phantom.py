"""The geometry of a synthetic angiogram: a coronary tree on a heart, a catheter, and the shadows of tubes.

Branches lie on an ellipsoid (the heart), given as (longitude, latitude) in degrees, and are projected from a
random C-arm angle. Lengths are written for a frame of 512 x 512 pixels and scaled to the size asked for.

References: C. D. Murray, "The physiological principle of minimum work", PNAS 12 (1926): r0^3 = r1^3 + r2^3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.interpolate import PchipInterpolator
from scipy.spatial.transform import Rotation

REFERENCE_SIZE = 512

N_CONTROL = 160
"""Points of a course before it is resampled."""

SAMPLE_STEP = 0.6
"""Pixels between neighbouring points of a centre line."""

# pixels; above sqrt(2) / 2 every point of a line has a pixel centre within reach, so that no vessel breaks
THINNEST_RADIUS = 0.75

# pixels of 512, at the origin of a side branch; real annotators leave thinner ones out
THINNEST_ANNOTATED = 2.0

# (longitude, latitude) in degrees: longitude 0 is the front, 90 the patient's left; latitude -90 is the apex
LEFT_MAIN = ((-8, 66), (6, 54), (14, 46))
LEFT_DESCENDING = ((14, 46), (6, 20), (0, -15), (4, -48), (18, -72))
CIRCUMFLEX = ((14, 46), (42, 38), (78, 26), (112, 16), (134, -8))
RIGHT = ((-16, 64), (-38, 46), (-76, 30), (-122, 20), (-168, 20))
POSTERIOR_DESCENDING = ((-168, 20), (-180, 2), (-186, -40))
POSTEROLATERAL = ((-168, 20), (-194, 18), (-216, -6), (-222, -26))


@dataclass(frozen=True)
class Tube:
    """A vessel, catheter or wire: a centre line and a radius along it."""

    points: Float[np.ndarray, "k 2"]
    """(x, y) in pixels, SAMPLE_STEP apart; (0, 0) is the outer corner of the first pixel."""
    radii: np.ndarray
    """(k,) in pixels."""
    course: np.ndarray | None = None
    """(k, 2) the same line as (longitude, latitude) in degrees; None off the heart."""


@dataclass(frozen=True)
class View:
    """How the heart is projected: rotated, scaled and moved."""

    rotation: Rotation
    heart_px: float
    """Short radius of the heart in pixels."""
    origin: np.ndarray
    """(x, y) of the heart's centre in pixels."""
    size: int
    """Side of the frame in pixels."""

    @property
    def scale(self) -> float:
        """Pixels of this frame for one of a frame of 512."""
        return self.size / REFERENCE_SIZE

    def project(self, course: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "k 2"]:
        """(x, y) in pixels of points given as (longitude, latitude) in degrees."""
        longitude, latitude = np.radians(course).T
        ring = np.cos(latitude)
        left, front, up = ring * np.sin(longitude), ring * np.cos(longitude), 1.25 * np.sin(latitude)
        left, front, up = self.rotation.apply(np.stack([left, front, up], axis=1)).T
        return np.stack([left, -up], axis=1) * self.heart_px + self.origin


def grow_tree(rng: np.random.Generator, size: int) -> tuple[list[Tube], list[Tube]]:
    """Vessels to annotate, the first of which starts at the ostium, and twigs too thin for that."""
    right = rng.random() < 0.45
    view = _choose_view(rng, right, size)
    vessels = _grow_right(rng, view) if right else _grow_left(rng, view)
    thick = [vessel for vessel in vessels if vessel.radii[0] >= THINNEST_ANNOTATED * view.scale]
    twigs = [vessel for vessel in vessels if vessel.radii[0] < THINNEST_ANNOTATED * view.scale]
    annotated = []
    for vessel in thick:
        thinned, found = _branch(
            rng, view, vessel, int(rng.integers(2, 9)), (-50, 55), (-50, 8), (0.15, 0.45)
        )
        annotated.append(thinned)
        twigs += [replace(twig, radii=np.minimum(twig.radii, 1.5 * view.scale + 0.3)) for twig in found]
    return annotated, twigs


def _grow_right(rng: np.random.Generator, view: View) -> list[Tube]:
    """The right coronary artery, its marginal branches, and most often both branches at its end."""
    trunk = _grow(rng, view, RIGHT, rng.uniform(4.4, 8.4) * view.scale, 0.88)
    trunk, sides = _branch(rng, view, trunk, int(rng.integers(1, 5)), (20, 55), (-75, -30), (0.3, 0.65))
    share = rng.uniform(0.6, 0.8)
    vessels = [trunk]
    if rng.random() < 0.85:
        vessels.append(_grow(rng, view, POSTERIOR_DESCENDING, trunk.radii[-1] * share, 0.6, trunk))
    if rng.random() < 0.8:
        other = trunk.radii[-1] * murray_share(share)
        vessels.append(_grow(rng, view, POSTEROLATERAL, other, 0.55, trunk))
    return vessels + sides


def _grow_left(rng: np.random.Generator, view: View) -> list[Tube]:
    """The left main, its two branches, and their diagonal and marginal branches."""
    trunk = _grow(rng, view, LEFT_MAIN, rng.uniform(5.5, 10.5) * view.scale, 0.97)
    share = rng.uniform(0.72, 0.86)
    descending = _grow(rng, view, LEFT_DESCENDING, trunk.radii[-1] * share, 0.62, trunk)
    circumflex = _grow(rng, view, CIRCUMFLEX, trunk.radii[-1] * murray_share(share), 0.62, trunk)
    descending, sides = _branch(
        rng, view, descending, int(rng.integers(2, 7)), (18, 55), (-75, -35), (0.35, 0.75)
    )
    circumflex, others = _branch(
        rng, view, circumflex, int(rng.integers(1, 5)), (-12, 25), (-70, -30), (0.35, 0.75)
    )
    return [trunk, descending, circumflex, *sides, *others]


def murray_share(share: float) -> float:
    """Radius of one child, as a share of its parent's, when the other child has `share`.

    >>> round(murray_share(0.8), 4)  # 0.8^3 + 0.7873^3 = 0.512 + 0.488
    0.7873
    """
    return float((1 - share**3) ** (1 / 3))


def _choose_view(rng: np.random.Generator, right: bool, size: int) -> View:
    """A usual C-arm angle; the tree's box is put near the middle, its ostium inside the frame."""
    tilt = Rotation.from_euler("yx", [rng.uniform(-55, -35), rng.uniform(20, 45)], degrees=True)
    around = rng.uniform(10, 60) if right and rng.random() < 0.75 else rng.uniform(-45, 60)
    arm = Rotation.from_euler("zxy", [around, rng.uniform(-32, 32), rng.uniform(-12, 12)], degrees=True)
    view = View(arm * tilt, rng.uniform(0.29, 0.44) * size, np.zeros(2), size)
    courses = (RIGHT, POSTERIOR_DESCENDING) if right else (LEFT_MAIN, LEFT_DESCENDING, CIRCUMFLEX)
    points = view.project(np.concatenate([np.array(course, dtype=float) for course in courses]))
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    origin = size * rng.uniform(0.42, 0.58, 2) - middle
    ostium = points[0] + origin
    return replace(view, origin=origin + np.clip(ostium, 0.12 * size, 0.88 * size) - ostium)


def _grow(
    rng: np.random.Generator,
    view: View,
    waypoints: Sequence[Sequence[float]],
    radius: float,
    taper: float,
    parent: Tube | None = None,
    start: int = -1,
) -> Tube:
    """A tortuous vessel through jittered waypoints; its radius falls from `radius` to `taper` times that.

    With a `parent` it begins at point `start` of it.
    """
    way = np.array(waypoints, dtype=float)
    way[1:] += rng.normal(0, 5, way[1:].shape)
    if parent is not None and parent.course is not None:
        way[0] = parent.course[start]
    knots = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(way, axis=0).T))])
    course = PchipInterpolator(knots, way)(np.linspace(0, knots[-1], N_CONTROL))
    points = _wind(rng, view.project(course), (35, 120), 14 * rng.uniform(0.3, 1) ** 2, view.scale)
    points = _wind(rng, points, (18, 50), 3.5 * rng.uniform() ** 2, view.scale)
    if parent is not None:
        points = points + (parent.points[start] - points[0])
    places, points = _resample(points)
    course = np.stack([np.interp(places, np.linspace(0, 1, N_CONTROL), each) for each in course.T], axis=1)
    radii = radius * (1 + (taper - 1) * places) * (1 + 0.06 * _wave(rng, places, 6))
    if rng.random() < 0.35:  # a stenosis
        depth, middle, width = rng.uniform(0.25, 0.65), rng.uniform(0.15, 0.85), rng.uniform(0.01, 0.04)
        radii *= 1 - depth * np.exp(-(((places - middle) / width) ** 2))
    return Tube(points, np.maximum(radii, THINNEST_RADIUS), course)


def _wind(
    rng: np.random.Generator,
    points: np.ndarray,
    wave_px: tuple[float, float],
    strength_px: float,
    scale: float,
) -> np.ndarray:
    """The line with smooth sideways bends, of a wave length in `wave_px`, from its start on."""
    along = np.gradient(points, axis=0)
    length = np.hypot(*along.T)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.maximum(length, 1e-6)[:, None]
    reached = np.cumsum(length)
    places = reached / reached[-1]
    bends = _wave(rng, places, max(1.0, reached[-1] / (rng.uniform(*wave_px) * scale))) * (
        0.35 + 0.65 * np.abs(_wave(rng, places, 2))
    )
    strength = strength_px * scale * min(1.0, reached[-1] / (200 * scale))
    return points + normal * (bends * strength * np.minimum(1, 1.6 * places))[:, None]


def _wave(rng: np.random.Generator, places: np.ndarray, periods: float) -> np.ndarray:
    """A smooth random wave of about `periods` periods over places in [0, 1]; values about in [-1.5, 1.5]."""
    frequencies = periods * rng.uniform(0.4, 1.3, 3)
    phases, weights = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.3, 0.7, 3)
    return (np.sin(2 * np.pi * places[:, None] * frequencies + phases) * weights).sum(axis=1)


def _resample(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the way in [0, 1] and (x, y) of points SAMPLE_STEP pixels apart along the line."""
    reached = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    steps = np.linspace(0, reached[-1], max(4, int(reached[-1] / SAMPLE_STEP)))
    line = np.stack([np.interp(steps, reached, each) for each in points.T], axis=1)
    # the share of control points, not of pixels, so that `course` can be found again
    places = np.interp(steps, reached, np.linspace(0, 1, len(points)))
    return places, line


def _branch(
    rng: np.random.Generator,
    view: View,
    parent: Tube,
    n: int,
    turn_deg: tuple[float, float],
    drop_deg: tuple[float, float],
    shares: tuple[float, float],
) -> tuple[Tube, list[Tube]]:
    """The parent, thinner behind each fork by Murray's law, and `n` side branches of it.

    A branch ends `turn_deg` in longitude and `drop_deg` in latitude from where it begins, and begins with a
    share of its parent's radius there.
    """
    course = parent.course
    assert course is not None
    branches = []
    for place in np.sort(rng.uniform(0.12, 0.8, n)):
        start = int(place * (len(parent.points) - 1))
        first = course[start]
        way = np.array([rng.uniform(*turn_deg), rng.uniform(*drop_deg)]) * rng.uniform(0.5, 1)
        way[1] = max(way[1], -78 - first[1])
        waypoints = (first, first + way * (0.45, 0.35), first + way)
        share = rng.uniform(*shares)
        branches.append(_grow(rng, view, waypoints, parent.radii[start] * share, 0.5, parent, start))
        behind = np.where(np.arange(len(parent.radii)) > start, murray_share(share), 1.0)
        parent = replace(parent, radii=np.maximum(parent.radii * behind, THINNEST_RADIUS))
    return parent, branches


def bend_catheter(rng: np.random.Generator, trunk: Tube, size: int) -> Tube:
    """A tube of constant radius that enters at a border, mostly the upper one, and ends at the ostium."""
    tip = trunk.points[0]
    ahead = trunk.points[min(30, len(trunk.points) - 1)] - tip
    angle = np.arctan2(ahead[1], ahead[0]) + rng.normal(0, 0.5)
    heading = np.array([np.cos(angle), np.sin(angle)])
    entry, inward = _choose_entry(rng, tip, size)
    away = float(np.hypot(*(tip - entry)))
    bow = inward[::-1] * rng.normal(0, 0.15) * away
    second = entry + inward * away * rng.uniform(0.5, 1.0) + bow
    third = tip - heading * min(away * 0.8, rng.uniform(25, 90) * size / REFERENCE_SIZE)
    t = np.linspace(0, 1, 200)[:, None]
    line = (1 - t) ** 3 * entry + 3 * (1 - t) ** 2 * t * second + 3 * (1 - t) * t**2 * third + t**3 * tip
    points = _resample(line)[1]
    radius = max(rng.uniform(2.6, 4.4) * size / REFERENCE_SIZE, THINNEST_RADIUS)
    return Tube(points, np.full(len(points), radius))


def _choose_entry(rng: np.random.Generator, tip: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of a point just outside the frame, and the unit vector from that border inwards."""
    x, y = np.clip(tip + rng.normal(0, 0.16 * size, 2), 0.05 * size, 0.95 * size)
    near, far = -0.03 * size, 1.03 * size
    entries = (((x, near), (0, 1)), ((near, y), (1, 0)), ((far, y), (-1, 0)), ((x, far), (0, -1)))
    entry, inward = entries[rng.choice(4, p=[0.84, 0.06, 0.06, 0.04])]
    return np.array(entry), np.array(inward, dtype=float)


def scatter_lines(
    rng: np.random.Generator, n: int, radius: tuple[float, float], bend: float, size: int
) -> list[Tube]:
    """`n` curves across the frame that belong to no tree: veins, wires. `bend` is a share of their length."""
    lines = []
    for _ in range(n):
        start = rng.uniform(0, size, 2)
        angle = rng.uniform(0, 2 * np.pi)
        along = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.25, 0.9) * size
        t = np.linspace(0, 1, 80)[:, None]
        sideways = np.array([-along[1], along[0]]) * bend
        points = _resample(start + along * t + sideways * _wave(rng, t[:, 0], 1.5)[:, None])[1]
        radii = np.full(len(points), rng.uniform(*radius) * size / REFERENCE_SIZE)
        lines.append(Tube(points, np.maximum(radii, THINNEST_RADIUS)))
    return lines


def chords(tubes: Sequence[Tube], size: int) -> Float[np.ndarray, "h w"]:
    """Length in pixels of each ray inside the tubes, float32; > 0 exactly at pixel centres inside one.

    It is 2 sqrt(r^2 - d^2), the largest over the spheres around the tube's points. Tubes that cross add up;
    near its first point a tube melts into those before it, as a branch into its parent.
    """
    total = np.zeros((size, size), dtype=np.float32)
    for tube in tubes:
        reach = int(np.ceil(tube.radii.max())) + 1
        near = ((tube.points > -reach) & (tube.points < size + reach)).all(axis=1)
        if not near.any():
            continue
        left, top = np.floor(tube.points[near].min(axis=0)).astype(int) - reach
        right, bottom = np.floor(tube.points[near].max(axis=0)).astype(int) + reach + 1
        points, shape = tube.points[near] - (left, top), (bottom - top, right - left)
        box = _sphere_chords(points, tube.radii[near], shape, reach)
        rows, columns = slice(max(0, top), min(size, bottom)), slice(max(0, left), min(size, right))
        own = box[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        y, x = np.ogrid[rows, columns]
        start = tube.points[0]
        joint = np.hypot(x + 0.5 - start[0], y + 0.5 - start[1]) < 4 * tube.radii[0] + 4
        before = total[rows, columns]
        total[rows, columns] = np.where(joint, np.maximum(before, own), before + own)
    return total


def _sphere_chords(
    points: np.ndarray, radii: np.ndarray, shape: tuple[int, int], reach: int
) -> Float[np.ndarray, "h w"]:
    """Largest chord of the spheres at each pixel centre of a box that holds them all, float32."""
    box = np.zeros(shape[0] * shape[1], dtype=np.float32)
    offsets = np.arange(-reach, reach + 1)
    first = np.floor(points).astype(np.int64)
    away = (first + 0.5 - points).astype(np.float32)
    x2 = (away[:, :1] + offsets.astype(np.float32)) ** 2
    y2 = (away[:, 1:] + offsets.astype(np.float32)) ** 2
    half2 = (radii.astype(np.float32) ** 2)[:, None, None] - y2[:, :, None] - x2[:, None, :]
    place = (first[:, 1, None, None] + offsets[:, None]) * shape[1] + first[:, 0, None, None] + offsets
    within = half2 > 0
    np.maximum.at(box, place[within], 2 * np.sqrt(half2[within]))
    return box.reshape(shape)
