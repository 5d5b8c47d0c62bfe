"""Overlap metrics: examples by hand, and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vesalius.evaluation.overlap import Confusion, ReferringMetrics, balanced_accuracy, confusion, score, specificity

pairs = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


def square(top: int, left: int, side: int = 2, size: tuple[int, int] = (4, 5)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


NOTHING, EVERYTHING = np.zeros((4, 5), dtype=bool), np.ones((4, 5), dtype=bool)


@pytest.mark.parametrize(
    ("target", "prediction", "dice", "iou", "precision", "recall", "accuracy"),
    [
        (square(1, 1), square(1, 2), 1 / 2, 1 / 3, 1 / 2, 1 / 2, 16 / 20),  # share 2 of 4 pixels
        (square(1, 1), square(0, 0, side=4), 8 / 20, 4 / 16, 4 / 16, 1, 8 / 20),  # inside a larger one
        (square(0, 0), square(2, 3), 0, 0, 0, 0, 12 / 20),  # disjoint
        (square(0, 0), NOTHING, 0, 0, 0, 0, 16 / 20),  # total miss
        (NOTHING, square(0, 0), 0, 0, 0, None, 16 / 20),  # false alarm
        (NOTHING, NOTHING, 1, 1, 1, 1, 1),
    ],
)
def test_scores_of_squares(target, prediction, dice, iou, precision, recall, accuracy):
    expected = {"dice": dice, "iou": iou, "precision": precision, "recall": recall, "accuracy": accuracy}

    assert score(target, prediction) == expected


def test_confusion_counts_of_squares():
    assert confusion(square(1, 1), square(1, 2)) == Confusion(tp=2, fp=2, fn=2, tn=14)


def test_specificity_is_the_share_of_background_not_predicted():
    # 2 of 16 background pixels are predicted
    assert specificity(confusion(square(1, 1), square(1, 2))) == 14 / 16
    assert specificity(confusion(square(1, 1), NOTHING)) == 1.0
    assert specificity(confusion(EVERYTHING, square(1, 1))) is None


def test_balanced_accuracy_is_the_mean_of_recall_and_specificity():
    assert balanced_accuracy(confusion(square(1, 1), square(1, 2))) == (2 / 4 + 14 / 16) / 2
    assert balanced_accuracy(confusion(square(1, 1), NOTHING)) == 0.5
    assert balanced_accuracy(confusion(NOTHING, square(1, 1))) == 16 / 20  # its specificity
    assert balanced_accuracy(confusion(EVERYTHING, NOTHING)) == 0.0
    assert balanced_accuracy(confusion(NOTHING, NOTHING)) == 1.0


def test_only_pixels_within_the_region_are_counted():
    left = np.zeros((4, 5), bool)
    left[:, :3] = True

    # the region contains 4 and 2 pixels of the squares in columns 1-2 and 2-3
    assert confusion(square(1, 1), square(1, 2), left) == Confusion(tp=2, fp=0, fn=2, tn=8)


def test_giou_is_a_mean_over_samples_and_ciou_over_pixels():
    referring = ReferringMetrics()
    assert (referring.giou, referring.ciou) == (None, None)
    referring.add(confusion(square(1, 1), square(1, 2)))  # 2 of 6 pixels
    referring.add(confusion(square(0, 0, side=4), square(0, 0, side=4)))  # 16 of 16

    assert referring.giou == pytest.approx((1 / 3 + 1) / 2)
    assert referring.ciou == 18 / 22


def test_absent_objects_count_for_giou_and_false_alarms_for_both():
    referring = ReferringMetrics()
    referring.add(confusion(NOTHING, NOTHING))
    assert (referring.giou, referring.ciou) == (1.0, 1.0)
    referring.add(confusion(square(1, 1), square(1, 1)))
    referring.add(confusion(NOTHING, square(1, 1)))

    assert (referring.giou, referring.ciou) == (pytest.approx(2 / 3), 4 / 8)


@given(pairs)
def test_scores_lie_between_zero_and_one_or_are_the_recall_of_a_false_alarm(masks):
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
        (np.zeros((2, 3), bool), np.zeros((3, 2), bool), r"the same size; got \(2, 3\) and \(3, 2\)"),
        (np.zeros((2, 3), bool), np.zeros((2, 3), np.uint8), r"prediction must be bool .* got uint8 \(2, 3\)"),
        (np.zeros((1, 2, 3), bool), np.zeros((2, 3), bool), r"target must be bool .* got bool \(1, 2, 3\)"),
        (np.zeros((0, 3), bool), np.zeros((0, 3), bool), "at least one pixel"),
    ],
)
def test_masks_of_other_sizes_and_types_are_refused(target, prediction, words):
    with pytest.raises(ValueError, match=words):
        confusion(target, prediction)


def test_regions_of_other_size_or_without_pixels_are_refused():
    masks = square(0, 0), square(1, 1)

    with pytest.raises(ValueError, match=r"target and within must have the same size; got \(4, 5\) and \(5, 4\)"):
        confusion(*masks, np.ones((5, 4), bool))
    with pytest.raises(ValueError, match="no pixel"):
        confusion(*masks, np.zeros((4, 5), bool))
