"""Distances between the boundaries of two masks: HD, HD95, ASSD and normalized surface distance.

Each metric uses the distances from the boundary pixels of one mask (`Shape.boundary`) to the nearest boundary pixel of
the other mask, center to center, in pixels or, with a pixel spacing, in mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vesalius.evaluation.empty import Case, apply_rule, case_of
from vesalius.evaluation.shape import Shape, distances_to, points_of
from vesalius.masks import Size

Spacing = tuple[float, float]
"""Height and width of a pixel: the (row, column) spacing."""


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distance of each boundary pixel to the other boundary; both arrays are empty if a mask is empty."""

    from_target: Float[np.ndarray, " n"]
    """Distances from the boundary of the ground truth to that of the prediction."""
    from_prediction: Float[np.ndarray, " m"]
    diagonal: float
    """Diagonal of the image in the same unit, used as the distance to an empty mask."""
    case: Case

    def scaled(self, factor: float) -> SurfaceDistances:
        """The distances multiplied by `factor`, such as the pixel spacing in mm."""
        return SurfaceDistances(
            self.from_target * factor, self.from_prediction * factor, self.diagonal * factor, self.case
        )


def surface_distances(
    target: Shape, prediction: Shape, *, spacing: Spacing = (1.0, 1.0), size: Size | None = None
) -> SurfaceDistances:
    """Distances between two boundaries in both directions, in the unit of `spacing`; (1, 1) gives pixels.

    `size` is the (h, w) of the image if the masks are crops of it.
    """
    rows, columns = size or target.mask.shape
    diagonal = float(np.hypot(rows * spacing[0], columns * spacing[1]))
    case = case_of(target_empty=target.empty, prediction_empty=prediction.empty)
    if case != "both":
        return SurfaceDistances(np.zeros(0), np.zeros(0), diagonal, case)
    one, other = points_of(target.boundary), points_of(prediction.boundary)
    return SurfaceDistances(distances_to(other, one, spacing), distances_to(one, other, spacing), diagonal, case)


def hd(distances: SurfaceDistances) -> float | None:
    """Hausdorff distance: the largest distance; the image diagonal if one mask is empty, None if both are.

    Source: Huttenlocher et al. 1993, Comparing images using the Hausdorff distance, IEEE PAMI 15(9).
    """
    return apply_rule("hd", distances.case, lambda: _percentile(distances, 100), diagonal=distances.diagonal)


def hd95(distances: SurfaceDistances) -> float | None:
    """HD95: the larger of both directions' 95th percentile distances; empty masks as in `hd`.

    The percentile is interpolated linearly. Same definition as MONAI and Maier-Hein et al. 2024, Metrics reloaded, Nat.
    Methods 21. The library surface-distance weights distances by contour length. MedPy and panoptica pool both
    directions, so that a long accurate boundary hides a short inaccurate one.
    """
    return apply_rule("hd95", distances.case, lambda: _percentile(distances, 95), diagonal=distances.diagonal)


def assd(distances: SurfaceDistances) -> float | None:
    """Average symmetric surface distance: mean over the pooled distances of both directions; empty masks as in `hd`.

    Same definition as MONAI and Metrics reloaded. MedPy and panoptica average the two directed means.
    """

    def mean() -> float:
        total = distances.from_target.sum() + distances.from_prediction.sum()
        return float(total / (len(distances.from_target) + len(distances.from_prediction)))

    return apply_rule("assd", distances.case, mean, diagonal=distances.diagonal)


def nsd(distances: SurfaceDistances, tolerance: float) -> float | None:
    """Normalized surface distance (surface Dice): fraction of boundary pixels with a distance of at most `tolerance`.

    In [0, 1]; empty masks: see `EMPTY`. Source: Nikolov et al. 2021, J. Med. Internet Res. 23(7). Each boundary pixel
    has weight 1, as in MONAI; the library surface-distance weights by contour length.
    """

    def fraction() -> float:
        near = (distances.from_target <= tolerance).sum() + (distances.from_prediction <= tolerance).sum()
        return float(near) / (len(distances.from_target) + len(distances.from_prediction))

    return apply_rule("nsd", distances.case, fraction)


def _percentile(distances: SurfaceDistances, percent: float) -> float:
    return float(max(np.percentile(each, percent) for each in (distances.from_target, distances.from_prediction)))
