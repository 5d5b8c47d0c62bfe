"""Distances between the boundaries of two masks: HD, HD95, ASSD and normalized surface distance.

All from one list of distances, measured once: from each boundary pixel of either mask (`Shape.boundary`) to the
nearest one of the other, center to center, in pixels or, with the spacing of rows and columns, in mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vesalius.evaluation.empty import Case, apply_rule, case_of
from vesalius.evaluation.shape import Shape, distances_to, points_of
from vesalius.masks import Size

Spacing = tuple[float, float]
"""Height and width of a pixel, which are the steps from row to row and from column to column."""


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """One distance for each boundary pixel; both lists are empty unless both masks have pixels."""

    from_target: Float[np.ndarray, " n"]
    """From the target's boundary to that of the prediction."""
    from_prediction: Float[np.ndarray, " m"]
    diagonal: float
    """Of the image, in the same unit: the distance to a mask that is empty."""
    case: Case

    def scaled(self, factor: float) -> SurfaceDistances:
        """The same in a unit `factor` times smaller: square pixels to mm."""
        return SurfaceDistances(
            self.from_target * factor, self.from_prediction * factor, self.diagonal * factor, self.case
        )


def surface_distances(
    target: Shape, prediction: Shape, *, spacing: Spacing = (1.0, 1.0), size: Size | None = None
) -> SurfaceDistances:
    """Distances both ways between two boundaries, in the unit of `spacing`: (1, 1) for pixels.

    `size` is the (h, w) of the image where the masks are cut from it.
    """
    rows, columns = size or target.mask.shape
    diagonal = float(np.hypot(rows * spacing[0], columns * spacing[1]))
    case = case_of(target_empty=target.empty, prediction_empty=prediction.empty)
    if case != "both":
        return SurfaceDistances(np.zeros(0), np.zeros(0), diagonal, case)
    true, guessed = points_of(target.boundary), points_of(prediction.boundary)
    return SurfaceDistances(
        distances_to(guessed, true, spacing), distances_to(true, guessed, spacing), diagonal, case
    )


def hd(distances: SurfaceDistances) -> float | None:
    """The largest of all distances; one mask empty: the image diagonal; both: None.

    Source: Huttenlocher et al. 1993, Comparing images using the Hausdorff distance, IEEE PAMI 15(9).
    """
    return apply_rule("hd", distances.case, lambda: _percentile(distances, 100), diagonal=distances.diagonal)


def hd95(distances: SurfaceDistances) -> float | None:
    """The 95th percentile of the distances from each mask, the larger of the two; empty masks as `hd`.

    Between two ranks the percentile is interpolated. So has MONAI it, and Maier-Hein et al. 2024, Metrics
    reloaded, Nat. Methods 21; surface-distance takes the larger one too, but weighs by contour length. MedPy
    and panoptica take one percentile of both lists together, which hides a bad one behind a longer good one.
    """
    return apply_rule("hd95", distances.case, lambda: _percentile(distances, 95), diagonal=distances.diagonal)


def assd(distances: SurfaceDistances) -> float | None:
    """Mean of all distances, both ways together; one mask empty: the image diagonal; both: None.

    So has MONAI it, and Metrics reloaded. MedPy and panoptica take the mean of the two means instead.
    """

    def mean() -> float:
        total = distances.from_target.sum() + distances.from_prediction.sum()
        return float(total / (len(distances.from_target) + len(distances.from_prediction)))

    return apply_rule("assd", distances.case, mean, diagonal=distances.diagonal)


def nsd(distances: SurfaceDistances, tolerance: float) -> float | None:
    """Share of all boundary pixels whose distance is at most `tolerance`, in [0, 1]; empty masks as Dice.

    The normalized surface distance, or surface Dice, of Nikolov et al. 2021, J. Med. Internet Res. 23(7),
    with boundary pixels for lengths as MONAI has it; surface-distance weighs by contour length.
    """

    def share() -> float:
        near = (distances.from_target <= tolerance).sum() + (distances.from_prediction <= tolerance).sum()
        return float(near) / (len(distances.from_target) + len(distances.from_prediction))

    return apply_rule("nsd", distances.case, share)


def _percentile(distances: SurfaceDistances, percent: float) -> float:
    return float(
        max(np.percentile(each, percent) for each in (distances.from_target, distances.from_prediction))
    )
