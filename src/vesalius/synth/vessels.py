"""Vessels of a tree: radii at bifurcations (Murray's law) and stenoses.

Reference: C. D. Murray, "The physiological principle of minimum work", PNAS 12 (1926): r0^3 = r1^3 + r2^3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int64

from vesalius.synth.tubes import SAMPLE_STEP, THINNEST_RADIUS, Tube, wave

SHOULDER = 0.2
"""Diameter stenosis at both ends (shoulders) of a lesion, as a fraction."""
STENOSIS = 0.5
"""Minimum diameter stenosis of a lesion, as a fraction."""


@dataclass(frozen=True, eq=False)
class Vessel:
    """One branch of a tree, from its origin to its end."""

    points: Float[np.ndarray, "k 2"]
    """Centerline as (x, y) in pixels, SAMPLE_STEP apart."""
    reference_radius: Float[np.ndarray, " k"]
    """Radius in pixels without stenosis. At a bifurcation, the cubed radii of the daughters sum to the parent's."""
    stenosis: Float[np.ndarray, " k"]
    """Diameter stenosis: fraction of the reference diameter that is lost, in [0, 1)."""
    parent: Vessel | None = None
    start: int = 0
    """Index of the point of the parent where this vessel begins."""
    centerline: Float[np.ndarray, "k 2"] | None = None
    """Centerline as (longitude, latitude) on the heart in degrees; None in a retina."""
    kind: str = ""
    """`twig` for a vessel that is too thin to be annotated; `artery` or `vein` in a retina."""

    @cached_property
    def tube(self) -> Tube:
        """The open lumen; its radius is at least THINNEST_RADIUS, so that its mask has no gaps."""
        return Tube(self.points, np.maximum(self.reference_radius * (1 - self.stenosis), THINNEST_RADIUS))

    @cached_property
    def path_px(self) -> Float[np.ndarray, " k"]:
        """Path length from the origin of the tree to each point, in pixels."""
        before = 0.0 if self.parent is None else self.parent.path_px[self.start]
        return before + SAMPLE_STEP * np.arange(len(self.points))

    @cached_property
    def in_stenosis(self) -> Bool[np.ndarray, " k"]:
        """True between the shoulders of a stenosis of at least 50 %.

        It is computed from the radius as drawn, so a vessel of one pixel has no stenosis.
        """
        lost = 1 - self.tube.radii / np.maximum(self.reference_radius, THINNEST_RADIUS)
        return (lost >= SHOULDER) & (lost.max() >= STENOSIS)


def murray_ratio(ratio: float) -> float:
    """Radius of one daughter relative to the parent, if `ratio` is the relative radius of the other.

    >>> round(murray_ratio(0.8), 4)  # 0.8^3 + 0.7873^3 = 0.512 + 0.488
    0.7873
    """
    return float((1 - ratio**3) ** (1 / 3))


def caliber(rng: np.random.Generator, positions: np.ndarray, radius: float, taper: float) -> Float[np.ndarray, " k"]:
    """Radii at `positions` in [0, 1] that taper from `radius` to about `taper * radius`, with random variation."""
    periods = min(6, len(positions) / 40)  # fewer in a short vessel
    uneven = 1 + 0.06 * wave(rng, positions, periods) * np.minimum(1, 6 * positions)
    return radius * (1 + (taper - 1) * positions) * uneven


def choose_origins(
    rng: np.random.Generator, vessel: Vessel, n: int, between: tuple[float, float]
) -> Int64[np.ndarray, " n"]:
    """Sorted indices of at most `n` distinct points where branches begin; `between` is a range in [0, 1]."""
    low, high = (int(fraction * (len(vessel.points) - 1)) for fraction in between)
    return np.sort(rng.choice(np.arange(low, max(high, low + 1)), min(n, max(high - low, 1)), replace=False))


def fork(
    vessel: Vessel, origins: Int64[np.ndarray, " n"], choose_ratio: Callable[[float], float]
) -> tuple[Vessel, list[float]]:
    """The vessel, thinner after each origin by Murray's law, and the initial radius of each branch.

    `choose_ratio` maps the vessel's radius at an origin to the branch's radius relative to it.
    """
    reference_radius = vessel.reference_radius.copy()
    radii = []
    for origin in origins:
        ratio = choose_ratio(float(reference_radius[origin]))
        radii.append(ratio * float(reference_radius[origin]))
        reference_radius[origin + 1 :] *= murray_ratio(ratio)
    return replace(vessel, reference_radius=reference_radius), radii


def narrow(rng: np.random.Generator, positions: np.ndarray) -> Float[np.ndarray, " k"]:
    """Random diameter stenosis along a vessel: mostly 0, else one lesion, severe (55 to 75 %) or mild (20 to 40 %)."""
    if rng.random() >= 0.35:
        return np.zeros(len(positions))
    depth = rng.uniform(0.55, 0.75) if rng.random() < 0.4 else rng.uniform(0.2, 0.4)
    middle, width = rng.uniform(0.15, 0.85), rng.uniform(0.01, 0.04)
    return np.asarray(depth * np.exp(-(((positions - middle) / width) ** 2)))
