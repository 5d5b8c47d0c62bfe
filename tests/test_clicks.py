"""Clicks on logits: every clicked pixel is right afterwards, the order is indifferent, distant pixels do not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.codes import raises_code

from vesalius.clicks import Click, check_clicks, correct, logit_of, pixel_of
from vesalius.errors import SettingError

SIZE = (24, 40)
PIXELS = st.tuples(st.integers(0, SIZE[1] - 1), st.integers(0, SIZE[0] - 1))


def picture(seed: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=SIZE) * scale).astype(np.float32), rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    signs=st.dictionaries(PIXELS, st.booleans(), min_size=1, max_size=8),
    seed=st.integers(0, 9),
    scale=st.sampled_from([0.0, 1.0, 8.0, 90.0]),
    threshold=st.floats(0.01, 0.99),
)
def test_every_clicked_pixel_is_right_and_the_order_is_indifferent(
    signs: dict[tuple[int, int], bool], seed: int, scale: float, threshold: float
) -> None:
    logits, image = picture(seed, scale)
    clicks: list[Click] = [((float(x), float(y)), positive) for (x, y), positive in signs.items()]
    corrected = correct(logits, image, clicks, threshold)
    assert np.isfinite(corrected).all()
    mask = corrected > np.float32(logit_of(threshold))
    assert all(mask[pixel_of(click)] == click[1] for click in clicks)
    np.testing.assert_allclose(correct(logits, image, clicks[::-1], threshold), corrected, rtol=1e-3, atol=1e-3)


def test_satisfied_click_changes_nothing_and_a_bump_is_local() -> None:
    logits = np.full((64, 640), -3, np.float32)
    logits[20:40] = 3
    image = np.zeros((64, 640, 3), np.uint8)
    np.testing.assert_array_equal(correct(logits, image, [((100, 30), True), ((100, 5), False)]), logits)
    corrected = correct(logits, image, [((100, 30), False)])
    assert corrected[30, 100] < 0
    assert corrected[30, 103] < 0
    np.testing.assert_array_equal(corrected[:, 200:], logits[:, 200:])


def test_later_click_on_a_pixel_replaces_the_earlier() -> None:
    earlier = check_clicks([((3.2, 4.9), True), ((7, 8), False)], SIZE)
    assert check_clicks([((3, 4), np.False_)], SIZE, earlier) == (((7.0, 8.0), False), ((3.0, 4.0), False))


@pytest.mark.parametrize(
    "points",
    [
        [],
        None,
        "points",
        {(1, 2): True},
        [(1, 2)],
        [((1, 2), 1)],
        [((1, 2, 3), True)],
        [(("a", 2), True)],
        [((float("nan"), 2), True)],
        [((1, float("inf")), True)],
        [((-0.1, 2), True)],
        [((40, 2), True)],
        [((1, 24), False)],
        [((1, 2), True), ((1.5, 2.5), False)],
    ],
)
def test_wrong_points_are_refused(points: Any) -> None:
    with raises_code(SettingError, "invalid_point"):
        check_clicks(points, SIZE)
