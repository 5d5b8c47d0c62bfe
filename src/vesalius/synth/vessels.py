"""Vessels of a tree: radius at bifurcations by Murray's law, and stenoses.

References: C. D. Murray, "The physiological principle of minimum work", PNAS 12 (1926): r0^3 = r1^3 + r2^3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int64

from vesalius.synth.tubes import SAMPLE_STEP, THINNEST_RADIUS, Tube, wave

SHOULDER = 0.2
"""Loss of diameter at both ends (shoulders) of a stenosis."""
STENOSIS = 0.5
"""Minimum loss of diameter of a stenosis."""


@dataclass(frozen=True, eq=False)
class Vessel:
    """One branch of a tree, from its origin to its end."""

    points: Float[np.ndarray, "k 2"]
    """(x, y) in pixels at a distance of SAMPLE_STEP."""
    healthy: Float[np.ndarray, " k"]
    """Radius in pixels without disease. At a bifurcation, the cubes of the daughter radii sum to that of the parent."""
    narrowing: Float[np.ndarray, " k"]
    """Loss of diameter by disease, in [0, 1)."""
    parent: Vessel | None = None
    start: int = 0
    """Index of the parent's point where this vessel begins."""
    course: Float[np.ndarray, "k 2"] | None = None
    """The line as (longitude, latitude) on the heart in degrees; None in a retina."""
    kind: str = ""
    """`twig` if it is too thin to be annotated; `artery` or `vein` in a retina."""

    @cached_property
    def tube(self) -> Tube:
        """The open lumen, with a radius of at least THINNEST_RADIUS, so that it is connected in pixels."""
        return Tube(self.points, np.maximum(self.healthy * (1 - self.narrowing), THINNEST_RADIUS))

    @cached_property
    def path_px(self) -> Float[np.ndarray, " k"]:
        """Path length of the blood from the origin of the tree to each point, in pixels."""
        before = 0.0 if self.parent is None else self.parent.path_px[self.start]
        return before + SAMPLE_STEP * np.arange(len(self.points))

    @cached_property
    def stenosis(self) -> Bool[np.ndarray, " k"]:
        """The points between the shoulders of a stenosis; none if the lumen keeps more than half its diameter.

        It is computed from the drawn radius, so a vessel of one pixel has none.
        """
        lost = 1 - self.tube.radii / np.maximum(self.healthy, THINNEST_RADIUS)
        return (lost >= SHOULDER) & (lost.max() >= STENOSIS)


def murray_share(share: float) -> float:
    """Radius of one daughter relative to the parent, if the other daughter has `share`.

    >>> round(murray_share(0.8), 4)  # 0.8^3 + 0.7873^3 = 0.512 + 0.488
    0.7873
    """
    return float((1 - share**3) ** (1 / 3))


def calibre(
    rng: np.random.Generator, shares: np.ndarray, radius: float, taper: float
) -> Float[np.ndarray, " k"]:
    """Radii with random variation that taper from `radius` to about `taper` times that, at `shares` in [0, 1]."""
    periods = min(6, len(shares) / 40)  # fewer in a short vessel
    uneven = 1 + 0.06 * wave(rng, shares, periods) * np.minimum(1, 6 * shares)
    return radius * (1 + (taper - 1) * shares) * uneven


def choose_origins(
    rng: np.random.Generator, vessel: Vessel, n: int, between: tuple[float, float]
) -> Int64[np.ndarray, " n"]:
    """Sorted indices of at most `n` distinct points where branches begin, within the relative range `between`."""
    low, high = (int(share * (len(vessel.points) - 1)) for share in between)
    return np.sort(rng.choice(np.arange(low, max(high, low + 1)), min(n, max(high - low, 1)), replace=False))


def fork(
    vessel: Vessel, origins: Int64[np.ndarray, " n"], choose_share: Callable[[float], float]
) -> tuple[Vessel, list[float]]:
    """The vessel, thinner after each origin by Murray's law, and the initial radius of each branch.

    `choose_share` maps the vessel's radius at an origin to the relative radius of the branch.
    """
    healthy = vessel.healthy.copy()
    radii = []
    for origin in origins:
        share = choose_share(float(healthy[origin]))
        radii.append(share * float(healthy[origin]))
        healthy[origin + 1 :] *= murray_share(share)
    return replace(vessel, healthy=healthy), radii


def narrow(rng: np.random.Generator, shares: np.ndarray) -> Float[np.ndarray, " k"]:
    """Random loss of diameter along a vessel: mostly none, else one clear stenosis or one mild narrowing."""
    if rng.random() >= 0.35:
        return np.zeros(len(shares))
    depth = rng.uniform(0.55, 0.75) if rng.random() < 0.4 else rng.uniform(0.2, 0.4)
    middle, width = rng.uniform(0.15, 0.85), rng.uniform(0.01, 0.04)
    lost: np.ndarray = depth * np.exp(-(((shares - middle) / width) ** 2))
    return lost
