"""Coverage of the 95 % bootstrap interval by number of groups.

    .venv/bin/python benchmarks/intervals.py [--sets 2000] [--json FILE]

Datasets of patients with several frames each are sampled from two distributions with a known mean. The result is the
fraction of intervals that contain the mean. docs/metrics.md has the table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.evaluation.statistics import Method, bootstrap_interval
from vesalius.files import write_json

GROUPS = (5, 10, 20, 40)
METHODS: tuple[Method, ...] = ("percentile", "bca")

Draw = Callable[[np.random.Generator, int], list[np.ndarray]]
"""The values of each group."""


def even(random: np.random.Generator, groups: int) -> list[np.ndarray]:
    """Patients normally distributed around 0.7, 5 frames each."""
    return [random.normal(0.7, 0.1) + random.normal(0, 0.05, 5) for _ in range(groups)]


def skewed(random: np.random.Generator, groups: int) -> list[np.ndarray]:
    """Patients with a skewed distribution as of Dice: beta(4.5, 0.9) with mean 5 / 6, 1 to 10 frames each."""
    return [random.beta(4.5, 0.9) + random.normal(0, 0.03, random.integers(1, 11)) for _ in range(groups)]


CASES: dict[str, tuple[Draw, float]] = {"even": (even, 0.7), "skewed": (skewed, 5 / 6)}


def coverage(draw: Draw, mean: float, groups: int, sets: int, method: Method) -> float:
    """Fraction of datasets with an interval that contains the mean."""
    hits = 0
    for seed in range(sets):
        values = draw(np.random.default_rng([groups, seed]), groups)
        members = np.repeat(np.arange(groups), [len(each) for each in values]).tolist()
        interval = bootstrap_interval(np.concatenate(values).tolist(), members, seed=seed, method=method)
        hits += interval is not None and interval.low <= mean <= interval.high
    return hits / sets


def main() -> None:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=2000, help="datasets per table cell (default 2000)")
    parser.add_argument("--json", type=Path, help="write the table to this file")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    print(f"{'patients':<10}{'interval':<12}" + "".join(f"{groups:>7}" for groups in GROUPS))
    for name, (draw, mean) in CASES.items():
        for method in METHODS:
            shares = [coverage(draw, mean, groups, args.sets, method) for groups in GROUPS]
            print(f"{name:<10}{method:<12}" + "".join(f"{share:>6.1%} " for share in shares), flush=True)
            rows += [
                {"patients": name, "method": method, "groups": groups, "coverage": share}
                for groups, share in zip(GROUPS, shares, strict=True)
            ]
    print(f"{args.sets} datasets each, {time.perf_counter() - started:.0f} s")
    if args.json:
        write_json(args.json, {"sets": args.sets, "rows": rows})


if __name__ == "__main__":
    main()
