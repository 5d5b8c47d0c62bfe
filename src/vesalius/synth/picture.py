"""A synthetic image and the visible part of each vessel, from which masks are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, UInt8

from vesalius.synth.tubes import NO_SHADOW, REFERENCE_SIZE, SAMPLE_STEP, THINNEST_RADIUS, Shadow, Tube, cast
from vesalius.synth.vessels import Vessel

Mask = Bool[np.ndarray, "h w"]

SHORTEST_BRANCH = 40
"""Minimum visible length of a branch, in pixels of a frame of 512 x 512."""


@dataclass(frozen=True)
class VisibleVessel:
    """The visible part of one vessel."""

    shadow: Shadow
    """Projection of the visible part."""
    radius: float = 0.0
    """Mean radius of the visible part in pixels."""
    length: float = 0.0
    """Length of the visible part in pixels."""
    kind: str = ""
    stenosis: Shadow = NO_SHADOW
    """Projection of the reference lumen (without stenosis) along visible stenoses."""


@dataclass(frozen=True)
class Picture:
    """A synthetic image with its vessels and other objects."""

    pixels: UInt8[np.ndarray, "h w 3"]
    vessels: Sequence[VisibleVessel]
    clear: Bool[np.ndarray, "h w"]
    """True for pixels inside the collimator opening or the field of view."""
    objects: Mapping[str, Mask] = field(default_factory=dict)
    """Masks of catheter, guide wire and optic disc, if present."""

    @property
    def size(self) -> int:
        """Side of the image in pixels."""
        return len(self.clear)

    def mask_of(self, shadows: Sequence[Shadow]) -> Mask:
        """The union of the projections, restricted to `clear`."""
        mask = np.zeros_like(self.clear)
        for shadow in shadows:
            mask[shadow.rows, shadow.columns] |= shadow.chords > 0
        return mask & self.clear

    def branches(self) -> list[VisibleVessel]:
        """The vessels with a visible length of at least SHORTEST_BRANCH (scaled to the image)."""
        shortest = SHORTEST_BRANCH * self.size / REFERENCE_SIZE
        return [vessel for vessel in self.vessels if vessel.length >= shortest]


def find_visible(
    vessel: Vessel, tube: Tube, filled: Bool[np.ndarray, " k"], clear: Bool[np.ndarray, "h w"], shadow: Shadow
) -> VisibleVessel:
    """The visible part of a vessel with the lumen `tube` and its projection `shadow`.

    `filled` is True for centerline points with contrast agent.
    """
    size = len(clear)
    if not filled.all():
        shadow = cast(tube, size, filled.astype(np.float32))
    x, y = np.floor(tube.points).astype(int).T
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    visible = filled & inside
    visible[visible] = clear[y[visible], x[visible]]
    if not visible.any():
        # the lumen may reach into the image although the centerline does not
        return VisibleVessel(shadow, kind=vessel.kind)
    narrowed, stenosis = vessel.in_stenosis & visible, NO_SHADOW
    if narrowed[np.argmax(vessel.stenosis)]:
        reference_radius = np.maximum(vessel.reference_radius, THINNEST_RADIUS)
        stenosis = cast(Tube(tube.points[narrowed], reference_radius[narrowed]), size)
    length = float(visible.sum()) * SAMPLE_STEP
    return VisibleVessel(shadow, float(tube.radii[visible].mean()), length, vessel.kind, stenosis)
