"""Calibration and threshold curves of predicted probabilities, from one histogram.

A histogram counts background and foreground pixels by probability; histograms of several images are summed. Bin k holds
EDGES[k - 1] < p <= EDGES[k], so the bins above a threshold are exactly the mask p > threshold, as in
`Prediction.masks`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from vesalius.evaluation.empty import apply_rule, case_of

STEPS = 1000
THRESHOLDS = np.arange(1, STEPS) / STEPS
"""0.001, 0.002 ... 0.999: the thresholds of `curves`."""
EDGES = np.concatenate(
    [
        10.0 ** -(3 + np.arange(170, 0, -1) / 10),  # 1e-20 ... 0.0008
        THRESHOLDS,
        1 - 10.0 ** -(3 + np.arange(1, 51) / 10),  # 0.9992 ... 1 - 1e-8; above that, float32 has only 1
    ]
)
"""Edges of the probability bins: the thresholds, and 10 more per decade towards 0 and 1.

Trained models predict more than 0.999 for half of a vessel's pixels, and less than 0.001 for missed ones. With the
thresholds as the only edges, average precision would be up to 0.1 too low.
"""
BINS = len(EDGES) + 1
_MIDDLES = (np.concatenate([[0], EDGES]) + np.concatenate([EDGES, [1]])) / 2

Histogram = Int[np.ndarray, "2 bins"]
"""Pixel counts per probability bin: background (row 0) and foreground (row 1) of the ground truth."""


def histogram(
    probabilities: Float[np.ndarray, "h w"],
    target: Bool[np.ndarray, "h w"],
    *,
    within: Bool[np.ndarray, "h w"] | None = None,
) -> Histogram:
    """Background and foreground pixel counts per bin, int64 (2, BINS); pixels outside the region `within` are ignored.

    Raises ValueError for arrays of different sizes, masks that are not bool, and probabilities that are NaN or outside
    [0, 1].

    >>> counts = histogram(np.array([[0.2, 0.5, 0.51]]), np.array([[False, True, True]]))
    >>> counts[:, EDGES.searchsorted(0.5) + 1 :].sum(axis=1).tolist()  # above 0.5
    [0, 1]
    """
    masks = [target] if within is None else [target, within]
    if any(mask.dtype != np.bool_ or mask.shape != probabilities.shape for mask in masks):
        found = ", ".join(f"{mask.dtype} {mask.shape}" for mask in masks)
        raise ValueError(f"masks must be bool {probabilities.shape}, like the probabilities; got {found}")
    if within is not None:
        probabilities, target = probabilities[within], target[within]
    # `< 0 or > 1` would accept NaN
    if probabilities.size and not (probabilities.min() >= 0 and probabilities.max() <= 1):
        raise ValueError(f"probabilities must lie in [0, 1]; got {probabilities.min()} to {probabilities.max()}")
    indices = EDGES.searchsorted(probabilities.ravel()) + BINS * target.ravel()
    return np.bincount(indices, minlength=2 * BINS).reshape(2, BINS)


@dataclass(frozen=True, eq=False)
class Curves:
    """Metrics of the mask at each of the `THRESHOLDS`, float64 (999,); empty masks: see `EMPTY`."""

    dice: Float[np.ndarray, " t"]
    iou: Float[np.ndarray, " t"]
    precision: Float[np.ndarray, " t"]
    recall: Float[np.ndarray, " t"]
    """NaN if only the ground truth is empty: recall is then undefined."""


def curves(counts: Histogram) -> Curves:
    """Exact Dice, IoU, precision and recall at all thresholds, since each threshold is a bin edge.

    For a mean over images, average the curves of the images, not their histograms.
    """
    above = counts[:, ::-1].cumsum(axis=1)[:, -2::-1]  # pixels above each edge
    fp, tp = above[:, EDGES.searchsorted(THRESHOLDS)]
    n_target, n_predicted = counts[1].sum(), tp + fp
    return Curves(
        dice=_ratios("dice", 2 * tp, n_target + n_predicted, n_target, n_predicted),
        iou=_ratios("iou", tp, n_target + n_predicted - tp, n_target, n_predicted),
        precision=_ratios("precision", tp, n_predicted, n_target, n_predicted),
        recall=_ratios("recall", tp, np.full_like(tp, n_target), n_target, n_predicted),
    )


def _ratios(
    metric: str, numerator: np.ndarray, denominator: np.ndarray, n_target: int, n_predicted: np.ndarray
) -> np.ndarray:
    """Ratio at each threshold; for empty masks the value in `EMPTY`."""
    values = np.full(len(n_predicted), np.nan)
    np.divide(numerator, denominator, out=values, where=denominator > 0)
    for prediction_empty in (False, True):
        case = case_of(target_empty=not n_target, prediction_empty=prediction_empty)
        if case != "both":
            value = apply_rule(metric, case, lambda: None)
            values[(n_predicted == 0) == prediction_empty] = np.nan if value is None else value
    return values


def average_precision(counts: Histogram) -> float | None:
    """Area under the precision-recall curve as a step sum, in [0, 1]; None if the ground truth is empty.

    The sum of (R_k - R_(k-1)) P_k over thresholds without interpolation, as in scikit-learn and torchmetrics. Within a
    bin, the precision is taken at the middle foreground pixel, with half of the background pixels ranked above it. The
    result is within 0.001 of torchmetrics for logits with a standard deviation of 0.2 to 30.
    """
    background, foreground = counts[:, ::-1]
    if not foreground.any():
        return None
    total = background + foreground
    before, above = foreground.cumsum() - foreground, total.cumsum() - total
    middle = (foreground + 1) / 2
    precision = (before + middle) / (above + middle + background / 2)
    return float((foreground * precision).sum() / foreground.sum())


def brier_score(counts: Histogram) -> float | None:
    """Mean of (probability - target)^2 over all pixels, in [0, 1], lower is better; None without pixels.

    Within 0.001 of the exact value, since each probability is replaced by the midpoint of its bin. Like accuracy, it is
    misleadingly good for thin structures. Source: Brier 1950, Verification of forecasts expressed in terms of
    probability, Mon. Weather Rev. 78(1).
    """
    total = counts.sum()
    if not total:
        return None
    return float((counts[0] @ _MIDDLES**2 + counts[1] @ (1 - _MIDDLES) ** 2) / total)


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of a reliability diagram: the pixels with a probability in (low, high]."""

    low: float
    high: float
    pixels: int
    mean_probability: float | None
    """Mean predicted probability; None without pixels."""
    positive_fraction: float | None
    """Fraction of the pixels that are foreground in the ground truth; None without pixels."""


def reliability(counts: Histogram, n: int = 10) -> list[ReliabilityBin]:
    """Reliability diagram with `n` bins of equal width; ValueError unless n divides 1000.

    `mean_probability` is within 0.0005 of the exact mean, `positive_fraction` is exact. Probabilities are those
    of the foreground, not of the more probable class. The first bin includes 0.
    """
    if n < 1 or STEPS % n:
        raise ValueError(
            f"{STEPS} thresholds cannot be divided into {n} bins of equal width; choose a divisor of {STEPS}"
        )
    ends = np.arange(n + 1) / n
    starts = [0, *(EDGES.searchsorted(ends[1:-1]) + 1)]
    background, foreground = np.add.reduceat(counts, starts, axis=1).tolist()
    sums = np.add.reduceat(counts.sum(axis=0) * _MIDDLES, starts).tolist()
    rows = []
    for k in range(n):
        pixels = background[k] + foreground[k]
        mean_probability, positive_fraction = (sums[k] / pixels, foreground[k] / pixels) if pixels else (None, None)
        rows.append(ReliabilityBin(float(ends[k]), float(ends[k + 1]), pixels, mean_probability, positive_fraction))
    return rows


def expected_calibration_error(counts: Histogram) -> float | None:
    """Expected calibration error over 10 bins, in [0, 1]; None without pixels.

    Mean over all pixels of |mean_probability - positive_fraction| of the pixel's reliability bin, within 0.0005 of the
    exact value. Source: Naeini et al. 2015, AAAI; Guo et al. 2017, On calibration of modern neural networks, ICML; the
    L1 norm of torchmetrics' `binary_calibration_error`.
    """
    gaps, total = 0.0, 0
    for row in reliability(counts):
        if row.mean_probability is not None and row.positive_fraction is not None:
            gaps += row.pixels * abs(row.mean_probability - row.positive_fraction)
            total += row.pixels
    return gaps / total if total else None
