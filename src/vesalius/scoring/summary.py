"""Numbers and notes of metrics.json, from the results log of an evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vesalius.data.grouping import group_of
from vesalius.evaluation.calibration import average_precision, brier_score, expected_calibration_error, reliability
from vesalius.evaluation.metrics import METRICS
from vesalius.evaluation.same_masks import describe_same
from vesalius.evaluation.statistics import FEW_GROUPS, mean, summarize
from vesalius.fonts import missing_font
from vesalius.language import note
from vesalius.phrases import describe_unknown
from vesalius.scoring.results import MAX_PROMPTS, ResultRow
from vesalius.scoring.results_log import CURVE_THRESHOLDS, ResultsLog
from vesalius.types import Sample


def numbers(results: ResultsLog, samples: Sequence[Sample]) -> dict[str, Any]:
    """The fields of metrics.json that depend on rows and histograms."""
    spaced = any(sample.spacing_mm for sample in samples)
    names = [name for name, metric in METRICS.items() if spaced or not name.endswith("mm")]
    scored = results.scored
    by_prompt = _by_field(results.rows, "prompt")
    return {
        **summarize(results.rows, names),
        "seg_rate": sum(row["says_seg"] for row in scored) / len(scored) if scored else None,
        "answers": dict(Counter(row["answered"] for row in scored if row.get("answered"))),
        "unknown_phrases": results.unknown_phrases,
        "same_masks": results.same_masks.as_json(),
        "empty": results.cases,
        "referring": results.referring,
        "prompts": {}
        if len(by_prompt) > MAX_PROMPTS
        else {prompt: summarize(rows, names) for prompt, rows in by_prompt.items()},
        "groups": _groups(results.rows),
        "calibration": _calibration(results) if results.n_with_probabilities else None,
    }


def notes(results: ResultsLog, samples: Sequence[Sample]) -> list[str]:
    """Caveats about the numbers, one sentence each, besides the notes of the dataset."""
    found = []
    if all(sample.group is None for sample in samples):
        found.append(
            note(
                "Each image is treated as its own group; if several images show one patient, the intervals are too "
                "narrow."
            )
        )
    if unknown := results.unknown_phrases:
        found.append(describe_unknown(unknown, len(results.rows)))
    if same := describe_same(results.same_masks.as_json()):
        found.append(same)
    found += describe_few_groups(len({group_of(sample) for sample in samples}))
    prompts = len({row["prompt"] for row in results.rows})
    if prompts > MAX_PROMPTS:
        found.append(
            note("Means by prompt are left out: {n} different prompts exceed {most}.", n=prompts, most=MAX_PROMPTS)
        )
    scored, known = len(results.scored), results.n_with_probabilities
    if scored and not known:
        found.append(note("The predictions have no probabilities, so calibration and threshold curves are missing."))
    elif known < scored:
        found.append(
            note(
                "Only {known} of {scored} predictions have probabilities; calibration and threshold curves are computed "
                "from those predictions.",
                known=known,
                scored=scored,
            )
        )
    written = {text for row in results.rows if row["figure"] for text in (row["id"], row["prompt"])}
    lacking = next(filter(None, map(missing_font, sorted(written))), None)
    return found if lacking is None else [*found, lacking]


def describe_few_groups(groups: int) -> list[str]:
    """A note for one group, or for too few groups for exact intervals; no note for 0 or many groups."""
    if groups == 1:
        return [note("With one group there are no intervals and no tests; use data of several groups (patients).")]
    if 2 <= groups < FEW_GROUPS:
        return [note("With {groups} groups the intervals are rough and too narrow (docs/metrics.md).", groups=groups)]
    return []


def list_numbers(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Means with their intervals, counts and notes, as text lines for the terminal."""
    for name, value in metrics["mean"].items():
        interval = metrics["ci95"].get(name)
        bounds = f"  (95 % {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
        yield f"{name:<28}{'undefined' if value is None else f'{value:.4f}'}{bounds}"
    for title, counts in (("predictions: ", metrics["coverage"]), ("text answers: ", metrics["answers"])):
        if counts:
            yield title + "  ".join(f"{name} {count}" for name, count in counts.items())
    yield from metrics["notes"]


def _calibration(results: ResultsLog) -> dict[str, Any]:
    counts = results.histogram
    return {
        "average_precision": average_precision(counts),
        "brier": brier_score(counts),
        "ece": expected_calibration_error(counts),
        "reliability": [vars(each) for each in reliability(counts)],
        "thresholds": CURVE_THRESHOLDS.tolist(),
        "curves": {
            name: [None if np.isnan(value) else float(value) for value in curve]
            for name, curve in results.mean_curves.items()
        },
    }


def _by_field(rows: Sequence[ResultRow], field: str) -> dict[str, list[ResultRow]]:
    """Value of the field -> rows with that value, in order of first appearance."""
    found: dict[str, list[ResultRow]] = {}
    for row in rows:
        found.setdefault(row[field], []).append(row)
    return found


def _groups(rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """Predictions, failures and mean Dice of each group, lowest Dice first."""
    table = []
    for group, its in _by_field(rows, "group").items():
        values = [row["dice"] for row in its if row["dice"] is not None]
        failed = len(its) - len(values)
        table.append({"group": group, "predictions": len(its), "failed": failed, "dice": mean(values)})
    return sorted(table, key=lambda each: (each["dice"] is not None, each["dice"] or 0.0, each["group"]))
