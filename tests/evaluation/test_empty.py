"""Empty masks: the docs have the table of the code, and its rules hold for every metric."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vesalius.evaluation.empty import CASES, EMPTY, Rule, case_of
from vesalius.evaluation.metrics import METRICS, score

METRICS_PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
NOTHING = np.zeros((12, 9), dtype=bool)
SOMETHING = NOTHING.copy()
SOMETHING[3:6, 2:7] = True

PERFECT_FOR_ALL_THAT_MISS = {"specificity"}
"""Depends on the background only, so an empty prediction is perfect by definition."""
NULL_OF_THIS_MISS = {"skeleton_recall_4_to_8px", "skeleton_recall_over_8px"}
"""Strata without any pixel of SOMETHING, which is 3 pixels wide."""


def test_docs_have_the_table_of_the_code():
    _, *lines = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in METRICS_PAGE.read_text(encoding="utf-8").split("## Empty masks")[1].split("##")[0].splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]
    page = {name: cells for names, *cells in lines for name in names.split(", ")}

    assert page == {name: [cell_of(entry) for entry in entries] for name, entries in EMPTY.items()}


def cell_of(entry: float | Rule | None) -> str:
    if isinstance(entry, Rule):
        return entry.value
    return "null" if entry is None else f"{entry:g}"


def test_every_metric_has_its_row():
    assert {metric.rule for metric in METRICS.values()} | {"j", "f"} == set(EMPTY)


def test_the_case_follows_from_which_masks_are_empty():
    assert [case_of(target_empty=t, prediction_empty=g) for t, g in ((True, True), (True, False), (False, True))] == [
        *CASES
    ]
    assert case_of(target_empty=False, prediction_empty=False) == "both"


def perfect(name: str) -> float:
    return 1.0 if METRICS[name].better == "higher" else 0.0


def test_total_miss_is_never_perfect_and_never_dropped():
    scores = score(SOMETHING, NOTHING, spacing_mm=(0.5, 0.5))

    for name, value in scores.items():
        if name in NULL_OF_THIS_MISS:
            assert value is None
        elif name in PERFECT_FOR_ALL_THAT_MISS:
            assert value == 1.0
        else:
            assert value is not None and value != perfect(name), name


def test_false_alarm_is_never_perfect():
    scores = score(NOTHING, SOMETHING, spacing_mm=(0.5, 0.5))

    assert {name for name, value in scores.items() if value == perfect(name)} == set()
    assert {name for name, value in scores.items() if value is None} == {
        "recall",
        "topology_sensitivity",
        "breaks",
        *(name for name in METRICS if name.startswith("skeleton_recall")),
    }


def test_two_empty_masks_are_perfect_or_undefined():
    scores = score(NOTHING, NOTHING, spacing_mm=(0.5, 0.5))

    for name, value in scores.items():
        distance = METRICS[name].unit != ""
        assert value == (None if distance or METRICS[name].rule == "skeleton_recall_of_width" else perfect(name)), name


@pytest.mark.parametrize("target", [NOTHING, SOMETHING, ~NOTHING])
@pytest.mark.parametrize("prediction", [NOTHING, SOMETHING, ~NOTHING])
def test_scores_are_strict_json(target, prediction):
    scores = score(target, prediction, spacing_mm=(0.5, 0.4))

    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert all(value is None or type(value) is float for value in scores.values())


def test_distance_to_an_empty_mask_is_the_image_diagonal_in_the_unit_of_the_metric():
    scores = score(SOMETHING, NOTHING, spacing_mm=(0.5, 2.0))

    assert [scores[f"{name}_px"] for name in ("hd", "hd95", "assd")] == [15.0] * 3
    assert [scores[f"{name}_mm"] for name in ("hd", "hd95", "assd")] == [pytest.approx(np.hypot(6, 18))] * 3
