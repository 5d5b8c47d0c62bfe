"""Distances between the boundaries of two masks: HD, HD95, ASSD and normalized surface distance.

All use the same distances: from each boundary pixel of either mask (`Shape.boundary`) to the nearest boundary pixel of
the other, center to center, in pixels, or in mm if the spacing of rows and columns is given.
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
    """One distance for each boundary pixel; both lists are empty if either mask is."""

    from_target: Float[np.ndarray, " n"]
    """Distances from the boundary of the ground truth to that of the prediction."""
    from_prediction: Float[np.ndarray, " m"]
    diagonal: float
    """Diagonal of the image in the same unit: the distance to an empty mask."""
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
    return SurfaceDistances(
        distances_to(other, one, spacing), distances_to(one, other, spacing), diagonal, case
    )


def hd(distances: SurfaceDistances) -> float | None:
    """Hausdorff distance: the largest distance. With one empty mask the image diagonal, with two None.

    Source: Huttenlocher et al. 1993, Comparing images using the Hausdorff distance, IEEE PAMI 15(9).
    """
    return apply_rule("hd", distances.case, lambda: _percentile(distances, 100), diagonal=distances.diagonal)


def hd95(distances: SurfaceDistances) -> float | None:
    """The 95th percentile of the distances in each direction, the larger of the two; empty masks as in `hd`.

    The percentile is interpolated linearly. Same definition as MONAI and Maier-Hein et al. 2024, Metrics reloaded, Nat.
    Methods 21. surface-distance also takes the larger one, but weighs distances by contour length. MedPy and panoptica
    take one percentile over both directions together, which hides a bad short boundary behind a good long one.
    """
    return apply_rule("hd95", distances.case, lambda: _percentile(distances, 95), diagonal=distances.diagonal)


def assd(distances: SurfaceDistances) -> float | None:
    """Average symmetric surface distance: the mean of all distances of both directions; empty masks as in `hd`.

    Same definition as MONAI and Metrics reloaded. MedPy and panoptica take the mean of the two directions' means.
    """

    def mean() -> float:
        total = distances.from_target.sum() + distances.from_prediction.sum()
        return float(total / (len(distances.from_target) + len(distances.from_prediction)))

    return apply_rule("assd", distances.case, mean, diagonal=distances.diagonal)


def nsd(distances: SurfaceDistances, tolerance: float) -> float | None:
    """Normalized surface distance (surface Dice): share of boundary pixels with a distance of at most `tolerance`.

    In [0, 1]; empty masks as in Dice. Source: Nikolov et al. 2021, J. Med. Internet Res. 23(7). Boundary length is the
    number of boundary pixels, as in MONAI; surface-distance uses contour length.
    """

    def share() -> float:
        near = (distances.from_target <= tolerance).sum() + (distances.from_prediction <= tolerance).sum()
        return float(near) / (len(distances.from_target) + len(distances.from_prediction))

    return apply_rule("nsd", distances.case, share)


def _percentile(distances: SurfaceDistances, percent: float) -> float:
    return float(
        max(np.percentile(each, percent) for each in (distances.from_target, distances.from_prediction))
    )
