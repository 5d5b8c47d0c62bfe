"""Overlap of two masks: how many pixels they share, and what follows from the counts.

A ratio such as Dice is 0 / 0 when a mask is empty. What it is then stands in the table of `empty`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from vesalius.evaluation.empty import Case, apply_rule, case_of


@dataclass(frozen=True)
class Confusion:
    """Pixel counts of a predicted mask against the true one."""

    tp: int
    """In both."""
    fp: int
    """Predicted only."""
    fn: int
    """In the target only."""
    tn: int
    """In neither."""

    @property
    def case(self) -> Case:
        """Which of the masks are empty."""
        return case_of(target_empty=self.tp + self.fn == 0, prediction_empty=self.tp + self.fp == 0)


def confusion(
    target: Bool[np.ndarray, "h w"],
    prediction: Bool[np.ndarray, "h w"],
    within: Bool[np.ndarray, "h w"] | None = None,
) -> Confusion:
    """Counts of the four outcomes over all pixels, or over those of the region `within`.

    Raises ValueError unless all are bool (h, w) of one size, with at least one pixel to count.

    >>> target, prediction = np.zeros((2, 3), bool), np.zeros((2, 3), bool)
    >>> target[:, :2] = prediction[:, 1:] = True
    >>> confusion(target, prediction)
    Confusion(tp=2, fp=2, fn=2, tn=0)
    """
    check_masks(target, prediction, within)
    if within is None:
        both, total = target & prediction, target.size
    else:
        target, prediction = target & within, prediction & within
        both, total = target & prediction, int(np.count_nonzero(within))
    true, guessed, shared = (int(np.count_nonzero(mask)) for mask in (target, prediction, both))
    return Confusion(tp=shared, fp=guessed - shared, fn=true - shared, tn=total - true - guessed + shared)


def check_masks(target: np.ndarray, prediction: np.ndarray, within: np.ndarray | None = None) -> None:
    """Raise ValueError unless all are bool (h, w) of one size, with at least one pixel to count."""
    masks = {"target": target, "prediction": prediction} | ({} if within is None else {"within": within})
    for name, mask in masks.items():
        if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
            raise ValueError(
                f"{name} must be bool (h, w) with at least one pixel; got {mask.dtype} {mask.shape}"
            )
        if mask.shape != target.shape:
            raise ValueError(f"target and {name} must have one size; got {target.shape} and {mask.shape}")
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
    """Share of the background that was left alone, in [0, 1]; None where the target leaves no background.

    It knows nothing of what was missed: the empty mask has 1, as it must.
    """
    return _ratio("specificity", counts.tn, counts.tn + counts.fp, counts)


def accuracy(counts: Confusion) -> float | None:
    """Share of all pixels that are right, in [0, 1]; always defined.

    It flatters thin structures: an empty mask has 0.97 where vessels fill 3 % of the image.
    """
    return _ratio("accuracy", counts.tp + counts.tn, counts.tp + counts.fp + counts.fn + counts.tn, counts)


def balanced_accuracy(counts: Confusion) -> float | None:
    """Mean of recall and specificity, in [0, 1]; of one of them where the target lacks the other's pixels.

    A total miss has 0.5, or 0 where all pixels are true; a false alarm its specificity. Source: Brodersen et
    al. 2010, ICPR; where a class is absent, scikit-learn's `balanced_accuracy_score`.
    """

    def mean() -> float | None:
        found = recall(counts) if counts.tp + counts.fn else None
        shares = [share for share in (found, specificity(counts)) if share is not None]
        return sum(shares) / len(shares)

    return apply_rule("balanced_accuracy", counts.case, mean)


BASIC_METRICS: Mapping[str, Callable[[Confusion], float | None]] = {
    "dice": dice,
    "iou": iou,
    "precision": precision,
    "recall": recall,
    "accuracy": accuracy,
}


def score(target: Bool[np.ndarray, "h w"], prediction: Bool[np.ndarray, "h w"]) -> dict[str, float | None]:
    """Every metric of `BASIC_METRICS` for one pair of masks; ValueError as in `confusion`."""
    counts = confusion(target, prediction)
    return {name: metric(counts) for name, metric in BASIC_METRICS.items()}


def _ratio(metric: str, numerator: int, denominator: int, counts: Confusion) -> float | None:
    return apply_rule(metric, counts.case, lambda: numerator / denominator if denominator else None)


@dataclass
class ReferringMetrics:
    """gIoU and cIoU of referring segmentation over the samples added so far; its size does not grow.

    A phrase that names nothing in the image is a sample like any other. Source: Liu et al. 2023, GRES:
    Generalized Referring Expression Segmentation, CVPR (arXiv:2306.00968), section 3.

    >>> referring = ReferringMetrics()
    >>> referring.add(Confusion(tp=1, fp=1, fn=2, tn=5))  # IoU 1 / 4
    >>> referring.add(Confusion(tp=6, fp=0, fn=0, tn=3))  # IoU 1
    >>> referring.giou, referring.ciou
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
