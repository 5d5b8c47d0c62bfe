"""Overlap metrics: worked out by hand, their properties, and the table of empty masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vesalius.evaluation.overlap import EMPTY, METRICS, Confusion, confusion, score

METRICS_PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

pairs = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


def square(top: int, left: int, side: int = 2, size: tuple[int, int] = (4, 5)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_two_squares_that_share_two_pixels_have_dice_one_half():
    truth, guess = square(1, 1), square(1, 2)

    assert confusion(truth, guess) == Confusion(tp=2, fp=2, fn=2, tn=14)
    assert score(truth, guess) == {
        "dice": 0.5,
        "iou": 1 / 3,
        "precision": 0.5,
        "recall": 0.5,
        "accuracy": 0.8,
    }


def test_square_inside_a_larger_one_is_found_whole_but_not_precise():
    assert score(square(1, 1, side=2), square(0, 0, side=4)) == {
        "dice": 8 / 20,
        "iou": 4 / 16,
        "precision": 4 / 16,
        "recall": 1.0,
        "accuracy": 8 / 20,
    }


def test_squares_apart_score_zero_and_keep_their_accuracy():
    scores = score(square(0, 0), square(2, 3))

    assert [scores[name] for name in ("dice", "iou", "precision", "recall")] == [0.0] * 4
    assert scores["accuracy"] == 12 / 20


def test_total_miss_is_never_perfect_and_never_dropped():
    scores = score(square(0, 0), np.zeros((4, 5), dtype=bool))

    assert [scores[name] for name in ("dice", "iou", "precision", "recall")] == [0.0] * 4


def test_false_alarm_scores_zero_and_has_no_recall():
    scores = score(np.zeros((4, 5), dtype=bool), square(0, 0))

    assert (scores["dice"], scores["iou"], scores["precision"], scores["recall"]) == (0.0, 0.0, 0.0, None)


def test_nothing_there_and_nothing_said_is_right():
    empty = np.zeros((4, 5), dtype=bool)

    assert set(score(empty, empty).values()) == {1.0}


def test_page_on_metrics_holds_the_table_of_the_code():
    header, *lines = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in METRICS_PAGE.read_text(encoding="utf-8")
        .split("## Empty masks")[1]
        .split("##")[0]
        .splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]
    assert header[2:] == list(METRICS)
    page = {(truth == "empty", guess == "empty"): values for truth, guess, *values in lines}
    assert len(page) == len(lines) == 4

    for case, values in page.items():
        for name, cell in zip(METRICS, values, strict=True):
            assert _cell(case, name) == cell, f"{name} where (truth, prediction) is empty: {case}"


def _cell(case: tuple[bool, bool], name: str) -> str:
    if name not in EMPTY.get(case, {}):
        return "formula"
    value = EMPTY[case][name]
    return "null" if value is None else f"{value:g}"


@given(pairs)
def test_scores_lie_between_zero_and_one_and_only_a_false_alarm_lacks_one(masks):
    truth, guess = masks
    for name, value in score(truth, guess).items():
        if value is None:
            assert name == "recall" and not truth.any() and guess.any()
        else:
            assert 0 <= value <= 1


@given(pairs)
def test_dice_and_iou_do_not_depend_on_the_order_of_the_masks(masks):
    forth, back = score(*masks), score(*reversed(masks))
    assert (forth["dice"], forth["iou"]) == (back["dice"], back["iou"])


@given(pairs)
def test_dice_follows_from_iou(masks):
    scores = score(*masks)
    assert scores["dice"] == pytest.approx(2 * scores["iou"] / (1 + scores["iou"]))


@given(pairs)
def test_a_mask_against_itself_is_perfect_and_counts_add_up(masks):
    truth, guess = masks
    counts = confusion(truth, guess)

    assert set(score(truth, truth).values()) == {1.0}
    assert counts.tp + counts.fp + counts.fn + counts.tn == truth.size
    assert min(counts.tp, counts.fp, counts.fn, counts.tn) >= 0


@pytest.mark.parametrize(
    ("truth", "guess", "words"),
    [
        (np.zeros((2, 3), bool), np.zeros((3, 2), bool), r"one size; got \(2, 3\) and \(3, 2\)"),
        (np.zeros((2, 3), bool), np.zeros((2, 3), np.uint8), r"guess must be bool .* got uint8 \(2, 3\)"),
        (np.zeros((1, 2, 3), bool), np.zeros((2, 3), bool), r"truth must be bool .* got bool \(1, 2, 3\)"),
        (np.zeros((0, 3), bool), np.zeros((0, 3), bool), "at least one pixel"),
    ],
)
def test_masks_that_do_not_fit_are_refused(truth, guess, words):
    with pytest.raises(ValueError, match=words):
        confusion(truth, guess)
