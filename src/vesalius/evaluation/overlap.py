"""Overlap of two masks: how many pixels they share, and what follows from the counts.

A ratio such as Dice is 0 / 0 when a mask is empty. What it is then stands in one table, `EMPTY`, used by
every metric here and printed in docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool


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


def confusion(truth: Bool[np.ndarray, "h w"], guess: Bool[np.ndarray, "h w"]) -> Confusion:
    """Counts of the four outcomes over all pixels.

    Raises ValueError unless both are bool (h, w) of one size with at least one pixel.

    >>> truth, guess = np.zeros((2, 3), bool), np.zeros((2, 3), bool)
    >>> truth[:, :2] = guess[:, 1:] = True
    >>> confusion(truth, guess)
    Confusion(tp=2, fp=2, fn=2, tn=0)
    """
    for name, mask in (("truth", truth), ("guess", guess)):
        if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
            raise ValueError(
                f"{name} must be bool (h, w) with at least one pixel; got {mask.dtype} {mask.shape}"
            )
    if truth.shape != guess.shape:
        raise ValueError(f"truth and guess must have one size; got {truth.shape} and {guess.shape}")
    true, guessed, both = (int(np.count_nonzero(mask)) for mask in (truth, guess, truth & guess))
    return Confusion(tp=both, fp=guessed - both, fn=true - both, tn=truth.size - true - guessed + both)


EMPTY: Mapping[tuple[bool, bool], Mapping[str, float | None]] = {
    # (truth is empty, guess is empty): nothing there and nothing said; a false alarm; a total miss
    (True, True): {"dice": 1.0, "iou": 1.0, "precision": 1.0, "recall": 1.0},
    (True, False): {"dice": 0.0, "iou": 0.0, "precision": 0.0, "recall": None},
    (False, True): {"dice": 0.0, "iou": 0.0, "precision": 0.0, "recall": 0.0},
}
"""The value of each metric where a mask is empty; None: not defined, left out of the mean and counted."""


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


def accuracy(counts: Confusion) -> float | None:
    """Share of all pixels that are right, in [0, 1]; always defined.

    It flatters thin structures: an empty mask has 0.97 where vessels fill 3 % of the image.
    """
    return _ratio("accuracy", counts.tp + counts.tn, counts.tp + counts.fp + counts.fn + counts.tn, counts)


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
    """The ratio, or the value of `EMPTY` where a mask is empty and the table names this metric."""
    case = (counts.tp + counts.fn == 0, counts.tp + counts.fp == 0)
    values = EMPTY.get(case, {})
    return values[metric] if metric in values else numerator / denominator
