"""A vessel of a tree: how it narrows where it forks, and where it is narrowed by disease.

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
"""A stenosis begins and ends where its vessel has lost this share of its diameter."""
STENOSIS = 0.5
"""Loss of diameter from which on a narrowing is called a stenosis."""


@dataclass(frozen=True, eq=False)
class Vessel:
    """One branch of a tree from its origin to its end."""

    points: Float[np.ndarray, "k 2"]
    """(x, y) in pixels, SAMPLE_STEP apart."""
    healthy: Float[np.ndarray, " k"]
    """Radius in pixels without disease. At a fork the cubes of both radii behind it sum up to that before it."""
    narrowing: Float[np.ndarray, " k"]
    """Share of the diameter that disease takes, in [0, 1)."""
    parent: Vessel | None = None
    start: int = 0
    """The point of the parent where this vessel begins."""
    course: Float[np.ndarray, "k 2"] | None = None
    """The line as (longitude, latitude) on the heart in degrees; None elsewhere."""
    kind: str = ""
    """`twig` where it is too thin to be annotated; in a retina `artery` or `vein`."""

    @cached_property
    def tube(self) -> Tube:
        """The open lumen; nowhere thinner than THINNEST_RADIUS, which a line of pixels needs."""
        return Tube(self.points, np.maximum(self.healthy * (1 - self.narrowing), THINNEST_RADIUS))

    @cached_property
    def path_px(self) -> Float[np.ndarray, " k"]:
        """The way of the blood from the first vessel's origin to each point, in pixels."""
        before = 0.0 if self.parent is None else self.parent.path_px[self.start]
        return before + SAMPLE_STEP * np.arange(len(self.points))

    @cached_property
    def stenosis(self) -> Bool[np.ndarray, " k"]:
        """The points between the shoulders of a stenosis, none where the open lumen keeps over half its diameter.

        That is asked of the radius that is drawn, so a vessel as thin as a pixel has none.
        """
        lost = 1 - self.tube.radii / np.maximum(self.healthy, THINNEST_RADIUS)
        return (lost >= SHOULDER) & (lost.max() >= STENOSIS)


def murray_share(share: float) -> float:
    """Radius of one child, as a share of its parent's, when the other child has `share`.

    >>> round(murray_share(0.8), 4)  # 0.8^3 + 0.7873^3 = 0.512 + 0.488
    0.7873
    """
    return float((1 - share**3) ** (1 / 3))


def calibre(
    rng: np.random.Generator, places: np.ndarray, radius: float, taper: float
) -> Float[np.ndarray, " k"]:
    """Radii that fall unevenly from `radius` to about `taper` times that, along places in [0, 1]."""
    periods = min(6, len(places) / 40)  # a short vessel has no room for more
    uneven = 1 + 0.06 * wave(rng, places, periods) * np.minimum(1, 6 * places)
    return radius * (1 + (taper - 1) * places) * uneven


def choose_origins(
    rng: np.random.Generator, vessel: Vessel, n: int, between: tuple[float, float]
) -> Int64[np.ndarray, " n"]:
    """At most `n` different points of a vessel where branches begin, in order; `between` are shares of its way."""
    low, high = (int(share * (len(vessel.points) - 1)) for share in between)
    return np.sort(rng.choice(np.arange(low, max(high, low + 1)), min(n, max(high - low, 1)), replace=False))


def fork(
    vessel: Vessel, origins: Int64[np.ndarray, " n"], choose_share: Callable[[float], float]
) -> tuple[Vessel, list[float]]:
    """The vessel, thinner behind each origin by Murray's law, and the radius with which each branch begins there.

    `choose_share` gets the vessel's radius at an origin and gives the branch's share of it.
    """
    healthy = vessel.healthy.copy()
    radii = []
    for origin in origins:
        share = choose_share(float(healthy[origin]))
        radii.append(share * float(healthy[origin]))
        healthy[origin + 1 :] *= murray_share(share)
    return replace(vessel, healthy=healthy), radii


def narrow(rng: np.random.Generator, places: np.ndarray) -> Float[np.ndarray, " k"]:
    """The narrowing along a vessel: none in most; else one that is clearly a stenosis or clearly is not."""
    if rng.random() >= 0.35:
        return np.zeros(len(places))
    depth = rng.uniform(0.55, 0.75) if rng.random() < 0.4 else rng.uniform(0.2, 0.4)
    middle, width = rng.uniform(0.15, 0.85), rng.uniform(0.01, 0.04)
    lost: np.ndarray = depth * np.exp(-(((places - middle) / width) ** 2))
    return lost
