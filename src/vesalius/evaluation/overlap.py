"""Overlap metrics of two masks, from their confusion counts.

With empty masks a ratio such as Dice can be 0 / 0; the table `empty.EMPTY` defines its value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from vesalius.evaluation.empty import Case, apply_rule, case_of


@dataclass(frozen=True)
class Confusion:
    """Pixel counts of a predicted mask against the ground truth."""

    tp: int
    """Pixels in both masks."""
    fp: int
    """Pixels in the prediction only."""
    fn: int
    """Pixels in the ground truth only."""
    tn: int
    """Pixels in neither mask."""

    @property
    def case(self) -> Case:
        """Which of the two masks are empty, as a case of `EMPTY`."""
        return case_of(target_empty=self.tp + self.fn == 0, prediction_empty=self.tp + self.fp == 0)


def confusion(
    target: Bool[np.ndarray, "h w"], prediction: Bool[np.ndarray, "h w"], within: Bool[np.ndarray, "h w"] | None = None
) -> Confusion:
    """Confusion counts over all pixels, or over the pixels of the region `within`.

    Raises ValueError unless all masks are bool (h, w) of the same size, with at least one pixel to count.

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
    n_target, n_predicted, tp = (int(np.count_nonzero(mask)) for mask in (target, prediction, both))
    return Confusion(tp=tp, fp=n_predicted - tp, fn=n_target - tp, tn=total - n_target - n_predicted + tp)


def check_masks(target: np.ndarray, prediction: np.ndarray, within: np.ndarray | None = None) -> None:
    """Raise ValueError unless all masks are bool (h, w) of the same size, with at least one pixel to count."""
    masks = {"target": target, "prediction": prediction} | ({} if within is None else {"within": within})
    for name, mask in masks.items():
        if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
            raise ValueError(f"{name} must be bool (h, w) with at least one pixel; got {mask.dtype} {mask.shape}")
        if mask.shape != target.shape:
            raise ValueError(f"target and {name} must have the same size; got {target.shape} and {mask.shape}")
    if within is not None and not within.any():
        raise ValueError("the region `within` has no pixel")


def dice(counts: Confusion) -> float | None:
    """Dice coefficient, 2 tp / (2 tp + fp + fn), in [0, 1]; empty masks: see `EMPTY`. Source: Dice 1945."""
    return _ratio("dice", 2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn, counts)


def iou(counts: Confusion) -> float | None:
    """Intersection over union, in [0, 1]; empty masks: see `EMPTY`. Source: Jaccard 1912."""
    return _ratio("iou", counts.tp, counts.tp + counts.fp + counts.fn, counts)


def precision(counts: Confusion) -> float | None:
    """Fraction of the predicted pixels that lie in the ground truth, in [0, 1]; empty masks: see `EMPTY`."""
    return _ratio("precision", counts.tp, counts.tp + counts.fp, counts)


def recall(counts: Confusion) -> float | None:
    """Fraction of the ground truth pixels that were predicted, in [0, 1]; empty masks: see `EMPTY`."""
    return _ratio("recall", counts.tp, counts.tp + counts.fn, counts)


def specificity(counts: Confusion) -> float | None:
    """Fraction of background pixels that were not predicted, in [0, 1]; None if the ground truth has no background.

    Missed pixels do not lower it: an empty prediction scores 1.
    """
    return _ratio("specificity", counts.tn, counts.tn + counts.fp, counts)


def accuracy(counts: Confusion) -> float | None:
    """Fraction of all pixels that are correct, in [0, 1]; always defined.

    It is misleadingly high for thin structures: if vessels fill 3 % of the image, an empty prediction scores 0.97.
    """
    return _ratio("accuracy", counts.tp + counts.tn, counts.tp + counts.fp + counts.fn + counts.tn, counts)


def balanced_accuracy(counts: Confusion) -> float | None:
    """Mean of recall and specificity, in [0, 1]; only one of them if the ground truth has a single class.

    A total miss scores 0.5, or 0 if the ground truth fills the image. A false alarm scores its specificity. Source:
    Brodersen et al. 2010, ICPR; an absent class is handled as in scikit-learn's `balanced_accuracy_score`.
    """

    def mean() -> float | None:
        sensitivity = recall(counts) if counts.tp + counts.fn else None
        rates = [rate for rate in (sensitivity, specificity(counts)) if rate is not None]
        return sum(rates) / len(rates)

    return apply_rule("balanced_accuracy", counts.case, mean)


BASIC_METRICS: Mapping[str, Callable[[Confusion], float | None]] = {
    "dice": dice,
    "iou": iou,
    "precision": precision,
    "recall": recall,
    "accuracy": accuracy,
}
"""Metrics of this module's `score`: a subset of `metrics.METRICS`, fast enough for validation during training."""


def score(target: Bool[np.ndarray, "h w"], prediction: Bool[np.ndarray, "h w"]) -> dict[str, float | None]:
    """Every metric of `BASIC_METRICS` for one pair of masks; ValueError as in `confusion`."""
    counts = confusion(target, prediction)
    return {name: metric(counts) for name, metric in BASIC_METRICS.items()}


def _ratio(metric: str, numerator: int, denominator: int, counts: Confusion) -> float | None:
    return apply_rule(metric, counts.case, lambda: numerator / denominator if denominator else None)


@dataclass
class ReferringMetrics:
    """gIoU and cIoU of referring segmentation over all samples added so far, in constant memory.

    Samples with an empty ground truth are included. Source: Liu et al. 2023, GRES: Generalized
    Referring Expression Segmentation, CVPR (arXiv:2306.00968), section 3.

    >>> referring = ReferringMetrics()
    >>> referring.add(Confusion(tp=1, fp=1, fn=2, tn=5))  # IoU 1 / 4
    >>> referring.add(Confusion(tp=6, fp=0, fn=0, tn=3))  # IoU 1
    >>> referring.giou, referring.ciou
    (0.625, 0.7)
    """

    samples: int = 0
    intersection: int = 0
    """Pixels of the intersections, summed over all samples."""
    union: int = 0
    iou_sum: float = 0.0

    def add(self, counts: Confusion) -> None:
        """Add the counts of one sample."""
        self.samples += 1
        self.intersection += counts.tp
        self.union += counts.tp + counts.fp + counts.fn
        self.iou_sum += iou(counts) or 0.0

    @property
    def giou(self) -> float | None:
        """Mean IoU over samples; None without samples. Two empty masks have IoU 1, a false alarm 0."""
        return self.iou_sum / self.samples if self.samples else None

    @property
    def ciou(self) -> float | None:
        """Sum of all intersections over the sum of all unions, so large objects weigh more; None without samples.

        A false alarm adds its pixels to the unions. 1 if all unions are empty.
        """
        if not self.samples:
            return None
        return self.intersection / self.union if self.union else 1.0
