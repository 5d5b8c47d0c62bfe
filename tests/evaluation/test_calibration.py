"""Calibration: counts by hand, error bounds against exact values, and agreement with the masks of predictions."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vesalius.evaluation.calibration import (
    BINS,
    EDGES,
    THRESHOLDS,
    average_precision,
    brier_score,
    curves,
    expected_calibration_error,
    histogram,
    reliability,
)
from vesalius.evaluation.overlap import confusion, dice, iou, precision, recall
from vesalius.mask_maps import LowRes
from vesalius.types import Prediction

maps = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)), hnp.arrays(bool, shape))
)
BY_NAME = {"dice": dice, "iou": iou, "precision": precision, "recall": recall}


def test_histogram_counts_each_pixel_once_and_a_border_belongs_to_the_bin_below():
    probabilities = np.array([[0.0, 0.25, 0.2501], [0.25, 0.9995, 1.0]])
    target = np.array([[False, False, True], [True, False, True]])

    counts = histogram(probabilities, target)

    quarter = EDGES.searchsorted(0.25)
    assert counts.sum() == 6
    assert counts[:, [0, quarter, quarter + 1, -1]].tolist() == [[1, 1, 0, 0], [0, 1, 1, 1]]


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.0, 1e-7, 0.001, 0.999, 1.0]), min_size=1))
def test_bin_of_a_probability_is_its_position_among_the_borders(values):
    probabilities = np.array([values])
    expected = np.bincount(EDGES.searchsorted(values), minlength=BINS)

    assert np.array_equal(histogram(probabilities, np.zeros_like(probabilities, dtype=bool))[0], expected)


def test_borders_increase_and_include_all_thresholds():
    assert (np.diff(EDGES) > 0).all() and EDGES[0] > 0 and EDGES[-1] < 1
    assert set(THRESHOLDS) <= set(EDGES)
    assert len(THRESHOLDS) == 999 and len(EDGES) + 1 == BINS


def test_histograms_add_up_and_exclude_pixels_outside_the_region():
    rng = np.random.default_rng(0)
    probabilities, target = rng.random((90, 200)), rng.random((90, 200)) < 0.1
    left = np.zeros_like(target)
    left[:, :80] = True

    whole = histogram(probabilities, target)
    parts = [histogram(probabilities, target, within=region) for region in (left, ~left)]

    assert whole.dtype == np.int64 and whole.shape == (2, BINS)
    assert np.array_equal(parts[0] + parts[1], whole)
    assert np.array_equal(parts[0], histogram(probabilities[:, :80], target[:, :80]))


@given(maps)
def test_curves_are_those_of_the_masks_at_each_threshold(drawn):
    probabilities, target = drawn
    found = curves(histogram(probabilities, target))
    exact = probabilities.astype(np.float64)

    assert len(found.dice) == len(THRESHOLDS)
    for k in range(0, len(THRESHOLDS), 37):
        counts = confusion(target, exact > THRESHOLDS[k])
        for name, metric in BY_NAME.items():
            value, expected = getattr(found, name)[k], metric(counts)
            assert np.isnan(value) if expected is None else value == pytest.approx(expected), name


@pytest.mark.parametrize("threshold", [0.05, 0.37, 0.5, 0.8, 0.999])
def test_curves_agree_with_the_masks_of_a_prediction(threshold):
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, (1, 32, 32)).astype(np.float32)
    prediction = Prediction("a", "p", "ok", (96, 80), LowRes(logits, 64), threshold=threshold)
    target = rng.random((96, 80)) < 0.3

    found = curves(histogram(prediction.probabilities[0], target))

    k = THRESHOLDS.searchsorted(threshold)
    assert THRESHOLDS[k] == threshold
    assert found.dice[k] == dice(confusion(target, prediction.mask))


def test_average_precision_of_a_ranking_worked_out_by_hand():
    # ranking: true, false, true, false; 1/2 * 1/1 + 1/2 * 2/3
    probabilities = np.array([[0.9, 0.8, 0.7, 0.1]])
    target = np.array([[True, False, True, False]])

    assert average_precision(histogram(probabilities, target)) == pytest.approx(5 / 6)
    assert average_precision(histogram(probabilities, ~target)) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert average_precision(histogram(probabilities, np.zeros_like(target))) is None
    assert average_precision(histogram(probabilities, np.ones_like(target))) == 1.0


@given(maps)
def test_brier_score_is_within_a_bin_of_the_exact_one(drawn):
    probabilities, target = drawn
    exact = ((probabilities.astype(np.float64) - target) ** 2).mean()

    assert brier_score(histogram(probabilities, target)) == pytest.approx(exact, abs=0.001)


@given(maps)
def test_calibration_error_is_within_half_a_bin_of_the_exact_one(drawn):
    probabilities, target = drawn
    values = probabilities.astype(np.float64).ravel()
    index = np.maximum(np.ceil(values * 10) - 1, 0)
    gaps = [abs((values - target.ravel())[index == k].sum()) for k in range(10)]

    found = expected_calibration_error(histogram(probabilities, target))

    assert found == pytest.approx(sum(gaps) / values.size, abs=0.0005 + 1e-9)


def test_reliability_has_mean_probability_and_positive_fraction_of_each_bin():
    probabilities = np.array([[0.05, 0.15, 0.15, 0.15, 0.95]])
    target = np.array([[False, True, False, False, True]])

    rows = reliability(histogram(probabilities, target))

    assert [row.pixels for row in rows] == [1, 3, 0, 0, 0, 0, 0, 0, 0, 1]
    assert (rows[1].low, rows[1].high, rows[1].positive_fraction) == (0.1, 0.2, 1 / 3)
    assert rows[1].mean_probability == pytest.approx(0.15, abs=0.00051)
    assert (rows[2].mean_probability, rows[2].positive_fraction) == (None, None)
    json.dumps([asdict(row) for row in rows], allow_nan=False)


def test_calibrated_probabilities_have_a_small_error_and_confident_wrong_ones_a_large_one():
    rng = np.random.default_rng(0)
    probabilities = rng.random((300, 300))
    calibrated = histogram(probabilities, rng.random(probabilities.shape) < probabilities)
    wrong = histogram(np.ones((9, 9)), np.zeros((9, 9), dtype=bool))

    assert expected_calibration_error(calibrated) < 0.01
    assert brier_score(calibrated) == pytest.approx(1 / 6, abs=0.01)
    assert expected_calibration_error(wrong) == pytest.approx(1.0, abs=0.001)
    assert brier_score(wrong) == pytest.approx(1.0, abs=0.001)


def test_an_empty_histogram_has_no_score():
    nothing = np.zeros((2, BINS), dtype=np.int64)

    assert (average_precision(nothing), brier_score(nothing), expected_calibration_error(nothing)) == (None,) * 3


@pytest.mark.parametrize("wrong", [np.nan, -0.01, 1.01, np.inf])
def test_values_that_are_no_probability_are_refused(wrong):
    probabilities, target = np.full((3, 3), 0.5), np.zeros((3, 3), dtype=bool)
    probabilities[1, 1] = wrong

    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        histogram(probabilities, target)


def test_arrays_of_other_sizes_and_types_are_refused():
    with pytest.raises(ValueError, match=r"bool \(3, 3\), .* got bool \(3, 4\)"):
        histogram(np.zeros((3, 3)), np.zeros((3, 4), dtype=bool))
    with pytest.raises(ValueError, match="got uint8"):
        histogram(np.zeros((3, 3)), np.zeros((3, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="into 15 bins"):
        reliability(np.zeros((2, BINS), dtype=np.int64), 15)
