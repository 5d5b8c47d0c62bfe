"""Random retinal vessels: arteries and veins that leave the optic disc, arch around the macula, and bifurcate.

Anatomical constants are in disc diameters; all other lengths are in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from vesalius.synth.tubes import SAMPLE_STEP, resample, wind
from vesalius.synth.vessels import Vessel, caliber, choose_origins, fork

DISC_MM = 1.8
"""Diameter of the optic disc in mm."""
THINNEST_BRANCH = 0.018
"""Minimum diameter of a drawn branch at its origin, in disc diameters (32 micrometers)."""
# (heading at the disc, heading far from it) in degrees from temporal; temporal vessels arch, nasal ones spread
QUARTERS = (((62, 92), (-30, 5)), ((62, 92), (-30, 5)), ((105, 140), (125, 165)), ((105, 140), (125, 165)))


@dataclass(frozen=True)
class Eye:
    """The geometry of one fundus photograph."""

    size: int
    """Side of the frame in pixels."""
    center: Float[np.ndarray, " 2"]
    """(x, y) of the center of the round field of view."""
    field_px: float
    """Radius of the field of view in pixels; it may exceed the frame."""
    disc: Float[np.ndarray, " 2"]
    """(x, y) of the center of the optic disc."""
    disc_px: float
    """Diameter of the optic disc in pixels."""
    temporal: int
    """1 if the temporal side is on the right of the image, -1 if on the left."""
    macula: Float[np.ndarray, " 2"]
    vessels: tuple[Vessel, ...] = ()
    """All vessels; parents precede their branches."""

    @property
    def spacing_mm(self) -> float:
        """Pixel spacing, rounded to 0.1 micrometer."""
        return round(DISC_MM / self.disc_px, 4)


def grow_eye(rng: np.random.Generator, size: int) -> Eye:
    """A random left or right eye; narrow fields of view are centered near the disc, wide ones near the macula."""
    field_px = rng.uniform(0.45, 0.56) * size
    center = size * rng.uniform(0.48, 0.52, 2)
    temporal = int(rng.choice((-1, 1)))
    ratio = rng.uniform(0.11, 0.2)  # disc diameter relative to the field of view
    disc_px = 2 * field_px * ratio
    aside = np.interp(ratio, [0.11, 0.2], [0.68, 0.05]) + rng.uniform(-0.12, 0.12)
    disc = center + field_px * np.array([-temporal * aside, rng.uniform(-0.12, 0.12)])
    macula = disc + disc_px * np.array([temporal * rng.uniform(2.3, 2.7), rng.uniform(0.1, 0.4)])
    eye = Eye(size, center, field_px, disc, disc_px, temporal, macula)
    vessels: list[Vessel] = []
    for kind, thickness in (("vein", 1.0), ("artery", rng.uniform(0.68, 0.85))):
        widths = rng.uniform(0.055, 0.085, 4) * thickness
        for quarter, width in enumerate(widths):
            vessels += _grow_main(rng, eye, quarter, kind, width * disc_px / 2)
    return replace(eye, vessels=tuple(vessels))


def _grow_main(rng: np.random.Generator, eye: Eye, quarter: int, kind: str, radius: float) -> list[Vessel]:
    """One of the four main arteries or veins of an eye, followed by its branches."""
    first, last = (np.radians(rng.uniform(*span)) for span in QUARTERS[quarter])
    down = 1 if quarter % 2 else -1
    start = eye.disc + eye.disc_px * rng.uniform(0, 0.12, 2) * (-eye.temporal, down)
    line = _steer(first, last, rng.uniform(1.2, 2.2) * eye.disc_px, 2.4 * eye.field_px)
    vessel = _lay(rng, eye, start + line * (eye.temporal, down), radius, 0.85, kind)
    return _sprout(rng, eye, vessel, rng.uniform(1.3, 2.4), (0.35, 0.8))


def _sprout(
    rng: np.random.Generator, eye: Eye, vessel: Vessel, density: float, ratios: tuple[float, float]
) -> list[Vessel]:
    """The vessel, thinner after each bifurcation, and all its branches; thin vessels have none.

    `density` is the mean number of branches per disc diameter of length; `ratios` is the range of a branch's radius
    relative to the vessel.
    """
    thinnest = THINNEST_BRANCH * eye.disc_px / 2
    n = int(rng.poisson(density * len(vessel.points) * SAMPLE_STEP / eye.disc_px))
    if n == 0 or vessel.reference_radius[-1] < 1.3 * thinnest:
        return [vessel]
    origins = choose_origins(rng, vessel, n, (0.1, 0.9))
    vessel, radii = fork(vessel, origins, lambda radius: max(rng.uniform(*ratios), min(0.9, thinnest / radius)))
    found = [vessel]
    side = rng.choice((-1, 1))
    for origin, radius in zip(origins, radii, strict=True):
        side = -side if rng.random() < 0.75 else side
        ahead = vessel.points[min(origin + 3, len(vessel.points) - 1)] - vessel.points[max(origin - 3, 0)]
        first = np.arctan2(ahead[1], ahead[0]) + side * np.radians(rng.uniform(35, 75))
        last = first - side * np.radians(rng.uniform(-10, 60))
        length = rng.uniform(50, 160) * radius  # proportional to the radius
        line = vessel.points[origin] + _steer(first, last, 0.4 * length, length)
        branch = _lay(rng, eye, line, radius, 0.7, vessel.kind, vessel, int(origin))
        found += _sprout(rng, eye, branch, rng.uniform(0.3, 1.2), (0.55, 0.85))
    return found


def _steer(first: float, last: float, reach: float, length: float) -> Float[np.ndarray, "n 2"]:
    """A line from (0, 0) that turns from the heading `first` to `last` (radians) within about `reach` pixels."""
    steps = np.linspace(0, length, int(np.clip(length / 3, 16, 120)))
    heading = last + (first - last) * np.exp(-steps / reach)
    steps_xy = np.stack([np.cos(heading), np.sin(heading)], axis=1) * (steps[1] - steps[0])
    return np.concatenate([np.zeros((1, 2)), np.cumsum(steps_xy[:-1], axis=0)])


def _lay(
    rng: np.random.Generator,
    eye: Eye,
    line: Float[np.ndarray, "n 2"],
    radius: float,
    taper: float,
    kind: str,
    parent: Vessel | None = None,
    start: int = 0,
) -> Vessel:
    """A tortuous vessel along a line, cut outside the field of view and before the center of the macula."""
    bends = (((40, 110), 7 * rng.uniform(0.2, 1) ** 2), ((15, 35), 1.5 * rng.uniform() ** 2))
    points = resample(wind(rng, line, bends, eye.disc_px / 80))[1]
    beyond = np.hypot(*(points - eye.center).T) > eye.field_px + 4
    beyond |= np.hypot(*(points - eye.macula).T) < 0.3 * eye.disc_px
    end = max(4, int(np.argmax(beyond)) if beyond.any() else len(points))
    points = points[:end]
    reference_radius = caliber(rng, np.linspace(0, 1, len(points)), radius, taper)
    return Vessel(points, reference_radius, np.zeros(len(points)), parent, start, kind=kind)
