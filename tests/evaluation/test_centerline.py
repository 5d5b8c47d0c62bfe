"""clDice, Betti errors, skeleton recall and breaks: examples by hand, and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vesalius.evaluation.centerline import (
    WIDTHS,
    betti0_error,
    betti1_error,
    breaks,
    cldice,
    skeleton_recall,
    skeleton_recall_of_width,
    topology_precision,
    topology_sensitivity,
)
from vesalius.evaluation.shape import Shape

pairs = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


def drawn(*rows: str) -> Shape:
    return Shape(np.array([[pixel == "#" for pixel in row] for row in rows]))


def row(*columns: tuple[int, int], at: int = 5, width: int = 1, size: tuple[int, int] = (20, 40)) -> np.ndarray:
    """Horizontal lines starting at row `at`, each from one column up to another."""
    mask = np.zeros(size, dtype=bool)
    for first, last in columns:
        mask[at : at + width, first:last] = True
    return mask


def test_two_thirds_of_a_line_and_a_false_line():
    # 20 of 30 pixels are found; 20 of 30 predicted pixels are correct
    target, prediction = Shape(row((0, 30))), Shape(row((10, 30)) | row((0, 10), at=15))

    assert topology_precision(target, prediction) == topology_sensitivity(target, prediction) == 20 / 30
    assert cldice(target, prediction) == pytest.approx(2 / 3)


def test_a_wider_prediction_has_full_sensitivity_and_nearly_full_precision():
    target, prediction = Shape(row((0, 40), at=6)), Shape(row((0, 40), at=5, width=3))

    assert topology_sensitivity(target, prediction) == 1.0
    # the skeleton of a 3 x 40 band is its middle row, except for one of 39 pixels at an end
    assert topology_precision(target, prediction) == 38 / 39
    assert cldice(target, prediction) == pytest.approx(2 * (38 / 39) / (1 + 38 / 39))


def test_disjoint_lines_have_cldice_zero():
    assert cldice(Shape(row((0, 30))), Shape(row((0, 30), at=12))) == 0.0


def test_betti_errors_count_components_and_holes_over_the_whole_image():
    ring = drawn("###....", "#.#....", "###....")
    three = drawn("#.#.#..", ".......", ".......")

    assert (betti0_error(ring, three), betti1_error(ring, three)) == (2.0, 1.0)
    assert (betti0_error(ring, ring), betti1_error(ring, ring)) == (0.0, 0.0)


def test_betti_errors_of_a_total_miss_are_not_zero():
    line, nothing = drawn("####", "...."), drawn("....", "....")
    two_rings = drawn("###.###", "#.#.#.#", "###.###")
    blank = drawn(*["......."] * 3)

    assert (betti0_error(line, nothing), betti1_error(line, nothing)) == (1.0, 1.0)
    assert (betti0_error(nothing, line), betti1_error(nothing, line)) == (1.0, 1.0)
    assert (betti0_error(two_rings, blank), betti1_error(two_rings, blank)) == (2.0, 2.0)
    assert (betti0_error(blank, blank), betti1_error(blank, blank)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (row((0, 40)), 0),
        (row((0, 20)), 0),  # the end is missing: one component
        (row((0, 15), (20, 40)), 1),
        (row((0, 10), (15, 20), (30, 40)), 2),
        (row((5, 10), (15, 20)), 1),
        (row((0, 40), at=12), 1),  # missed completely
        (row((0, 15), (20, 40)) | row((14, 21), at=6), 0),  # a detour around the gap, 1 pixel off
        (row((0, 15), (20, 40)) | row((14, 21), at=7), 1),  # 2 pixels off, not connected to the rest
        (row((0, 40)) | row((0, 40), at=15), 0),  # a line elsewhere is not a break
    ],
)
def test_breaks_of_a_straight_line(prediction, expected):
    assert breaks(Shape(row((0, 40))), Shape(prediction)) == expected


def test_a_detour_of_more_than_two_pixels_does_not_close_a_gap():
    gap = row((0, 15), (20, 40), size=(30, 40))
    far = gap.copy()
    far[5:16, 14] = far[5:16, 20] = far[15, 14:21] = True

    assert Shape(far).betti0 == 1
    assert breaks(Shape(row((0, 40), size=(30, 40))), Shape(far)) == 1


def test_hole_along_the_middle_of_a_wide_vessel_is_no_break():
    target = row((0, 40), at=4, width=11)
    prediction = target.copy()
    prediction[8:11, 10:30] = False

    assert breaks(Shape(target), Shape(prediction)) == 0
    assert skeleton_recall(Shape(target), Shape(prediction)) < 0.7


def test_a_ring_breaks_at_its_second_gap_and_a_fork_at_each_detached_branch():
    ring = np.zeros((21, 21), dtype=bool)
    ring[2:19, 2:19] = True
    ring[3:18, 3:18] = False
    once, twice = ring.copy(), ring.copy()
    once[2, 8:13] = twice[2, 8:13] = twice[18, 8:13] = False
    assert (breaks(Shape(ring), Shape(once)), breaks(Shape(ring), Shape(twice))) == (0, 1)

    fork = np.zeros((21, 21), dtype=bool)
    fork[10, :11] = fork[:10, 10] = fork[11:, 10] = True
    off = fork.copy()
    off[7:14, 7:14] = False
    assert breaks(Shape(fork), Shape(off)) == 2


def test_each_missed_vessel_counts_one_break_so_a_total_miss_is_not_perfect():
    target = row((0, 40)) | row((0, 40), at=15)
    nothing = np.zeros_like(target)

    assert breaks(Shape(target), Shape(row((0, 40)))) == 1
    assert breaks(Shape(target), Shape(nothing)) == 2
    assert breaks(Shape(nothing), Shape(target)) is None
    assert breaks(Shape(nothing), Shape(nothing)) == 0


@given(pairs)
def test_breaks_agree_with_a_slow_implementation_of_their_definition(masks):
    target, prediction = masks
    if not target.any():
        return
    assert breaks(Shape(target), Shape(prediction)) == slow_breaks(target, prediction)


def slow_breaks(target: np.ndarray, prediction: np.ndarray) -> int:
    true, predicted = (set(zip(*mask.nonzero(), strict=True)) for mask in (target, prediction))
    near = {(y, x) for y, x in predicted if any(abs(y - r) + abs(x - c) <= 2 for r, c in true)}
    skeleton = set(zip(*Shape(target).skeleton.nonzero(), strict=True))
    components = flooded(near)
    total = 0
    for vessel in flooded(true):
        total += abs(sum(bool(each & skeleton & vessel) for each in components) - 1)
    return total


def flooded(pixels: set) -> list[set]:
    """The 8-connected components of a set of pixels."""
    left, components = set(pixels), []
    while left:
        component, front = set(), [left.pop()]
        while front:
            r, c = front.pop()
            component.add((r, c))
            around = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= around
            front += around
        components.append(component)
    return components


def test_skeleton_recall_by_width_shows_which_vessels_were_missed():
    size = (80, 40)
    lines = {width: row((0, 40), at=at, width=width, size=size) for at, width in ((2, 1), (12, 3), (24, 7), (50, 15))}
    target = np.logical_or.reduce(list(lines.values()))
    prediction = target & ~lines[1] & ~lines[7]
    prediction[:, 20:] &= ~lines[3][:, 20:]

    recalls = [skeleton_recall_of_width(Shape(target), Shape(prediction), *limits) for limits in WIDTHS.values()]

    assert recalls[0] == 0.0
    assert recalls[1] == pytest.approx(0.5, abs=0.05)  # the band of 7 is this narrow near its ends
    assert recalls[2] == pytest.approx(0.0, abs=0.35)
    assert recalls[3] == 1.0


def test_stratum_without_vessels_has_no_recall():
    line = Shape(row((0, 40)))
    nothing = Shape(np.zeros_like(line.mask))

    for target, prediction, first in (
        (line, line, 1),
        (line, nothing, 0),
        (nothing, line, None),
        (nothing, nothing, None),
    ):
        recalls = [skeleton_recall_of_width(target, prediction, *limits) for limits in WIDTHS.values()]
        assert recalls == [first, None, None, None]


@given(pairs)
def test_strata_partition_the_skeleton(masks):
    target, prediction = Shape(masks[0]), Shape(masks[1])
    if target.empty:
        return
    found = 0.0
    for low, high in WIDTHS.values():
        length = np.count_nonzero((target.widths > low) & (target.widths <= high))
        found += length * (skeleton_recall_of_width(target, prediction, low, high) or 0.0)
    assert skeleton_recall(target, prediction) == pytest.approx(found / np.count_nonzero(target.skeleton))
    assert skeleton_recall(target, prediction) == topology_sensitivity(target, prediction)


@given(pairs)
def test_cldice_and_betti_errors_do_not_depend_on_the_order_of_the_masks(masks):
    one, other = Shape(masks[0]), Shape(masks[1])
    for metric in (cldice, betti0_error, betti1_error):
        assert metric(one, other) == pytest.approx(metric(other, one))


@given(pairs)
def test_a_mask_against_itself_is_perfect(masks):
    mask = Shape(masks[0])
    assert cldice(mask, mask) == 1.0
    assert (betti0_error(mask, mask), betti1_error(mask, mask), breaks(mask, mask)) == (0.0, 0.0, 0.0)


@given(pairs)
def test_predicting_more_of_the_ground_truth_never_lowers_sensitivity(masks):
    target, prediction = masks
    less, more = prediction & target, target & (prediction | np.roll(prediction, 1, axis=1))
    if target.any():
        both = (topology_sensitivity(Shape(target), Shape(mask)) for mask in (less, less | more))
        assert next(both) <= next(both)
