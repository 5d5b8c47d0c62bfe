"""J and F of a clip, worked out by hand."""

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


def test_tolerance_is_two_pixels_in_a_frame_of_100():
    # 0.008 * 141.4 = 1.13, rounded up
    assert contour(square(30, 30), square(30, 32)) == 1.0
    assert contour(square(30, 30), square(30, 33)) < 1.0
    assert contour(square(30, 30), square(60, 60)) == 0.0


def test_square_moved_by_three_keeps_what_lies_within_two_of_the_other_contour():
    # The contour is a ring of 80 pixels. 3 columns away lie the first side and its two corners (21 pixels); of the
    # 19 of the other side those stay near that are 1 or 2 rows from the top or the bottom of the other ring (4).
    near = 80 - 21 - 15

    assert contour(square(30, 30), square(30, 33)) == pytest.approx(near / 80)


def test_means_are_over_frames_and_j_and_f_is_their_mean():
    target = np.stack([square(30, 30), square(30, 30)])
    prediction = np.stack([square(30, 30), square(60, 60)])

    assert score(target, prediction) == {"j": 0.5, "f": 0.5, "j_and_f": 0.5}


def test_empty_frames_are_right_when_nothing_is_there_and_wrong_otherwise():
    nothing = np.zeros((100, 100), dtype=bool)

    for measure in (region, contour):
        assert measure(nothing, nothing) == 1.0
        assert measure(nothing, square(1, 1)) == measure(square(1, 1), nothing) == 0.0
        assert measure(nothing, ~nothing) == measure(~nothing, nothing) == 0.0
        assert measure(~nothing, ~nothing) == 1.0


@given(clips)
def test_scores_lie_between_zero_and_one_and_order_does_not_matter(masks):
    target, prediction = masks
    scores = score(target, prediction)

    assert all(0 <= value <= 1 for value in scores.values())
    assert scores == pytest.approx(score(prediction, target))
    assert set(score(target, target).values()) == {1.0}


@pytest.mark.parametrize("sizes", [((2, 4, 4), (3, 4, 4)), ((4, 4), (4, 4)), ((0, 4, 4), (0, 4, 4))])
def test_clips_that_do_not_fit_are_refused(sizes):
    target, prediction = (np.zeros(size, dtype=bool) for size in sizes)
    with pytest.raises(ValueError, match=r"\(f, h, w\) of one size"):
        score(target, prediction)
