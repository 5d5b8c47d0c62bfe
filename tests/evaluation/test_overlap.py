"""Overlap metrics: worked out by hand, and their properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vesalius.evaluation.overlap import (
    Confusion,
    ReferringMetrics,
    balanced_accuracy,
    confusion,
    score,
    specificity,
)

pairs = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


def square(top: int, left: int, side: int = 2, size: tuple[int, int] = (4, 5)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_two_squares_that_share_two_pixels_have_dice_one_half():
    target, prediction = square(1, 1), square(1, 2)

    assert confusion(target, prediction) == Confusion(tp=2, fp=2, fn=2, tn=14)
    assert score(target, prediction) == {
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


def test_specificity_is_the_share_of_background_left_alone():
    # 16 pixels of background, of which 2 were taken for the square
    assert specificity(confusion(square(1, 1), square(1, 2))) == 14 / 16
    assert specificity(confusion(square(1, 1), np.zeros((4, 5), bool))) == 1.0
    assert specificity(confusion(np.ones((4, 5), bool), square(1, 1))) is None


def test_balanced_accuracy_is_the_mean_of_recall_and_specificity():
    nothing, everything = np.zeros((4, 5), bool), np.ones((4, 5), bool)

    assert balanced_accuracy(confusion(square(1, 1), square(1, 2))) == (2 / 4 + 14 / 16) / 2
    assert balanced_accuracy(confusion(square(1, 1), nothing)) == 0.5
    assert balanced_accuracy(confusion(nothing, square(1, 1))) == 16 / 20  # its specificity
    assert balanced_accuracy(confusion(everything, nothing)) == 0.0
    assert balanced_accuracy(confusion(nothing, nothing)) == 1.0


def test_only_pixels_within_the_region_are_counted():
    left = np.zeros((4, 5), bool)
    left[:, :3] = True

    # of the squares in columns 1-2 and 2-3 the region holds 4 and 2 pixels
    assert confusion(square(1, 1), square(1, 2), left) == Confusion(tp=2, fp=0, fn=2, tn=8)


def test_giou_is_a_mean_over_samples_and_ciou_over_pixels():
    referring = ReferringMetrics()
    assert (referring.giou, referring.ciou) == (None, None)
    referring.add(confusion(square(1, 1), square(1, 2)))  # 2 of 6 pixels
    referring.add(confusion(square(0, 0, side=4), square(0, 0, side=4)))  # 16 of 16

    assert referring.giou == pytest.approx((1 / 3 + 1) / 2)
    assert referring.ciou == 18 / 22


def test_absent_object_counts_for_giou_and_a_false_alarm_for_both():
    nothing = np.zeros((4, 5), bool)
    referring = ReferringMetrics()
    referring.add(confusion(nothing, nothing))
    assert (referring.giou, referring.ciou) == (1.0, 1.0)
    referring.add(confusion(square(1, 1), square(1, 1)))
    referring.add(confusion(nothing, square(1, 1)))

    assert (referring.giou, referring.ciou) == (pytest.approx(2 / 3), 4 / 8)


@given(pairs)
def test_scores_lie_between_zero_and_one_and_only_a_false_alarm_lacks_one(masks):
    target, prediction = masks
    for name, value in score(target, prediction).items():
        if value is None:
            assert name == "recall" and not target.any() and prediction.any()
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
    target, prediction = masks
    counts = confusion(target, prediction)

    assert set(score(target, target).values()) == {1.0}
    assert counts.tp + counts.fp + counts.fn + counts.tn == target.size
    assert min(counts.tp, counts.fp, counts.fn, counts.tn) >= 0


@pytest.mark.parametrize(
    ("target", "prediction", "words"),
    [
        (np.zeros((2, 3), bool), np.zeros((3, 2), bool), r"one size; got \(2, 3\) and \(3, 2\)"),
        (
            np.zeros((2, 3), bool),
            np.zeros((2, 3), np.uint8),
            r"prediction must be bool .* got uint8 \(2, 3\)",
        ),
        (np.zeros((1, 2, 3), bool), np.zeros((2, 3), bool), r"target must be bool .* got bool \(1, 2, 3\)"),
        (np.zeros((0, 3), bool), np.zeros((0, 3), bool), "at least one pixel"),
    ],
)
def test_masks_that_do_not_fit_are_refused(target, prediction, words):
    with pytest.raises(ValueError, match=words):
        confusion(target, prediction)


def test_region_that_does_not_fit_is_refused():
    masks = square(0, 0), square(1, 1)

    with pytest.raises(ValueError, match=r"target and within must have one size; got \(4, 5\) and \(5, 4\)"):
        confusion(*masks, np.ones((5, 4), bool))
    with pytest.raises(ValueError, match="no pixel"):
        confusion(*masks, np.zeros((4, 5), bool))
