"""Means over samples, and how far to trust them.

Frames of one patient resemble each other, so an interval that takes them for independent is too narrow. Here
whole groups (patients or sequences) are drawn, never single frames.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Interval = tuple[float, float]
"""(low, high)."""

DRAWS_AT_ONCE = 1_000_000
"""Numbers drawn in one step, 8 bytes each: bounds the memory where there are very many groups."""


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[Hashable],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Percentile interval of the mean of `values`, by the cluster bootstrap.

    Groups are drawn with replacement, as many as there are; each brings all its samples, and the mean is
    taken over the samples drawn. None with fewer than 2 groups, from which nothing about other groups can be
    learnt; too narrow with few (5 groups: a 95 % interval holds the mean in 83 % of cases; docs/metrics.md).
    Raises ValueError for lengths that differ, values that are not finite, or a level outside (0, 1). Source:
    Davison & Hinkley 1997, Bootstrap Methods and their Application, section 3.8; Field & Welsh 2007,
    Bootstrapping clustered data, J. R. Stat. Soc. B 69(3).
    """
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} values but {len(groups)} groups")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level must lie between 0 and 1 and resamples above 0; got {level} and {resamples}")
    numbers = np.asarray(values, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("a value is not a finite number")
    place = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    if len(place) < 2:
        return None
    member = np.array([place[group] for group in groups])
    means = _resampled_means(np.bincount(member, weights=numbers), np.bincount(member), resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled_means(sums: np.ndarray, sizes: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples,) float64 means; `sums` and `sizes` (g,) are of the values of each group."""
    random = np.random.default_rng(seed)
    step = max(1, DRAWS_AT_ONCE // len(sums))
    means = []
    for start in range(0, resamples, step):
        drawn = random.integers(len(sums), size=(min(step, resamples - start), len(sums)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return np.concatenate(means)


def summarise(rows: Iterable[Mapping[str, Any]], metrics: Iterable[str], *, seed: int = 0) -> dict[str, Any]:
    """`coverage`, `mean`, `mean_answered`, `ci95` and `undefined` of rows with `status`, `group` and metrics.

    A row that failed has no score and is in no mean; one without [SEG] is in `mean` and not in
    `mean_answered`. A metric that is None in a scored row is left out of its mean and counted in `undefined`.
    A mean of nothing, and an interval from fewer than 2 groups, is None.
    """
    rows = list(rows)
    scored = [row for row in rows if row["status"] != "failed"]
    summary: dict[str, Any] = {
        "coverage": {
            status: sum(row["status"] == status for row in rows) for status in ("ok", "failed", "no_seg")
        },
        "mean": {},
        "mean_answered": {},
        "ci95": {},
        "undefined": {},
    }
    for metric in metrics:
        defined = [row for row in scored if row[metric] is not None]
        values = [float(row[metric]) for row in defined]
        interval = bootstrap_interval(values, [row["group"] for row in defined], seed=seed)
        summary["mean"][metric] = _mean(values)
        summary["mean_answered"][metric] = _mean([row[metric] for row in defined if row["status"] == "ok"])
        summary["ci95"][metric] = list(interval) if interval else None
        summary["undefined"][metric] = len(scored) - len(defined)
    return summary


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
