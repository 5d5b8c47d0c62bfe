"""A synthetic picture as it is seen: its pixels, and what of each vessel is visible in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, UInt8

from vesalius.synth.tubes import (
    NO_SHADOW,
    REFERENCE_SIZE,
    SAMPLE_STEP,
    THINNEST_RADIUS,
    Shadow,
    Tube,
    cast,
)
from vesalius.synth.vessels import Vessel

Mask = Bool[np.ndarray, "h w"]

SHORTEST_BRANCH = 40
"""Pixels of 512 that must be visible of a branch."""


@dataclass(frozen=True)
class Sight:
    """One vessel as a picture shows it."""

    shadow: Shadow
    """Of its visible part."""
    radius: float = 0.0
    """Mean along its visible part, in pixels."""
    length: float = 0.0
    """Of its visible part, in pixels."""
    kind: str = ""
    stenosis: Shadow = NO_SHADOW
    """Of the healthy lumen along its visible stenoses."""


@dataclass(frozen=True)
class Picture:
    """A synthetic picture, and all that its masks are made from."""

    pixels: UInt8[np.ndarray, "h w 3"]
    vessels: Sequence[Sight]
    clear: Bool[np.ndarray, "h w"]
    """Where it shows anything: not behind the collimator, not outside of the field of view."""
    things: Mapping[str, Mask] = field(default_factory=dict)
    """Catheter, guide wire, optic disc: where there is one."""

    @property
    def size(self) -> int:
        """Side in pixels."""
        return len(self.clear)

    def mask_of(self, shadows: Sequence[Shadow]) -> Mask:
        """The union of the tubes with these shadows, where the picture is clear."""
        mask = np.zeros_like(self.clear)
        for shadow in shadows:
            mask[shadow.rows, shadow.columns] |= shadow.chords > 0
        return mask & self.clear

    def branches(self) -> list[Sight]:
        """The vessels of which enough is visible to be asked for one by one."""
        shortest = SHORTEST_BRANCH * self.size / REFERENCE_SIZE
        return [vessel for vessel in self.vessels if vessel.length >= shortest]


def look_at(
    vessel: Vessel, tube: Tube, filled: Bool[np.ndarray, " k"], clear: Bool[np.ndarray, "h w"], shadow: Shadow
) -> Sight:
    """The vessel as far as it is visible, when its lumen is `tube` in this picture and `shadow` all that is in it.

    `filled` says at which points it shows.
    """
    size = len(clear)
    if not filled.all():
        shadow = cast(tube, size, filled.astype(np.float32))
    x, y = np.floor(tube.points).astype(int).T
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    visible = filled & inside
    visible[visible] = clear[y[visible], x[visible]]
    if not visible.any():
        return Sight(shadow, kind=vessel.kind)  # its rim may still reach into the picture
    narrowed, stenosis = vessel.stenosis & visible, NO_SHADOW
    if narrowed[np.argmax(vessel.narrowing)]:
        healthy = np.maximum(vessel.healthy, THINNEST_RADIUS)
        stenosis = cast(Tube(tube.points[narrowed], healthy[narrowed]), size)
    length = float(visible.sum()) * SAMPLE_STEP
    return Sight(shadow, float(tube.radii[visible].mean()), length, vessel.kind, stenosis)
