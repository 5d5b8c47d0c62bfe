"""Width of masks along their skeleton, and the finding about masks thinner than a cell of the model's mask grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from vesalius.checks.findings import finding
from vesalius.checks.measurements import Measurement
from vesalius.masks import Size, dilate
from vesalius.types import Finding

GRID = 256
"""Side of SAM 2's low-resolution masks for an input of 1024 x 1024; they are upsampled to the image."""

MAX_THIN = 0.1
"""Fraction of thin skeleton pixels above which there is a warning."""


def skeleton_widths(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, " n"]:
    """Width in pixels at each skeleton pixel of a mask; empty for an empty mask.

    A straight bar that is n pixels wide has the width n. A bar of even width has no pixel on its axis, so the distance
    from a skeleton pixel to the nearest background pixel is too small. Therefore it is measured again half a pixel
    further from this background pixel, and the larger distance is used.
    """
    # imported here because both take 0.3 s to import
    from scipy.spatial import KDTree
    from skimage.morphology import skeletonize

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.zeros(0)
    inside = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    around = KDTree(np.argwhere(dilate(inside) & ~inside), balanced_tree=False, compact_nodes=False)
    points = np.argwhere(skeletonize(inside)).astype(float)
    distance, nearest = around.query(points)
    away = (points - around.data[nearest]) / distance[:, None]
    further, _ = around.query(points + away / 2)
    return 2 * np.maximum(distance, further) - 1


def cell_px(size: Size) -> float:
    """Size of one cell of the mask grid, in pixels along the longer side of an image of `size`."""
    return max(size) / GRID


def check_widths(measurements: Sequence[Measurement], file: str) -> list[Finding]:
    """At most one finding `thin_structures`: the fraction of skeleton pixels where masks are thinner than a cell."""
    targets = [target for measurement in measurements for target in measurement.targets]
    skeleton = sum(target.skeleton for target in targets)
    thin = sum(target.thin for target in targets)
    if not skeleton or thin / skeleton <= MAX_THIN:
        return []
    sides = sorted({max(measurement.size) for measurement in measurements if measurement.size})
    at = f"{sides[0]} px" if len(sides) == 1 else f"{sides[0]} to {sides[-1]} px"
    cells = " to ".join(f"{side / GRID:.3g}" for side in dict.fromkeys((sides[0], sides[-1])))
    message = (
        f"{thin / skeleton:.0%} of the skeleton is thinner than one cell of the model's mask grid ({GRID} x {GRID} cells; "
        f"a cell is {cells} px in images of {at})".replace("%", " %")
    )
    worst = sorted(measurements, key=lambda measurement: -sum(target.thin for target in measurement.targets))
    return [finding("thin_structures", file, "", message, samples=[measurement.id for measurement in worst[:5]])]
