"""J and F of a clip: examples by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vesalius.evaluation.video import contour, region, score

clips = st.tuples(hnp.arrays(bool, (2, 6, 7)), hnp.arrays(bool, (2, 6, 7)))


def square(top: int, left: int, side: int = 20) -> np.ndarray:
    mask = np.zeros((100, 100), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_tolerance_is_two_pixels_in_a_frame_of_100_by_100():
    # 0.008 * 141.4 = 1.13, rounded up
    assert contour(square(30, 30), square(30, 32)) == 1.0
    assert contour(square(30, 30), square(30, 33)) < 1.0
    assert contour(square(30, 30), square(60, 60)) == 0.0


def test_contour_accuracy_of_a_square_moved_by_three():
    # The contour is a ring of 80 pixels. The first side with its two corners (21 pixels) is 3 columns away. Of the 19
    # pixels of the opposite side, 4 are within 1 or 2 rows of the top or bottom of the other ring.
    near = 80 - 21 - 15

    assert contour(square(30, 30), square(30, 33)) == pytest.approx(near / 80)


def test_j_and_f_are_means_over_frames():
    target = np.stack([square(30, 30), square(30, 30)])
    prediction = np.stack([square(30, 30), square(60, 60)])

    assert score(target, prediction) == {"j": 0.5, "f": 0.5, "j_and_f": 0.5}


def test_empty_frames_score_one_if_both_are_empty_and_zero_otherwise():
    nothing = np.zeros((100, 100), dtype=bool)

    for metric in (region, contour):
        assert metric(nothing, nothing) == 1.0
        assert metric(nothing, square(1, 1)) == metric(square(1, 1), nothing) == 0.0
        assert metric(nothing, ~nothing) == metric(~nothing, nothing) == 0.0
        assert metric(~nothing, ~nothing) == 1.0


@given(clips)
def test_scores_lie_between_zero_and_one_and_order_does_not_matter(masks):
    target, prediction = masks
    scores = score(target, prediction)

    assert all(0 <= value <= 1 for value in scores.values())
    assert scores == pytest.approx(score(prediction, target))
    assert set(score(target, target).values()) == {1.0}


@pytest.mark.parametrize("sizes", [((2, 4, 4), (3, 4, 4)), ((4, 4), (4, 4)), ((0, 4, 4), (0, 4, 4))])
def test_clips_of_different_sizes_are_refused(sizes):
    target, prediction = (np.zeros(size, dtype=bool) for size in sizes)
    with pytest.raises(ValueError, match=r"\(f, h, w\) of the same size"):
        score(target, prediction)
