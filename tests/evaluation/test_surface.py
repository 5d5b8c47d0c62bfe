"""Distances between boundaries: examples by hand, and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vesalius.evaluation.shape import Shape
from vesalius.evaluation.surface import assd, hd, hd95, nsd, surface_distances

pairs = hnp.array_shapes(min_dims=2, max_dims=2, max_side=8).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


def pixels(*positions: tuple[int, int], size: tuple[int, int] = (8, 10)) -> Shape:
    mask = np.zeros(size, dtype=bool)
    for position in positions:
        mask[position] = True
    return Shape(mask)


def measured(target: Shape, prediction: Shape, **options) -> dict[str, float | None]:
    distances = surface_distances(target, prediction, **options)
    return {
        "hd": hd(distances),
        "hd95": hd95(distances),
        "assd": assd(distances),
        "nsd1": nsd(distances, 1),
        "nsd2": nsd(distances, 2),
    }


def test_two_pixels_at_distance_two():
    one, other = pixels((3, 3)), pixels((3, 5))

    assert measured(one, other) == {"hd": 2.0, "hd95": 2.0, "assd": 2.0, "nsd1": 0.0, "nsd2": 1.0}


def test_spacing_is_row_then_column():
    across, down = pixels((3, 5)), pixels((5, 3))

    assert hd(surface_distances(pixels((3, 3)), across, spacing=(2.0, 1.0))) == 2.0
    assert hd(surface_distances(pixels((3, 3)), down, spacing=(2.0, 1.0))) == 4.0


def test_one_far_pixel_sets_the_largest_distance_and_changes_the_others_little():
    # the target is a row of 5; the prediction is that row and one pixel 3 below its end
    target = pixels(*[(2, column) for column in range(5)])
    prediction = pixels(*[(2, column) for column in range(5)], (5, 4))

    scores = measured(target, prediction)

    assert scores["hd"] == 3.0
    # for the six distances 0 0 0 0 0 3, the 95th percentile is 0.75 of the way from the 5th to the 6th
    assert scores["hd95"] == pytest.approx(0.75 * 3)
    assert scores["assd"] == pytest.approx(3 / 11)
    assert scores["nsd1"] == scores["nsd2"] == pytest.approx(10 / 11)


def test_hd95_is_the_larger_percentile_of_the_two_directions():
    # 1 of 21 predicted pixels is off by 10: 4.8 % of its own boundary, 2.4 % of both
    row = [(2, column) for column in range(20)]
    target, prediction = pixels(*row, size=(20, 20)), pixels(*row, (12, 0), size=(20, 20))

    distances = surface_distances(target, prediction)

    assert hd95(distances) == pytest.approx(np.percentile([0.0] * 20 + [10.0], 95)) == 0.0
    far = surface_distances(target, pixels(*row, (12, 0), (12, 5), size=(20, 20)))
    both = np.concatenate([far.from_target, far.from_prediction])
    assert np.percentile(both, 95) == 0.0 < 9 < hd95(far)


def test_inner_pixels_are_not_boundary():
    # squares of 5 and 3 around one middle: boundaries 1 apart at the sides, sqrt 2 at the corners
    target, prediction = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    target[2:7, 2:7] = prediction[3:6, 3:6] = True

    distances = surface_distances(Shape(target), Shape(prediction))

    assert sorted(distances.from_target) == [1.0] * 12 + [np.sqrt(2)] * 4
    assert distances.from_prediction.tolist() == [1.0] * 8


def test_distance_to_an_empty_mask_is_the_image_diagonal_and_undefined_for_two():
    nothing, something = pixels(size=(6, 8)), pixels((1, 1), size=(6, 8))

    for one, other in ((nothing, something), (something, nothing)):
        assert measured(one, other) == {"hd": 10.0, "hd95": 10.0, "assd": 10.0, "nsd1": 0.0, "nsd2": 0.0}
        assert hd(surface_distances(one, other, spacing=(0.5, 0.5))) == 5.0
        assert hd(surface_distances(one, other, size=(30, 40))) == 50.0
    assert measured(nothing, nothing) == {"hd": None, "hd95": None, "assd": None, "nsd1": 1.0, "nsd2": 1.0}


@given(pairs)
def test_order_of_the_masks_does_not_matter(masks):
    one, other = Shape(masks[0]), Shape(masks[1])
    assert measured(one, other) == pytest.approx(measured(other, one))


@given(pairs)
def test_distances_are_ordered_and_lie_below_the_diagonal(masks):
    scores = measured(Shape(masks[0]), Shape(masks[1]))
    if scores["hd"] is None:
        return
    assert 0 <= scores["assd"] <= scores["hd"] + 1e-9
    assert 0 <= scores["hd95"] <= scores["hd"] <= np.hypot(*masks[0].shape)
    assert 0 <= scores["nsd1"] <= scores["nsd2"] <= 1


@given(pairs, st.sampled_from([0.5, 3.0]))
def test_other_units_scale_the_distances(masks, factor):
    one, other = Shape(masks[0]), Shape(masks[1])
    in_px, direct = surface_distances(one, other), surface_distances(one, other, spacing=(factor, factor))
    for metric in (hd, hd95, assd):
        assert metric(direct) == pytest.approx(metric(in_px.scaled(factor)))
    assert nsd(direct, 2 * factor) == nsd(in_px.scaled(factor), 2 * factor) == nsd(in_px, 2)


@given(pairs)
def test_distances_are_zero_only_for_equal_boundaries(masks):
    one, other = Shape(masks[0]), Shape(masks[1])
    if one.empty or other.empty:
        return
    assert hd(surface_distances(one, one)) == 0.0
    assert (hd(surface_distances(one, other)) == 0.0) == np.array_equal(one.boundary, other.boundary)
