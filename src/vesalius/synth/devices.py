"""Catheters and guide wires, and similar lines in the background."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from vesalius.synth.heart import Tree
from vesalius.synth.tubes import REFERENCE_SIZE, THINNEST_RADIUS, Tube, cast, chords, resample, wave
from vesalius.synth.vessels import Vessel


def bend_catheter(rng: np.random.Generator, tree: Tree) -> Tube:
    """A catheter: a tube of constant radius from an edge of the frame, mostly the upper one, to the ostium.

    Of three random candidates, the one with the least overlap with vessels is returned.
    """
    size = tree.projection.size
    covered = np.zeros((size, size), dtype=bool)
    for vessel in tree.vessels:
        shadow = cast(vessel.tube, size)
        covered[shadow.rows, shadow.columns] |= shadow.chords > 0
    trunk = tree.vessels[0].tube
    tubes = [_bend_one(rng, trunk, size) for _ in range(3)]
    return min(tubes, key=lambda tube: _points_over(tube, covered))


def _bend_one(rng: np.random.Generator, trunk: Tube, size: int) -> Tube:
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
    points = resample(line)[1]
    radius = max(rng.uniform(2.6, 4.4) * size / REFERENCE_SIZE, THINNEST_RADIUS)
    return Tube(points, np.full(len(points), radius))


def _choose_entry(rng: np.random.Generator, tip: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of an entry point just outside the frame, and the unit vector that points into the frame."""
    x, y = np.clip(tip + rng.normal(0, 0.16 * size, 2), 0.05 * size, 0.95 * size)
    near, far = -0.03 * size, 1.03 * size
    entries = (((x, near), (0, 1)), ((near, y), (1, 0)), ((far, y), (-1, 0)), ((x, far), (0, -1)))
    entry, inward = entries[rng.choice(4, p=[0.84, 0.06, 0.06, 0.04])]
    return np.array(entry), np.array(inward, dtype=float)


def _points_over(tube: Tube, covered: np.ndarray) -> int:
    """Number of centerline points of the tube on pixels of `covered`."""
    x, y = np.clip(np.floor(tube.points).astype(int), 0, len(covered) - 1).T
    return int(covered[y, x].sum())


def thread_wire(rng: np.random.Generator, tree: Tree) -> Tube:
    """A guide wire from the ostium almost to the end of a random vessel."""
    lumen, radii = _path_to(tree.vessels[rng.integers(len(tree.vessels))])
    stop = max(4, int(len(lumen) * rng.uniform(0.75, 0.97)))
    lumen, radii = lumen[:stop], radii[:stop]
    # inside the lumen, but off the centerline
    aside = 0.4 * radii * wave(rng, np.linspace(0, 1, stop), max(1.0, stop / 120))
    along = np.gradient(lumen, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.maximum(np.hypot(*along.T), 1e-6)[:, None]
    points = resample(lumen + normal * aside[:, None])[1]
    radius = max(rng.uniform(0.75, 1.0) * tree.projection.scale, THINNEST_RADIUS)
    return Tube(points, np.full(len(points), radius))


def _path_to(vessel: Vessel) -> tuple[np.ndarray, np.ndarray]:
    """Points and radii of the lumen from the origin of the tree to the end of the vessel."""
    points, radii = vessel.points, vessel.tube.radii
    if vessel.parent is None:
        return points, radii
    before, wider = _path_to(vessel.parent)
    kept = len(before) - len(vessel.parent.points) + vessel.start + 1
    return np.concatenate([before[:kept], points[1:]]), np.concatenate([wider[:kept], radii[1:]])


def scatter_lines(rng: np.random.Generator, n: int, radius: tuple[float, float], bend: float, size: int) -> list[Tube]:
    """`n` random curves across the frame, for background vessels or wires; `bend` is relative to their length."""
    lines = []
    for _ in range(n):
        start = rng.uniform(0, size, 2)
        angle = rng.uniform(0, 2 * np.pi)
        along = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.25, 0.9) * size
        t = np.linspace(0, 1, 80)[:, None]
        sideways = np.array([-along[1], along[0]]) * bend
        points = resample(start + along * t + sideways * wave(rng, t[:, 0], 1.5)[:, None])[1]
        radii = np.full(len(points), rng.uniform(*radius) * size / REFERENCE_SIZE)
        lines.append(Tube(points, np.maximum(radii, THINNEST_RADIUS)))
    return lines


@dataclass(frozen=True)
class CatheterLook:
    """Appearance of a catheter: filled with contrast agent, or a radiopaque wall around a radiolucent lumen."""

    mu: float
    """Attenuation per pixel of path length, of the contrast agent or the wall."""
    lumen: float
    """Radius of the lumen relative to the catheter's radius; 0 for a filled catheter."""
    clear: float
    """Attenuation that the lumen lacks, relative to the wall."""

    def attenuation(self, catheter: Tube, whole: np.ndarray, filled: float) -> Float[np.ndarray, "h w"]:
        """Attenuation of the catheter for path lengths `whole` in pixels and the relative contrast concentration `filled`."""
        if not self.lumen:
            return self.mu * (0.4 + 0.6 * filled) * whole
        inner = chords([replace(catheter, radii=catheter.radii * self.lumen)], len(whole))
        return self.mu * (whole - self.clear * inner)


def choose_look(rng: np.random.Generator, vessel_mu: float, size: int) -> CatheterLook:
    """A random catheter appearance; `vessel_mu` is the vessels' attenuation per pixel of path length."""
    if rng.random() < 0.6:
        return CatheterLook(vessel_mu * rng.uniform(0.7, 1.3), 0.0, 0.0)
    mu = rng.uniform(0.03, 0.06) * REFERENCE_SIZE / size
    return CatheterLook(mu, rng.uniform(0.5, 0.72), rng.uniform(0.6, 1.0))
