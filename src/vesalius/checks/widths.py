"""Width of masks along their skeleton, compared with one cell of the model's mask grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from vesalius.checks.findings import finding
from vesalius.checks.measurements import Measurement
from vesalius.masks import Size, dilate
from vesalius.types import Finding

GRID = 256
"""Side of SAM 2's low-resolution masks at its input of 1024 x 1024; they are upsampled to the image."""

MAX_THIN = 0.1
"""Share of thin skeleton pixels above which a dataset gets a warning."""


def skeleton_widths(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, " n"]:
    """Width in pixels at each skeleton pixel of a mask; empty for an empty mask.

    A straight bar of n pixels has the width n. The distance from a skeleton pixel to the nearest background pixel is exact
    only to one pixel, because a bar of even width has no pixel on its axis. Therefore it is measured again half a pixel
    further from that background pixel, and the larger value counts.
    """
    # both take 0.3 s to import and are only needed here
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
    """Side of one cell of the mask grid in pixels of an image of `size`, along its longer side."""
    return max(size) / GRID


def check_widths(measurements: Sequence[Measurement], file: str) -> list[Finding]:
    """Finding `thin_structures` about a split: the share of its skeleton pixels that are thinner than a cell."""
    targets = [target for measurement in measurements for target in measurement.targets]
    skeleton = sum(target.skeleton for target in targets)
    thin = sum(target.thin for target in targets)
    if not skeleton or thin / skeleton <= MAX_THIN:
        return []
    sides = sorted({max(measurement.size) for measurement in measurements if measurement.size})
    at = f"{sides[0]} px" if len(sides) == 1 else f"{sides[0]} to {sides[-1]} px"
    cells = " to ".join(f"{side / GRID:.3g}" for side in dict.fromkeys((sides[0], sides[-1])))
    message = (
        f"{thin / skeleton:.0%} of the skeleton is thinner than one mask cell at {at} ({cells} px, of the official "
        f"grid of {GRID} x {GRID} cells over the image)".replace("%", " %")
    )
    worst = sorted(measurements, key=lambda measurement: -sum(target.thin for target in measurement.targets))
    return [
        finding("thin_structures", file, "", message, samples=[measurement.id for measurement in worst[:5]])
    ]
