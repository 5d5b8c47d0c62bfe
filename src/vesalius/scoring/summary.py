"""What metrics.json says in numbers and sentences, from the rows and counts of an evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vesalius.evaluation.calibration import (
    average_precision,
    brier_score,
    expected_calibration_error,
    reliability,
)
from vesalius.evaluation.metrics import METRICS
from vesalius.evaluation.statistics import FEW_GROUPS, summarize
from vesalius.scoring.results_log import TRIED, ResultsLog
from vesalius.scoring.task import Row
from vesalius.types import Sample
from vesalius.visualization import missing_font

PROMPTS_APART = 50
"""With more different prompts than this, means by prompt are left out, and a note says so."""


def group_of(sample: Sample) -> str:
    """Patient or sequence; an image of which nobody said any is its own group."""
    return sample.group or sample.id


def numbers(tally: ResultsLog, samples: Sequence[Sample]) -> dict[str, Any]:
    """All of metrics.json that comes from rows and counts."""
    spaced = any(sample.spacing_mm for sample in samples)
    names = [name for name, metric in METRICS.items() if spaced or not name.endswith("mm")]
    scored = tally.scored
    return {
        **summarize(tally.rows, names),
        "seg_rate": sum(row["says_seg"] for row in scored) / len(scored) if scored else None,
        "answers": dict(Counter(row["answered"] for row in scored if row.get("answered"))),
        "empty": tally.cases,
        "referring": tally.referring,
        "prompts": _by_prompt(tally.rows, names),
        "groups": _by_group(tally.rows),
        "calibration": _calibration(tally) if tally.n_with_probabilities else None,
    }


def notes(tally: ResultsLog, samples: Sequence[Sample]) -> list[str]:
    """What a reader of the numbers must know beyond the notes of the dataset, a sentence each."""
    found = []
    if all(sample.group is None for sample in samples):
        found.append(
            "The intervals take each image for a group of its own; where several images show one patient "
            "they are too narrow."
        )
    groups = len({group_of(sample) for sample in samples})
    if 2 <= groups < FEW_GROUPS:
        found.append(f"With {groups} groups the intervals are rough and too narrow (docs/metrics.md).")
    prompts = len({row["prompt"] for row in tally.rows})
    if prompts > PROMPTS_APART:
        found.append(f"{prompts} different prompts: means by prompt are left out (at most {PROMPTS_APART}).")
    scored, known = len(tally.scored), tally.n_with_probabilities
    if scored and not known:
        found.append("There are no probabilities, so nothing is said of calibration and of other thresholds.")
    elif known < scored:
        found.append(
            f"Only {known} of {scored} answers have probabilities; calibration and curves are theirs."
        )
    written = {text for row in tally.rows if row["figure"] for text in (row["id"], row["prompt"])}
    lacking = next(filter(None, map(missing_font, sorted(written))), None)
    return found if lacking is None else [*found, lacking]


def list_numbers(metrics: Mapping[str, Any]) -> Iterator[str]:
    """What metrics.json says in short, a line each: means with their intervals, counts, notes."""
    for name, value in metrics["mean"].items():
        interval = metrics["ci95"].get(name)
        bounds = f"  (95 % {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
        yield f"{name:<28}{'undefined' if value is None else f'{value:.4f}'}{bounds}"
    for counts in (metrics["coverage"], metrics["answers"]):
        if counts:
            yield "  ".join(f"{name} {count}" for name, count in counts.items())
    yield from metrics["notes"]


def _calibration(tally: ResultsLog) -> dict[str, Any]:
    counts = tally.counts
    return {
        "average_precision": average_precision(counts),
        "brier": brier_score(counts),
        "ece": expected_calibration_error(counts),
        "reliability": [vars(each) for each in reliability(counts)],
        "thresholds": TRIED.tolist(),
        "curves": {
            name: [None if np.isnan(value) else float(value) for value in curve]
            for name, curve in tally.mean_curves.items()
        },
    }


def _by_prompt(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    """The summary of each prompt's rows; empty where there are more than `PROMPTS_APART`."""
    apart: dict[str, list[Row]] = {}
    for row in rows:
        apart.setdefault(row["prompt"], []).append(row)
    if len(apart) > PROMPTS_APART:
        return {}
    return {prompt: summarize(its, names) for prompt, its in apart.items()}


def _by_group(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each group's number of answers and mean Dice, the lowest first."""
    apart: dict[str, list[Row]] = {}
    for row in rows:
        apart.setdefault(row["group"], []).append(row)
    table = []
    for group, its in apart.items():
        values = [row["dice"] for row in its if row["dice"] is not None]
        mean = float(np.mean(values)) if values else None
        table.append({"group": group, "answers": len(its), "failed": len(its) - len(values), "dice": mean})
    return sorted(table, key=lambda each: (each["dice"] is not None, each["dice"] or 0.0, each["group"]))
