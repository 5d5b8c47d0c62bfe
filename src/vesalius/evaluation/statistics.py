"""Means over samples, how far to trust them, and whether two sets of them differ.

Frames of one patient resemble each other, so an interval or a test that takes them for independent claims too
much. Here whole groups (patients or sequences) are drawn and tested, never single frames. A result depends on
the values and on which of them belong together: not on the order of the rows, nor on the names of the groups.
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
"""With fewer, a 95 % interval holds the mean in less than 93 % of cases (benchmarks/intervals.py)."""
BCA_GROUPS = 5
"""Fewer groups can be drawn in so few ways (4: 35) that corrected quantiles are mere ends of the range."""
EXACT_GROUPS = 50
"""Up to here all signs of the differences are counted out; above, the normal distribution is close enough."""
DECIMALS = 9
"""Differences are rounded so before they are ranked: what is left of 0.1 + 0.2 - 0.3 is a tie, not a rank."""
TIE = 1e-12
"""Means nearer than this are equal: the rest is rounding."""
DRAWS_AT_ONCE = 1_000_000
"""Numbers drawn in one step, 8 bytes each: bounds the memory where there are very many groups."""

Column = tuple[Sequence[float], Sequence[Hashable]]
"""Values, and the group of each."""


@dataclass(frozen=True)
class Interval:
    """Where the mean lies, by the cluster bootstrap."""

    low: float
    high: float
    method: Method
    """The one used: `percentile` where BCa is not defined."""
    n_groups: int


@dataclass(frozen=True)
class PairedComparison:
    """How the second of two results differs from the first on the same samples; a field is None if undefined."""

    n: int
    """Pairs."""
    n_groups: int
    difference: float | None
    """Mean over the pairs, second minus first; None without pairs."""
    interval: Interval | None
    p: float | None
    """Two-sided, Wilcoxon signed-rank over the group means."""
    p_holm: float | None
    """The same, corrected for all that was tested together."""
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
    """Interval of the mean of `values`, by the cluster bootstrap: BCa, or percentile where that is undefined.

    Groups are drawn with replacement, as many as there are; each brings all its samples, and the mean is
    taken over the samples drawn. BCa corrects the quantiles for bias and for skewness, with the acceleration
    from leaving out one group at a time; it needs `BCA_GROUPS` groups, which are not all alike, and draws on
    both sides of the mean. None with fewer than 2 groups, from which nothing about other groups can be
    learned; too narrow with few (see `FEW_GROUPS`).

    Raises ValueError for lengths that differ, values that are not finite, or a level outside (0, 1). Source:
    Davison & Hinkley 1997, Bootstrap Methods and their Application, sections 3.8 and 5.3; Efron 1987, Better
    bootstrap confidence intervals, JASA 82(397); Field & Welsh 2007, Bootstrapping clustered data, J. R.
    Stat. Soc. B 69(3).
    """
    return bootstrap_intervals(
        [(values, groups)], level=level, resamples=resamples, seed=seed, method=method
    )[0]


def bootstrap_intervals(
    columns: Sequence[Column],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    method: Method = "bca",
) -> list[Interval | None]:
    """`bootstrap_interval` of each column; columns with as many groups share the draws, which saves the time."""
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level must lie between 0 and 1 and resamples above 0; got {level} and {resamples}")
    totals = [_group_totals(values, groups) for values, groups in columns]
    intervals: list[Interval | None] = [None] * len(columns)
    for count in sorted({total.shape[1] for total in totals if total.shape[1] > 1}):
        places = [place for place, total in enumerate(totals) if total.shape[1] == count]
        means = _resampled_means([totals[place] for place in places], resamples, seed)
        for place, its in zip(places, means, strict=True):
            intervals[place] = _interval(totals[place], its, level, method)
    return intervals


def paired_bootstrap(
    columns: Sequence[Column], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> list[Interval | None]:
    """`bootstrap_intervals` of differences: those of second minus first mirror those of first minus second."""
    signs = [-1 if math.fsum(differences) < 0 else 1 for differences, _ in columns]
    turned = [
        ([sign * each for each in differences], groups)
        for sign, (differences, groups) in zip(signs, columns, strict=True)
    ]
    found = bootstrap_intervals(turned, level=level, resamples=resamples, seed=seed)
    return [
        replace(each, low=-each.high, high=-each.low) if each and sign < 0 else each
        for sign, each in zip(signs, found, strict=True)
    ]


def paired_comparisons(
    hypotheses: Sequence[Column], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> list[PairedComparison]:
    """What each column of differences (second minus first) says, the p-values corrected for all of them.

    `difference` and its interval weigh every pair the same, as the mean of a metric does. The test and the
    effect sizes weigh every group the same: they see one number a group, the mean of its differences.
    With fewer than 2 groups nothing is tested. Errors as in `bootstrap_interval`.
    """
    intervals = paired_bootstrap(hypotheses, level=level, resamples=resamples, seed=seed)
    means = [np.divide(*_group_totals(values, groups)) for values, groups in hypotheses]
    p_values = [signed_rank_test(each) for each in means]
    return [
        PairedComparison(
            n=len(values),
            n_groups=len(each),
            difference=_mean(values),
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
    """Two-sided p-value of Wilcoxon's signed-rank test: are (g,) differences as often above 0 as below?

    Zeros are left out, as Wilcoxon did; if all are zero nothing speaks for a difference and p is 1. Equal
    sizes share their mean rank. Exact, ties included, up to `EXACT_GROUPS` differences that are not zero
    (all 2^n signs are counted out); above, the normal approximation corrected for ties. With n of them p is at
    least 2 / 2^n: five can never reach 0.05. None with fewer than 2 groups. Source: Wilcoxon 1945, Individual
    comparisons by ranking methods, Biometrics Bulletin 1(6).
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
    return min(1.0, 2 * _chance_of_at_most(min(above, below), nonzero))


def rank_biserial(differences: np.ndarray) -> float | None:
    """Matched-pairs rank-biserial correlation in [-1, 1]: share of the ranks above 0 less the share below.

    1 where every difference that is not zero is positive; 0 where all are zero; None with fewer than 2
    groups. Source: Kerby 2014, The simple difference formula, Comprehensive Psychology 3.
    """
    if len(differences) < 2:
        return None
    above, below = _rank_sums(_nonzero(differences))
    return (above - below) / (above + below) if above + below else 0.0


def cohens_d_z(differences: np.ndarray) -> float | None:
    """Mean of the differences over their standard deviation (n - 1), without unit.

    None with fewer than 2 groups, and where all differences are the same. Source: Cohen 1988, Statistical
    Power Analysis, section 2.3.5; Lakens 2013, Calculating and reporting effect sizes, Front. Psychol. 4.
    """
    if len(differences) < 2 or np.ptp(differences) <= TIE:
        return None
    return float(np.mean(differences) / np.std(differences, ddof=1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values such that all below a level may be called significant together; None, not tested, stays None.

    The smallest of m is multiplied by m, the next by m - 1 and so on; none becomes smaller than one before
    it, nor larger than 1. Needs no independence. Source: Holm 1979, A simple sequentially rejective multiple
    test procedure, Scand. J. Statist. 6(2).

    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    tested = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        corrected[place] = largest
    return corrected


def summarize(rows: Iterable[Mapping[str, Any]], metrics: Iterable[str], *, seed: int = 0) -> dict[str, Any]:
    """What `metrics.json` says of rows with `status`, `group` and a number or None for each metric.

    `coverage` counts the rows by status; by metric there are `mean`, `mean_answered`, `ci95`, `ci_method`
    (how the interval was found), `n_groups` (those with a value) and `undefined`. A row that failed has no
    score and is in no mean; one without [SEG] is in `mean` and not in `mean_answered`. A metric that is None
    in a scored row is left out of its mean and counted in `undefined`. A mean of nothing, and an interval
    from fewer than 2 groups, is None.
    """
    rows, metrics = list(rows), list(metrics)
    scored = [row for row in rows if row["status"] != "failed"]
    summary: dict[str, Any] = {
        "coverage": {
            status: sum(row["status"] == status for row in rows) for status in ("ok", "failed", "no_seg")
        },
        **{key: {} for key in ("mean", "mean_answered", "ci95", "ci_method", "n_groups", "undefined")},
    }
    columns: list[Column] = []
    for metric in metrics:
        defined = [row for row in scored if row[metric] is not None]
        values, groups = [float(row[metric]) for row in defined], [row["group"] for row in defined]
        columns.append((values, groups))
        summary["mean"][metric] = _mean(values)
        summary["mean_answered"][metric] = _mean([row[metric] for row in defined if row["status"] == "ok"])
        summary["n_groups"][metric] = len(set(groups))
        summary["undefined"][metric] = len(scored) - len(defined)
    for metric, interval in zip(metrics, bootstrap_intervals(columns, seed=seed), strict=True):
        summary["ci95"][metric] = [interval.low, interval.high] if interval else None
        summary["ci_method"][metric] = interval.method if interval else None
    return summary


def _group_totals(values: Sequence[float], groups: Sequence[Hashable]) -> np.ndarray:
    """(2, g) float64: sum and count of each group's values, in an order that only they decide."""
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} values but {len(groups)} groups")
    numbers = np.asarray(values, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("a value is not a finite number")
    if not len(numbers):
        return np.zeros((2, 0))
    place = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    member = np.array([place[group] for group in groups])
    order = np.lexsort((numbers, member))  # a sum of floats depends on the order of its terms
    sums = np.bincount(member[order], weights=numbers[order])
    sizes = np.bincount(member)
    order = np.lexsort((sums, sizes))
    return np.stack([sums[order], sizes[order]])


def _resampled_means(totals: Sequence[np.ndarray], resamples: int, seed: int) -> np.ndarray:
    """(len(totals), resamples) float64; every (2, g) of the totals has as many groups, so one draw does."""
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
    return Interval(
        float(low), float(high), "percentile" if corrected is None else "bca", n_groups=totals.shape[1]
    )


def _bca_tails(totals: np.ndarray, means: np.ndarray, tails: np.ndarray) -> np.ndarray | None:
    """(2,) quantiles to take in place of the tails; None where they are not defined. Efron 1987."""
    sums, sizes = totals
    if len(sums) < BCA_GROUPS:
        return None
    all_sums, all_sizes = sums.sum(), sizes.sum()
    left_out = (all_sums - sums) / (all_sizes - sizes)
    if np.ptp(left_out) <= TIE:
        return None
    over = means - all_sums / all_sizes
    below = (np.mean(over < -TIE) + np.mean(over <= TIE)) / 2  # a draw that hits the mean counts half
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
    """Sums of the ranks by size of those above 0, and of those below."""
    ranks = _ranks(differences)
    return float(ranks[differences > 0].sum()), float(ranks[differences < 0].sum())


def _ranks(differences: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    ranks: np.ndarray = rankdata(np.abs(differences))
    return ranks


def _chance_of_at_most(rank_sum: float, differences: np.ndarray) -> float:
    """Share of all 2^n ways to choose signs in which the ranks above 0 sum up to `rank_sum` or less."""
    doubled = np.rint(2 * _ranks(differences)).astype(int)  # a shared rank may be a half
    ways = np.zeros(doubled.sum() + 1)
    ways[0] = 1
    for rank in doubled:
        ways[rank:] += ways[:-rank].copy()
    return float(ways[: round(2 * rank_sum) + 1].sum() / 2.0 ** len(doubled))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
