"""Means over samples, their confidence intervals, and paired tests between two sets of results.

Frames of one patient are correlated, so intervals and tests that treat them as independent are too optimistic. All
functions here resample and test whole groups (patients or sequences). Results depend on the values and their grouping,
not on the order of rows or the names of groups. The cluster bootstrap is implemented here because
`scipy.stats.bootstrap` gives the same intervals to 3e-15 but takes 8 to 26 times as long.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.special import ndtr, ndtri

Method = Literal["bca", "percentile"]

FEW_GROUPS = 20
"""With fewer groups, the coverage of a 95 % interval is below 93 % (benchmarks/intervals.py)."""
BCA_GROUPS = 5
"""Minimum number of groups for BCa. With fewer there are so few distinct resamples (4 groups: 35) that BCa quantiles
are just the lowest and the highest resampled mean."""
EXACT_GROUPS = 50
"""Maximum number of differences for the exact signed-rank test; above, the normal approximation is used."""
DECIMALS = 9
"""Decimals to which differences are rounded before ranking, so that 0.1 + 0.2 - 0.3 counts as 0."""
TIE = 1e-12
"""Means that differ by less than this are equal up to rounding."""
DRAWS_AT_ONCE = 1_000_000
"""Random numbers drawn per step, 8 bytes each; limits memory with very many groups."""

Column = tuple[Sequence[float], Sequence[Hashable]]
"""Values, and the group of each value."""


@dataclass(frozen=True)
class Interval:
    """Confidence interval of a mean, by the cluster bootstrap."""

    low: float
    high: float
    method: Method
    """The method used: `percentile` if BCa is undefined."""
    n_groups: int


@dataclass(frozen=True)
class PairedComparison:
    """Difference between two results on the same samples; an undefined field is None."""

    n: int
    """Number of pairs."""
    n_groups: int
    difference: float | None
    """Mean over pairs of second result minus first; None without pairs."""
    interval: Interval | None
    p: float | None
    """Two-sided p-value of the Wilcoxon signed-rank test over group means."""
    p_holm: float | None
    """`p` with Holm's correction for all tests of the comparison."""
    rank_biserial: float | None
    d_z: float | None


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[Hashable],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    method: Method = "bca",
) -> Interval | None:
    """Confidence interval of the mean of `values`, by the cluster bootstrap: BCa, or percentile if BCa is undefined.

    Each resample draws as many groups as there are, with replacement, and takes the mean over all their samples. BCa
    corrects the quantiles for bias and skewness, with the acceleration from the jackknife over groups. BCa needs at
    least `BCA_GROUPS` groups that are not all equal, and resampled means on both sides of the mean. The interval is
    None with fewer than 2 groups, and too narrow with fewer than `FEW_GROUPS`.

    Raises ValueError for different lengths, values that are not finite, or a level outside (0, 1). Source:
    Davison & Hinkley 1997, Bootstrap Methods and their Application, sections 3.8 and 5.3; Efron 1987, Better
    bootstrap confidence intervals, JASA 82(397); Field & Welsh 2007, Bootstrapping clustered data, J. R.
    Stat. Soc. B 69(3).
    """
    return bootstrap_intervals([(values, groups)], level=level, resamples=resamples, seed=seed, method=method)[0]


def bootstrap_intervals(
    columns: Sequence[Column], *, level: float = 0.95, resamples: int = 2000, seed: int = 0, method: Method = "bca"
) -> list[Interval | None]:
    """Intervals of several means, as `bootstrap_interval`; columns with equal numbers of groups share resamples."""
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level must lie between 0 and 1 and resamples above 0; got {level} and {resamples}")
    totals = [_group_totals(values, groups) for values, groups in columns]
    intervals: list[Interval | None] = [None] * len(columns)
    for count in sorted({total.shape[1] for total in totals if total.shape[1] > 1}):
        indices = [index for index, total in enumerate(totals) if total.shape[1] == count]
        means = _resampled_means([totals[index] for index in indices], resamples, seed)
        for index, its in zip(indices, means, strict=True):
            intervals[index] = _interval(totals[index], its, level, method)
    return intervals


def paired_bootstrap(
    columns: Sequence[Column], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> list[Interval | None]:
    """Intervals of mean differences, as `bootstrap_intervals`; swapping the two results mirrors them exactly."""
    signs = [-1 if math.fsum(differences) < 0 else 1 for differences, _ in columns]
    mirrored = [
        ([sign * each for each in differences], groups)
        for sign, (differences, groups) in zip(signs, columns, strict=True)
    ]
    found = bootstrap_intervals(mirrored, level=level, resamples=resamples, seed=seed)
    return [
        replace(each, low=-each.high, high=-each.low) if each and sign < 0 else each
        for sign, each in zip(signs, found, strict=True)
    ]


def paired_comparisons(
    hypotheses: Sequence[Column], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> list[PairedComparison]:
    """Difference, interval, test and effect sizes of each column of differences (second minus first).

    `difference` and its interval weight every pair equally. The test and the effect sizes weight every group equally:
    they use the mean difference of each group. p-values are corrected for all columns together. With fewer than 2
    groups there is no test. Raises ValueError as `bootstrap_interval`.
    """
    intervals = paired_bootstrap(hypotheses, level=level, resamples=resamples, seed=seed)
    means = [np.divide(*_group_totals(values, groups)) for values, groups in hypotheses]
    p_values = [signed_rank_test(each) for each in means]
    return [
        PairedComparison(
            n=len(values),
            n_groups=len(each),
            difference=mean(values),
            interval=interval,
            p=p,
            p_holm=p_holm,
            rank_biserial=rank_biserial(each),
            d_z=cohens_d_z(each),
        )
        for (values, _), each, interval, p, p_holm in zip(
            hypotheses, means, intervals, p_values, holm(p_values), strict=True
        )
    ]


def signed_rank_test(differences: np.ndarray) -> float | None:
    """Two-sided p-value of Wilcoxon's signed-rank test of (g,) differences; None with fewer than 2 groups.

    Zeros are excluded, as in Wilcoxon's paper; if all are zero, p is 1. Ties get their mean rank. Exact with ties for
    up to `EXACT_GROUPS` nonzero differences (all 2^n signs are enumerated); above, the normal approximation with tie
    correction. With n nonzero differences, p is at least 2 / 2^n, so five can never reach 0.05. Source: Wilcoxon 1945,
    Individual comparisons by ranking methods, Biometrics Bulletin 1(6).
    """
    from scipy.stats import wilcoxon  # scipy.stats takes half a second to import

    if len(differences) < 2:
        return None
    nonzero = _nonzero(differences)
    if len(nonzero) == 0:
        return 1.0
    if len(nonzero) > EXACT_GROUPS:
        return float(wilcoxon(nonzero, method="asymptotic").pvalue)
    above, below = _rank_sums(nonzero)
    return min(1.0, 2 * _probability_of_at_most(min(above, below), nonzero))


def rank_biserial(differences: np.ndarray) -> float | None:
    """Matched-pairs rank-biserial correlation in [-1, 1]: fraction of positive minus fraction of negative ranks.

    1 if all nonzero differences are positive; 0 if all are zero; None with fewer than 2 groups. Source: Kerby 2014, The
    simple difference formula, Comprehensive Psychology 3.
    """
    if len(differences) < 2:
        return None
    above, below = _rank_sums(_nonzero(differences))
    return (above - below) / (above + below) if above + below else 0.0


def cohens_d_z(differences: np.ndarray) -> float | None:
    """Cohen's d_z: mean of the differences divided by their standard deviation (n - 1).

    None with fewer than 2 groups, or if all differences are equal. Source: Cohen 1988, Statistical
    Power Analysis, section 2.3.5; Lakens 2013, Calculating and reporting effect sizes, Front. Psychol. 4.
    """
    if len(differences) < 2 or np.ptp(differences) <= TIE:
        return None
    return float(np.mean(differences) / np.std(differences, ddof=1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm-corrected p-values, in the order given; None (not tested) stays None.

    The smallest of m p-values is multiplied by m, the next by m - 1, and so on; each is at least the previous one and
    at most 1. Independence is not required. Source: Holm 1979, A simple sequentially rejective multiple test procedure,
    Scand. J. Statist. 6(2).

    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        corrected[index] = largest
    return corrected


def summarize(rows: Iterable[Mapping[str, Any]], metrics: Iterable[str]) -> dict[str, Any]:
    """Summary of result rows for metrics.json; a row has `status`, `group`, and a number or None for each metric.

    `coverage` counts rows by status. Each metric has `mean`, `mean_answered`, `ci95`, `ci_method` (of the interval),
    `n_groups` (groups with a value) and `undefined`. Failed rows have no score and are in no mean. Rows without [SEG]
    are in `mean`, not in `mean_answered`. A metric that is None in a scored row is left out of its mean and counted in
    `undefined`. A mean without values, and an interval of fewer than 2 groups, is None.
    """
    rows, metrics = list(rows), list(metrics)
    scored = [row for row in rows if row["status"] != "failed"]
    summary: dict[str, Any] = {
        "coverage": {status: sum(row["status"] == status for row in rows) for status in ("ok", "failed", "no_seg")},
        **{key: {} for key in ("mean", "mean_answered", "ci95", "ci_method", "n_groups", "undefined")},
    }
    columns: list[Column] = []
    for metric in metrics:
        defined = [row for row in scored if row[metric] is not None]
        values, groups = [float(row[metric]) for row in defined], [row["group"] for row in defined]
        columns.append((values, groups))
        summary["mean"][metric] = mean(values)
        summary["mean_answered"][metric] = mean([row[metric] for row in defined if row["status"] == "ok"])
        summary["n_groups"][metric] = len(set(groups))
        summary["undefined"][metric] = len(scored) - len(defined)
    for metric, interval in zip(metrics, bootstrap_intervals(columns), strict=True):
        summary["ci95"][metric] = [interval.low, interval.high] if interval else None
        summary["ci_method"][metric] = interval.method if interval else None
    return summary


def _group_totals(values: Sequence[float], groups: Sequence[Hashable]) -> np.ndarray:
    """(2, g) float64: sum and count of each group's values, with groups sorted by count, then by sum."""
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} values but {len(groups)} groups")
    numbers = np.asarray(values, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("values must be finite numbers")
    if not len(numbers):
        return np.zeros((2, 0))
    index_of = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    member = np.array([index_of[group] for group in groups])
    order = np.lexsort((numbers, member))  # a sum of floats depends on the order of its terms
    sums = np.bincount(member[order], weights=numbers[order])
    sizes = np.bincount(member)
    order = np.lexsort((sums, sizes))
    return np.stack([sums[order], sizes[order]])


def _resampled_means(totals: Sequence[np.ndarray], resamples: int, seed: int) -> np.ndarray:
    """(len(totals), resamples) float64: resampled means; all totals (2, g) have the same g and share the resamples."""
    random = np.random.default_rng(seed)
    columns = np.concatenate(totals).T
    count = len(columns)
    step = max(1, DRAWS_AT_ONCE // count)
    drawn_totals = []
    for start in range(0, resamples, step):
        drawn = random.integers(count, size=(min(step, resamples - start), count))
        drawn += np.arange(len(drawn))[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        drawn_totals.append(times.astype(np.float64) @ columns)
    sums_and_sizes = np.concatenate(drawn_totals).T
    return sums_and_sizes[0::2] / sums_and_sizes[1::2]


def _interval(totals: np.ndarray, means: np.ndarray, level: float, method: Method) -> Interval:
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    corrected = _bca_tails(totals, means, tails) if method == "bca" else None
    low, high = np.quantile(means, tails if corrected is None else corrected)
    return Interval(float(low), float(high), "percentile" if corrected is None else "bca", n_groups=totals.shape[1])


def _bca_tails(totals: np.ndarray, means: np.ndarray, tails: np.ndarray) -> np.ndarray | None:
    """(2,) BCa quantiles for the tails; None if undefined. Source: Efron 1987."""
    sums, sizes = totals
    if len(sums) < BCA_GROUPS:
        return None
    all_sums, all_sizes = sums.sum(), sizes.sum()
    left_out = (all_sums - sums) / (all_sizes - sizes)
    if np.ptp(left_out) <= TIE:
        return None
    over = means - all_sums / all_sizes
    below = (np.mean(over < -TIE) + np.mean(over <= TIE)) / 2  # a resample equal to the mean counts half
    if not 0 < below < 1:
        return None
    pull = left_out.mean() - left_out
    acceleration = (pull**3).sum() / (6 * (pull**2).sum() ** 1.5)
    bias = ndtri(below)
    shifted = bias + ndtri(tails)
    stretch = 1 - acceleration * shifted
    if (stretch <= 0).any():
        return None
    corrected: np.ndarray = ndtr(bias + shifted / stretch)
    return corrected


def _nonzero(differences: np.ndarray) -> np.ndarray:
    rounded = np.round(differences, DECIMALS)
    return rounded[rounded != 0]


def _rank_sums(differences: np.ndarray) -> tuple[float, float]:
    """Sums of the ranks by absolute size of the positive and of the negative differences."""
    ranks = _ranks(differences)
    return float(ranks[differences > 0].sum()), float(ranks[differences < 0].sum())


def _ranks(differences: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    ranks: np.ndarray = rankdata(np.abs(differences))
    return ranks


def _probability_of_at_most(rank_sum: float, differences: np.ndarray) -> float:
    """Fraction of all 2^n sign combinations with a positive rank sum of at most `rank_sum`."""
    doubled = np.rint(2 * _ranks(differences)).astype(int)  # ties have mean ranks such as 1.5
    ways = np.zeros(doubled.sum() + 1)
    ways[0] = 1
    for rank in doubled:
        ways[rank:] += ways[:-rank].copy()
    return float(ways[: round(2 * rank_sum) + 1].sum() / 2.0 ** len(doubled))


def mean(values: Sequence[float]) -> float | None:
    """Mean of the values; None without values."""
    return float(np.mean(values)) if len(values) else None
