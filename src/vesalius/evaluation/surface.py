"""Distances between the boundaries of two masks: HD, HD95, ASSD and normalized surface distance.

All from one list of distances, measured once: from each boundary pixel of either mask (`Shape.boundary`) to the
nearest one of the other, center to center, in pixels or, with the spacing of rows and columns, in mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vesalius.evaluation.empty import Case, case_of, settle
from vesalius.evaluation.shape import Shape, distances_to, points_of
from vesalius.masks import Size

Spacing = tuple[float, float]
"""Height and width of a pixel, which are the steps from row to row and from column to column."""


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """One distance for each boundary pixel; both lists are empty unless both masks have pixels."""

    from_truth: Float[np.ndarray, " n"]
    """From the truth's boundary to that of the prediction."""
    from_guess: Float[np.ndarray, " m"]
    diagonal: float
    """Of the image, in the same unit: the distance to a mask that is empty."""
    case: Case

    def scaled(self, factor: float) -> SurfaceDistances:
        """The same in a unit `factor` times smaller: square pixels to mm."""
        return SurfaceDistances(
            self.from_truth * factor, self.from_guess * factor, self.diagonal * factor, self.case
        )


def surface_distances(
    truth: Shape, guess: Shape, *, spacing: Spacing = (1.0, 1.0), size: Size | None = None
) -> SurfaceDistances:
    """Distances both ways between two boundaries, in the unit of `spacing`: (1, 1) for pixels.

    `size` is the (h, w) of the image where the masks are cut from it.
    """
    rows, columns = size or truth.mask.shape
    diagonal = float(np.hypot(rows * spacing[0], columns * spacing[1]))
    case = case_of(truth_empty=truth.empty, guess_empty=guess.empty)
    if case != "both":
        return SurfaceDistances(np.zeros(0), np.zeros(0), diagonal, case)
    true, guessed = points_of(truth.boundary), points_of(guess.boundary)
    return SurfaceDistances(
        distances_to(guessed, true, spacing), distances_to(true, guessed, spacing), diagonal, case
    )


def hd(distances: SurfaceDistances) -> float | None:
    """The largest of all distances; one mask empty: the image diagonal; both: None.

    Source: Huttenlocher et al. 1993, Comparing images using the Hausdorff distance, IEEE PAMI 15(9).
    """
    return settle("hd", distances.case, lambda: _percentile(distances, 100), diagonal=distances.diagonal)


def hd95(distances: SurfaceDistances) -> float | None:
    """The 95th percentile of the distances from each mask, the larger of the two; empty masks as `hd`.

    Between two ranks the percentile is interpolated. So has MONAI it, and Maier-Hein et al. 2024, Metrics
    reloaded, Nat. Methods 21; surface-distance takes the larger one too, but weighs by contour length. MedPy
    and panoptica take one percentile of both lists together, which hides a bad one behind a longer good one.
    """
    return settle("hd95", distances.case, lambda: _percentile(distances, 95), diagonal=distances.diagonal)


def assd(distances: SurfaceDistances) -> float | None:
    """Mean of all distances, both ways together; one mask empty: the image diagonal; both: None.

    So has MONAI it, and Metrics reloaded. MedPy and panoptica take the mean of the two means instead.
    """

    def mean() -> float:
        total = distances.from_truth.sum() + distances.from_guess.sum()
        return float(total / (len(distances.from_truth) + len(distances.from_guess)))

    return settle("assd", distances.case, mean, diagonal=distances.diagonal)


def nsd(distances: SurfaceDistances, tolerance: float) -> float | None:
    """Share of all boundary pixels whose distance is at most `tolerance`, in [0, 1]; empty masks as Dice.

    The normalized surface distance, or surface Dice, of Nikolov et al. 2021, J. Med. Internet Res. 23(7),
    with boundary pixels for lengths as MONAI has it; surface-distance weighs by contour length.
    """

    def share() -> float:
        near = (distances.from_truth <= tolerance).sum() + (distances.from_guess <= tolerance).sum()
        return float(near) / (len(distances.from_truth) + len(distances.from_guess))

    return settle("nsd", distances.case, share)


def _percentile(distances: SurfaceDistances, percent: float) -> float:
    return float(max(np.percentile(each, percent) for each in (distances.from_truth, distances.from_guess)))
