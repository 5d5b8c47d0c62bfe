"""Compare evaluations of the same samples: the differences, their intervals and their significance.

    folders -> paired rows -> differences -> comparison.json, .csv, .md, .png and report.html

The first evaluation is the reference. All numbers are computed on the rows that have a score in every evaluation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.errors import DataError, SettingError
from vesalius.evaluation.metrics import METRICS
from vesalius.evaluation.statistics import Column, PairedComparison, mean, paired_comparisons
from vesalius.files import check_replaceable, prepare_folder, replacing
from vesalius.language import note
from vesalius.lineage import versions
from vesalius.names import list_names
from vesalius.phrases import describe_unknown
from vesalius.scoring.comparison_report import Comparison, write_comparison
from vesalius.scoring.results import MAX_PROMPTS, Evaluation, ResultKey, read_evaluation, shown
from vesalius.scoring.summary import describe_few_groups

FILES = frozenset({"comparison.json", "comparison.csv", "comparison.md", "comparison.png", "report.html"})
"""Files of a comparison folder; a folder with any other file is not replaced."""
LISTED = 10
"""Maximum number of names listed in a message; the others are only counted."""
ALPHA = 0.05
"""Significance level of the corrected p-values."""
LEVEL, RESAMPLES, SEED = 0.95, 2000, 0
UNRELATED_SETTINGS = frozenset({"batch_size", "num_workers", "figures", "limit"})
"""Settings that do not influence scores; a difference in them is not noted."""


def compare(folders: Sequence[str | Path], out: str | Path, *, only: Sequence[str] = ()) -> dict[str, Any]:
    """Compare evaluations with the first of them, write the folder `out`, and return the content of comparison.json.

    `only` names the metrics to compare (default: all that every evaluation has); fewer metrics need less correction
    for multiple tests. A row that failed in any evaluation is listed but not compared; if `coverage.failed` is
    above 0 the caller exits with 1. A row in which a metric is undefined in any evaluation is left out of that
    metric, and counted. A comparison at `out` is replaced when the new one is complete.

    SettingError for fewer than two folders, a folder named twice, or an unknown metric; DataError for a folder that
    cannot be read as an evaluation, and for evaluations of different samples, prompts, groups or data; OutputError if
    `out` exists and is not a comparison.
    """
    out = Path(out).resolve()
    check_replaceable(out, "comparison", FILES, "comparison.json")
    evaluations = _open_all([Path(folder).resolve() for folder in folders])
    reference, *others = evaluations
    for other in others:
        _refuse_differences(reference, other)
    metrics, notes = _common_metrics(evaluations, only)
    keys = [key for key in reference.rows if not any(each.failed(key) for each in evaluations)]
    failed = _failed_rows(evaluations)
    if not keys:
        raise DataError(
            f"nothing to compare: each of the {len(failed)} predictions failed in at least one evaluation",
            code="nothing_to_compare",
        )
    prompts = list(dict.fromkeys(prompt for _, prompt in reference.rows))
    comparisons = _compare(evaluations, keys, metrics, prompts)
    defined = {each["metric"] for each in comparisons if each["n"]}
    if not defined:
        raise DataError(
            f"nothing to compare: no row defines {', '.join(metrics)} in all evaluations", code="nothing_to_compare"
        )
    result = {
        "reference": reference.name,
        "evaluations": [_describe_evaluation(each) for each in evaluations],
        "data": reference.facts["data"],
        "prompts": prompts,
        "coverage": {"rows": len(reference.rows), "compared": len(keys), "failed": len(failed)},
        "failed_rows": failed,
        "metrics": {metric: _describe_metric(metric) for metric in metrics},
        "comparisons": comparisons,
        "different_settings": [
            {"setting": name, "evaluation": other.name, "reference": one, "value": two}
            for other in others
            for name, one, two in _different_settings(reference.facts, other.facts)
        ],
        "notes": [*notes, *_notes(evaluations, prompts, comparisons)],
        "settings": {"alpha": ALPHA, "level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "versions": versions(),
    }
    headline = next(metric for metric in ("dice", *metrics) if metric in defined)
    with replacing(out) as folder:
        write_comparison(prepare_folder(folder), result, headline, _by_group(evaluations, keys, headline))
    return result


def summarize(result: Mapping[str, Any]) -> list[str]:
    """Differences over all prompts, and notes, as text lines for the terminal."""
    lines = []
    for row in result["comparisons"]:
        if row["prompt"] is None and row["n"]:
            bounds = "  (95 % {:+.4f} to {:+.4f})".format(*row["ci95"]) if row["ci95"] else ""
            corrected = "" if row["p_holm"] is None else f"  p {row['p_holm']:.2g}"
            lines.append(
                f"{row['evaluation']}  {row['metric']:<28}{row['difference']:+.4f}{bounds}{corrected}"
                f"  {row['verdict'] or 'not tested'}"
            )
    return [*lines, *result["notes"]]


def _open_all(paths: Sequence[Path]) -> list[Evaluation]:
    if len(paths) < 2:
        raise SettingError("compare needs two or more evaluation folders", code="bad_value")
    for path in paths:
        if paths.count(path) > 1:
            raise SettingError.at(path, "is named twice; name different evaluations", code="bad_value")
    return [read_evaluation(path, name) for path, name in zip(paths, _short_names(paths), strict=True)]


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest distinct suffixes of the paths: `old` and `new`, or `a/eval` and `b/eval`."""
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def _refuse_differences(reference: Evaluation, other: Evaluation) -> None:
    """Raise DataError, listing the differences, unless both evaluations have the same rows on the same data."""
    found = []
    for one, two in ((reference, other), (other, reference)):
        alone = [shown(key) for key in one.rows if key not in two.rows]
        if alone:
            found.append(f"{len(alone)} only in {one.name}: {list_names(alone, LISTED)}")
    moved = [
        f"{shown(key)} in {row['group']} and {other.rows[key]['group']}"
        for key, row in reference.rows.items()
        if key in other.rows and row["group"] != other.rows[key]["group"]
    ]
    if moved:
        found.append(f"{len(moved)} in different groups (evaluate with the same --group): {list_names(moved, LISTED)}")
    prints = {each.name: each.facts["data"].get("fingerprint") for each in (reference, other)}
    for name, fingerprint in prints.items():
        if fingerprint is None:
            found.append(f"{name} has no data fingerprint, so its data cannot be compared")
    if None not in prints.values() and len(set(prints.values())) > 1:
        found.append("images, masks or prompts differ: data fingerprints " + " and ".join(prints.values()))
    if found:
        raise DataError(
            f"{reference.name} and {other.name} evaluate different samples or prompts: {'; '.join(found)}",
            code="different_samples",
        )


def _common_metrics(evaluations: Sequence[Evaluation], only: Sequence[str]) -> tuple[list[str], list[str]]:
    """The metrics to compare, in the order of the reference, and a note on each metric missing in an evaluation."""
    shared = [name for name in evaluations[0].metrics if all(name in each.metrics for each in evaluations)]
    for name in only:
        if name not in shared:
            raise SettingError(
                f"{name}: not every evaluation has this metric; choose from {', '.join(shared)}",
                code="unknown_metric",
                field=name,
            )
    if not shared:
        raise DataError("the evaluations have no metric in common", code="nothing_to_compare")
    if only:
        return [name for name in shared if name in only], []
    every = dict.fromkeys(name for each in evaluations for name in each.metrics)
    lacking = {name: [each.name for each in evaluations if name not in each.metrics] for name in every}
    return shared, [
        note("{metric} is not compared: it is missing in {names}.", metric=name, names=", ".join(names))
        for name, names in lacking.items()
        if names
    ]


def _failed_rows(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Rows that failed in at least one evaluation, with their errors."""
    failed = []
    for key in evaluations[0].rows:
        errors = {each.name: each.rows[key].get("error") for each in evaluations if each.failed(key)}
        if errors:
            failed.append({"id": key[0], "prompt": key[1], "errors": errors})
    return failed


def _compare(
    evaluations: Sequence[Evaluation], keys: Sequence[ResultKey], metrics: Sequence[str], prompts: Sequence[str]
) -> list[Comparison]:
    """One comparison per other evaluation, prompt (None: all prompts) and metric, with p-values corrected over all."""
    reference, *others = evaluations
    pools: dict[str | None, list[ResultKey]] = {None: list(keys)}
    if 1 < len(prompts) <= MAX_PROMPTS:
        pools |= {prompt: [key for key in keys if key[1] == prompt] for prompt in prompts}
    rows: list[Comparison] = []
    hypotheses: list[Column] = []
    for other, (prompt, pool), metric in product(others, pools.items(), metrics):
        defined = [key for key in pool if all(each.rows[key][metric] is not None for each in evaluations)]
        before, after = ([each.rows[key][metric] for key in defined] for each in (reference, other))
        differences = [new - old for old, new in zip(before, after, strict=True)]
        hypotheses.append((differences, [reference.rows[key]["group"] for key in defined]))
        rows.append(
            {
                "evaluation": other.name,
                "prompt": prompt,
                "metric": metric,
                "undefined": len(pool) - len(defined),
                "mean_reference": mean(before),
                "mean": mean(after),
            }
        )
    found = paired_comparisons(hypotheses, level=LEVEL, resamples=RESAMPLES, seed=SEED)
    return [row | _numbers(row["metric"], each) for row, each in zip(rows, found, strict=True)]


def _numbers(metric: str, found: PairedComparison) -> Comparison:
    interval = found.interval
    return {
        "n": found.n,
        "n_groups": found.n_groups,
        "difference": found.difference,
        "ci95": [interval.low, interval.high] if interval else None,
        "ci_method": interval.method if interval else None,
        "p": found.p,
        "p_holm": found.p_holm,
        "rank_biserial": found.rank_biserial,
        "d_z": found.d_z,
        "verdict": _verdict(metric, found),
    }


def _verdict(metric: str, found: PairedComparison) -> str | None:
    """`better`, `worse` or `unclear`; `different` for a significant difference of unclear direction; None: untested."""
    if found.p_holm is None or found.difference is None or found.rank_biserial is None:
        return None
    if found.p_holm >= ALPHA:
        return "unclear"
    # a few large differences may outweigh many small ones in the mean, but not in the ranks
    if metric not in METRICS or found.difference * found.rank_biserial <= 0:
        return "different"
    return "better" if (found.difference > 0) == (METRICS[metric].better == "higher") else "worse"


def _describe_metric(metric: str) -> dict[str, str | None]:
    """Title, unit and better direction; an unknown metric has its name only."""
    known = METRICS.get(metric)
    return {
        "title": known.title if known else metric,
        "unit": known.unit if known else "",
        "better": known.better if known else None,
    }


def _describe_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    kept = ("model", "threshold", "coverage", "settings")
    return {"name": evaluation.name} | {key: evaluation.facts.get(key) for key in kept}


def _by_group(evaluations: Sequence[Evaluation], keys: Sequence[ResultKey], metric: str) -> np.ndarray:
    """(g, k) mean of a metric per group and evaluation; rows in which it is undefined are left out."""
    groups: dict[str, list[list[float]]] = {}
    for key in keys:
        values = [each.rows[key][metric] for each in evaluations]
        if None not in values:
            groups.setdefault(evaluations[0].rows[key]["group"], []).append(values)
    means = [np.mean(values, axis=0) for values in groups.values()]
    return np.array(means).reshape(-1, len(evaluations))


def _notes(evaluations: Sequence[Evaluation], prompts: Sequence[str], comparisons: Sequence[Comparison]) -> list[str]:
    """Caveats about the numbers, one sentence each."""
    reference, *others = evaluations
    notes = []
    for other in others:
        differing = [name for name, _, _ in _different_settings(reference.facts, other.facts)]
        if differing:
            notes.append(
                note(
                    "Settings that differ between {one} and {two}: {n} ({names}); the report has their values.",
                    one=reference.name,
                    two=other.name,
                    n=len(differing),
                    names=", ".join(differing),
                )
            )
        same = reference.facts["model"].get("fingerprint")
        if same is not None and same == other.facts["model"].get("fingerprint"):
            notes.append(note("{one} has the same weights as {two}.", one=other.name, two=reference.name))
    for each in evaluations:
        trained = each.facts["data"].get("n_training_samples")
        if trained:
            notes.append(note("The model of {name} was trained on {n} of the images.", name=each.name, n=trained))
        unknown = Counter(row["prompt"] for row in each.rows.values() if row["unknown_phrase"])
        if unknown:
            notes.append(describe_unknown(unknown, len(each.rows), each.name))
    rows = reference.rows.values()
    if all(row["group"] == row["id"] for row in rows):
        notes.append(
            note(
                "Each image is treated as its own group; if several images show one patient, the intervals are too "
                "narrow and the p-values too small."
            )
        )
    groups = len({row["group"] for row in rows})
    notes += describe_few_groups(groups)
    tested = [each for each in comparisons if each["p"] is not None]
    if tested and len(tested) * 2.0 ** (1 - max(each["n_groups"] for each in tested)) >= ALPHA:
        notes.append(
            note(
                "No corrected p-value can fall below {alpha} here (groups: {groups}, tests: {tests}); compare fewer "
                "metrics, or evaluate more groups.",
                alpha=ALPHA,
                groups=groups,
                tests=len(tested),
            )
        )
    if len(prompts) > MAX_PROMPTS:
        notes.append(
            note(
                "Comparisons by prompt are left out: {n} different prompts exceed {most}.",
                n=len(prompts),
                most=MAX_PROMPTS,
            )
        )
    return notes


def _different_settings(one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name and both values of each setting, or threshold, that differs."""
    settings = [{"threshold": facts.get("threshold"), **(facts.get("settings") or {})} for facts in (one, two)]
    for name in dict.fromkeys(name for each in settings for name in each):
        first, second = (each.get(name) for each in settings)
        if first != second and name not in UNRELATED_SETTINGS:
            yield name, first, second
