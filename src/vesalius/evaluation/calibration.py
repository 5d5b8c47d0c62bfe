"""From probabilities: are they honest, and what would each threshold give? All from one histogram.

One pass counts the pixels of the background and of the target between each border and the next. Histograms add
up: over images, or over a dataset. Bin k holds BORDERS[k - 1] < p <= BORDERS[k]; so the mask at a threshold,
where p is above it as in `Prediction.masks`, is made of the bins behind that border, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from vesalius.evaluation.empty import apply_rule, case_of

STEPS = 1000
THRESHOLDS = np.arange(1, STEPS) / STEPS
"""0.001, 0.002 ... 0.999: where `curves` are known."""
BORDERS = np.concatenate(
    [
        10.0 ** -(3 + np.arange(170, 0, -1) / 10),  # 1e-20 ... 0.0008
        THRESHOLDS,
        1 - 10.0 ** -(3 + np.arange(1, 51) / 10),  # 0.9992 ... 1 - 1e-8, above which float32 has 1 alone
    ]
)
"""Of the bins: the thresholds, and beyond them 10 a decade towards 0 and 1.

Trained models are so sure that half of a vessel may lie above 0.999, and what they miss below 0.001: with the
thresholds alone the average precision would come out up to 0.1 too low.
"""
BINS = len(BORDERS) + 1
_MIDDLES = (np.concatenate([[0], BORDERS]) + np.concatenate([BORDERS, [1]])) / 2

Histogram = Int[np.ndarray, "2 bins"]
"""Number of pixels in each bin of probability: of the background, and of the target."""


def histogram(
    probabilities: Float[np.ndarray, "h w"],
    target: Bool[np.ndarray, "h w"],
    *,
    within: Bool[np.ndarray, "h w"] | None = None,
) -> Histogram:
    """int64 (2, BINS): pixels of the background and of the target in each bin; `within` counts a region only.

    Raises ValueError for arrays of different sizes, masks that are not bool, and a probability that is not a
    number in [0, 1].

    >>> counts = histogram(np.array([[0.2, 0.5, 0.51]]), np.array([[False, True, True]]))
    >>> counts[:, BORDERS.searchsorted(0.5) + 1 :].sum(axis=1).tolist()  # above 0.5
    [0, 1]
    """
    masks = [target] if within is None else [target, within]
    if any(mask.dtype != np.bool_ or mask.shape != probabilities.shape for mask in masks):
        found = ", ".join(f"{mask.dtype} {mask.shape}" for mask in masks)
        raise ValueError(f"masks must be bool {probabilities.shape}, as the probabilities; got {found}")
    if within is not None:
        probabilities, target = probabilities[within], target[within]
    # not `< 0 or > 1`, which nan passes
    if probabilities.size and not (probabilities.min() >= 0 and probabilities.max() <= 1):
        raise ValueError(
            f"probabilities must lie in [0, 1]; got {probabilities.min()} to {probabilities.max()}"
        )
    places = BORDERS.searchsorted(probabilities.ravel()) + BINS * target.ravel()
    return np.bincount(places, minlength=2 * BINS).reshape(2, BINS)


@dataclass(frozen=True, eq=False)
class Curves:
    """Metrics of the mask at each of the `THRESHOLDS`, float64 (999,); empty masks by `EMPTY`."""

    dice: Float[np.ndarray, " t"]
    iou: Float[np.ndarray, " t"]
    precision: Float[np.ndarray, " t"]
    recall: Float[np.ndarray, " t"]
    """NaN where the target is empty and the mask is not, for `EMPTY` has None there."""


def curves(counts: Histogram) -> Curves:
    """Dice, IoU, precision and recall over all thresholds; exact, for a threshold lies between two bins.

    For a mean over images, take the curves of each image and their mean.
    """
    above = counts[:, ::-1].cumsum(axis=1)[:, -2::-1]  # each of the borders
    fp, tp = above[:, BORDERS.searchsorted(THRESHOLDS)]
    true, guessed = counts[1].sum(), tp + fp
    return Curves(
        dice=_ratios("dice", 2 * tp, true + guessed, true, guessed),
        iou=_ratios("iou", tp, true + guessed - tp, true, guessed),
        precision=_ratios("precision", tp, guessed, true, guessed),
        recall=_ratios("recall", tp, np.full_like(tp, true), true, guessed),
    )


def _ratios(
    metric: str, numerator: np.ndarray, denominator: np.ndarray, true: int, guessed: np.ndarray
) -> np.ndarray:
    """The ratios, or the value of `EMPTY` where the target or the mask of that threshold has no pixel."""
    values = np.full(len(guessed), np.nan)
    np.divide(numerator, denominator, out=values, where=denominator > 0)
    for prediction_empty in (False, True):
        case = case_of(target_empty=not true, prediction_empty=prediction_empty)
        if case != "both":
            value = apply_rule(metric, case, lambda: None)
            values[(guessed == 0) == prediction_empty] = np.nan if value is None else value
    return values


def average_precision(counts: Histogram) -> float | None:
    """Area under precision over recall as a sum of steps, in [0, 1]; None where the target is empty.

    Mean precision at the true pixels in falling order of probability: the sum of (R_k - R_(k-1)) P_k over the
    thresholds, not interpolated, as scikit-learn and torchmetrics have it. The middle one of a bin's true
    pixels stands for all of them, with half of the bin's others before it: within 0.001 of torchmetrics on maps
    from vague to certain (0.2 to 30 in the standard deviation of the logits).
    """
    false, true = counts[:, ::-1]
    if not true.any():
        return None
    before, above = true.cumsum() - true, (false + true).cumsum() - (false + true)
    middle = (true + 1) / 2
    precision = (before + middle) / (above + middle + false / 2)
    return float((true * precision).sum() / true.sum())


def brier_score(counts: Histogram) -> float | None:
    """Mean of (probability - target)^2 over all pixels, in [0, 1], lower is better; None of no pixels.

    Within 0.001 of the exact value, for each probability is taken to be the middle of its bin. It flatters
    thin structures as accuracy does. Source: Brier 1950, Verification of forecasts expressed in terms of
    probability, Mon. Weather Rev. 78(1).
    """
    total = counts.sum()
    if not total:
        return None
    return float((counts[0] @ _MIDDLES**2 + counts[1] @ (1 - _MIDDLES) ** 2) / total)


@dataclass(frozen=True)
class ReliabilityBin:
    """Pixels whose probability lies in (low, high]: what was mean_probability, and what came."""

    low: float
    high: float
    pixels: int
    mean_probability: float | None
    """Their mean probability; None of no pixels."""
    positive_fraction: float | None
    """The share of them that is true; None of no pixels."""


def reliability(counts: Histogram, n: int = 10) -> list[ReliabilityBin]:
    """`n` equal bins of probability, the reliability diagram; ValueError unless n divides 1000.

    `said` lies within 0.0005 of the exact mean, `came` is exact. The probability is that of the mask, from 0 to
    1, not that of the more probable class; 0 belongs to the first bin.
    """
    if n < 1 or STEPS % n:
        raise ValueError(f"{STEPS} steps of probability cannot be gathered into {n} equal bins")
    edges = np.arange(n + 1) / n
    starts = [0, *(BORDERS.searchsorted(edges[1:-1]) + 1)]
    false, true = np.add.reduceat(counts, starts, axis=1).tolist()
    sums = np.add.reduceat(counts.sum(axis=0) * _MIDDLES, starts).tolist()
    rows = []
    for k in range(n):
        pixels = false[k] + true[k]
        mean_probability, positive_fraction = (sums[k] / pixels, true[k] / pixels) if pixels else (None, None)
        rows.append(
            ReliabilityBin(float(edges[k]), float(edges[k + 1]), pixels, mean_probability, positive_fraction)
        )
    return rows


def expected_calibration_error(counts: Histogram, n: int = 10) -> float | None:
    """Mean over all pixels of |mean_probability - came| of their reliability bin, in [0, 1]; None of no pixels.

    Within 0.0005 of the exact value. Source: Naeini et al. 2015, AAAI; Guo et al. 2017, On calibration of
    modern neural networks, ICML; the L1 norm of torchmetrics' `binary_calibration_error`.
    """
    gaps, total = 0.0, 0
    for row in reliability(counts, n):
        if row.mean_probability is not None and row.positive_fraction is not None:
            gaps += row.pixels * abs(row.mean_probability - row.positive_fraction)
            total += row.pixels
    return gaps / total if total else None
