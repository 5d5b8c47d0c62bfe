"""Overlap of two masks: how many pixels they share, and what follows from the counts.

A ratio such as Dice is 0 / 0 when a mask is empty. What it is then stands in the table of `empty`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from vesalius.evaluation.empty import Case, case_of, settle


@dataclass(frozen=True)
class Confusion:
    """Pixel counts of a predicted mask against the true one."""

    tp: int
    """In both."""
    fp: int
    """Predicted only."""
    fn: int
    """In the truth only."""
    tn: int
    """In neither."""

    @property
    def case(self) -> Case:
        """Which of the masks are empty."""
        return case_of(truth_empty=self.tp + self.fn == 0, guess_empty=self.tp + self.fp == 0)


def confusion(
    truth: Bool[np.ndarray, "h w"],
    guess: Bool[np.ndarray, "h w"],
    within: Bool[np.ndarray, "h w"] | None = None,
) -> Confusion:
    """Counts of the four outcomes over all pixels, or over those of the region `within`.

    Raises ValueError unless all are bool (h, w) of one size, with at least one pixel to count.

    >>> truth, guess = np.zeros((2, 3), bool), np.zeros((2, 3), bool)
    >>> truth[:, :2] = guess[:, 1:] = True
    >>> confusion(truth, guess)
    Confusion(tp=2, fp=2, fn=2, tn=0)
    """
    check_masks(truth, guess, within)
    if within is None:
        both, total = truth & guess, truth.size
    else:
        truth, guess = truth & within, guess & within
        both, total = truth & guess, int(np.count_nonzero(within))
    true, guessed, shared = (int(np.count_nonzero(mask)) for mask in (truth, guess, both))
    return Confusion(tp=shared, fp=guessed - shared, fn=true - shared, tn=total - true - guessed + shared)


def check_masks(truth: np.ndarray, guess: np.ndarray, within: np.ndarray | None = None) -> None:
    """Raise ValueError unless all are bool (h, w) of one size, with at least one pixel to count."""
    masks = {"truth": truth, "guess": guess} | ({} if within is None else {"within": within})
    for name, mask in masks.items():
        if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
            raise ValueError(
                f"{name} must be bool (h, w) with at least one pixel; got {mask.dtype} {mask.shape}"
            )
        if mask.shape != truth.shape:
            raise ValueError(f"truth and {name} must have one size; got {truth.shape} and {mask.shape}")
    if within is not None and not within.any():
        raise ValueError("the region within which to count has no pixel")


def dice(counts: Confusion) -> float | None:
    """Twice the shared pixels over the pixels of both masks, in [0, 1]; empty masks: `EMPTY`. Dice 1945."""
    return _ratio("dice", 2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn, counts)


def iou(counts: Confusion) -> float | None:
    """Shared pixels over the pixels of the union, in [0, 1]; empty masks: `EMPTY`. Jaccard 1912."""
    return _ratio("iou", counts.tp, counts.tp + counts.fp + counts.fn, counts)


def precision(counts: Confusion) -> float | None:
    """Share of the predicted pixels that are true, in [0, 1]; empty masks: `EMPTY`."""
    return _ratio("precision", counts.tp, counts.tp + counts.fp, counts)


def recall(counts: Confusion) -> float | None:
    """Share of the true pixels that were predicted, in [0, 1]; None for a false alarm; others: `EMPTY`."""
    return _ratio("recall", counts.tp, counts.tp + counts.fn, counts)


def specificity(counts: Confusion) -> float | None:
    """Share of the background that was left alone, in [0, 1]; None where the truth leaves no background.

    It knows nothing of what was missed: the empty mask has 1, as it must.
    """
    return _ratio("specificity", counts.tn, counts.tn + counts.fp, counts)


def accuracy(counts: Confusion) -> float | None:
    """Share of all pixels that are right, in [0, 1]; always defined.

    It flatters thin structures: an empty mask has 0.97 where vessels fill 3 % of the image.
    """
    return _ratio("accuracy", counts.tp + counts.tn, counts.tp + counts.fp + counts.fn + counts.tn, counts)


def balanced_accuracy(counts: Confusion) -> float | None:
    """Mean of recall and specificity, in [0, 1]; of one of them where the truth lacks the other's pixels.

    A total miss has 0.5, or 0 where all pixels are true; a false alarm its specificity. Source: Brodersen et
    al. 2010, ICPR; where a class is absent, scikit-learn's `balanced_accuracy_score`.
    """

    def mean() -> float | None:
        found = recall(counts) if counts.tp + counts.fn else None
        shares = [share for share in (found, specificity(counts)) if share is not None]
        return sum(shares) / len(shares)

    return settle("balanced_accuracy", counts.case, mean)


METRICS: Mapping[str, Callable[[Confusion], float | None]] = {
    "dice": dice,
    "iou": iou,
    "precision": precision,
    "recall": recall,
    "accuracy": accuracy,
}


def score(truth: Bool[np.ndarray, "h w"], guess: Bool[np.ndarray, "h w"]) -> dict[str, float | None]:
    """Every metric of `METRICS` for one pair of masks; ValueError as in `confusion`."""
    counts = confusion(truth, guess)
    return {name: metric(counts) for name, metric in METRICS.items()}


def _ratio(metric: str, numerator: int, denominator: int, counts: Confusion) -> float | None:
    return settle(metric, counts.case, lambda: numerator / denominator if denominator else None)


@dataclass
class ReferringTally:
    """gIoU and cIoU of referring segmentation over the samples added so far; its size does not grow.

    A phrase that names nothing in the image is a sample like any other. Source: Liu et al. 2023, GRES:
    Generalized Referring Expression Segmentation, CVPR (arXiv:2306.00968), section 3.

    >>> tally = ReferringTally()
    >>> tally.add(Confusion(tp=1, fp=1, fn=2, tn=5))  # IoU 1 / 4
    >>> tally.add(Confusion(tp=6, fp=0, fn=0, tn=3))  # IoU 1
    >>> tally.giou, tally.ciou
    (0.625, 0.7)
    """

    samples: int = 0
    intersection: int = 0
    """Pixels, over all samples."""
    union: int = 0
    iou_sum: float = 0.0

    def add(self, counts: Confusion) -> None:
        """Count one more sample."""
        self.samples += 1
        self.intersection += counts.tp
        self.union += counts.tp + counts.fp + counts.fn
        self.iou_sum += iou(counts) or 0.0

    @property
    def giou(self) -> float | None:
        """Mean of the samples' IoU: 1 for an absent object left alone, 0 for a false alarm; None of none."""
        return self.iou_sum / self.samples if self.samples else None

    @property
    def ciou(self) -> float | None:
        """Shared pixels of all samples over the pixels of all unions: large objects weigh more.

        An absent object adds what was wrongly said to the unions. 1 where all unions are empty; None of none.
        """
        if not self.samples:
            return None
        return self.intersection / self.union if self.union else 1.0
