"""Projections of tubes: path lengths of cylinders, exact masks, and sums."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.synth.tubes import SAMPLE_STEP, THINNEST_RADIUS, Tube, cast, chords, resample


def line(start: tuple[float, float], end: tuple[float, float], radius: float) -> Tube:
    points = resample(np.linspace(start, end, 50))[1]
    return Tube(points, np.full(len(points), radius))


def test_the_path_length_through_a_tube_is_that_of_a_cylinder() -> None:
    # center line at y = 20; pixel row 20 + i has its center i + 0.5 away; r = 3: rows 17 to 22 are inside
    column = chords([line((0, 20), (40, 20), 3)], 40)[:, 20]
    expected = np.zeros(40)
    for i, distance in enumerate((0.5, 1.5, 2.5)):
        expected[[20 + i, 19 - i]] = 2 * np.sqrt(9 - distance**2)
    # between two points of the line, at most half a step away, the path length is too short by that much
    np.testing.assert_allclose(column, expected, atol=0.04)
    assert ((column > 0) == (expected > 0)).all()


coordinate = st.floats(-20, 84)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(coordinate, coordinate), min_size=2, max_size=5), st.floats(0.75, 9), st.floats(0.3, 1))
def test_a_projection_is_exactly_the_pixel_centers_within_a_radius_of_a_point(
    corners: list[tuple[float, float]], radius: float, taper: float
) -> None:
    points = resample(np.array(corners))[1]
    tube = Tube(points, np.maximum(np.linspace(radius, taper * radius, len(points)), THINNEST_RADIUS))
    y, x = np.mgrid[:64, :64] + 0.5
    away2 = ((points[:, 0, None, None] - x) ** 2 + (points[:, 1, None, None] - y) ** 2) - tube.radii[:, None, None] ** 2
    found = chords([tube], 64) > 0
    sure = (np.abs(away2) > 1e-3).all(axis=0)  # float32 may differ exactly at the rim
    assert (found == (away2 < 0).any(axis=0))[sure].all()


@settings(max_examples=40, deadline=None)
@given(coordinate, coordinate, st.floats(0, 2 * np.pi))
def test_the_thinnest_line_never_breaks(x: float, y: float, angle: float) -> None:
    tube = line((x, y), (x + 60 * np.cos(angle), y + 60 * np.sin(angle)), THINNEST_RADIUS)
    mask = chords([tube], 64) > 0
    inside = ((tube.points >= 0) & (tube.points < 64)).all(axis=1)
    column, row = tube.points[inside].astype(int).T
    for dy, dx in zip(row, column, strict=True):
        assert mask[max(dy - 1, 0) : dy + 2, max(dx - 1, 0) : dx + 2].any()


def test_crossing_tubes_add_up_and_branches_merge_with_their_parent() -> None:
    across, down = line((0, 50), (100, 50), 3), line((50, 0), (50, 100), 3)
    crossing = chords([across, down], 100)
    assert crossing[50, 50] == pytest.approx(2 * crossing[50, 20], rel=0.02)
    branch = chords([across, line((50, 50), (50, 100), 3)], 100)
    assert branch.max() == pytest.approx(crossing[50, 20], rel=0.02)


def test_tubes_outside_the_frame_have_no_projection() -> None:
    assert not chords([line((-50, -50), (-20, 200), 4)], 64).any()
    assert chords([line((-50, 30), (30, 30), 4)], 64)[30, :20].all()


def test_shares_weight_path_lengths_and_a_share_of_zero_has_no_projection() -> None:
    tube = line((10, 32), (54, 32), 4)
    half = len(tube.points) // 2
    shares = np.where(np.arange(len(tube.points)) < half, 1.0, 0.0)
    whole, part, faint = cast(tube, 64), cast(tube, 64, shares), cast(tube, 64, np.full(len(shares), 0.25))
    np.testing.assert_allclose(faint.chords, 0.25 * whole.chords, rtol=1e-6)
    assert part.columns.stop < whole.columns.stop and part.chords.max() == whole.chords.max()
    assert cast(tube, 64, np.zeros(len(shares))).chords.size == 0


def test_resampled_points_are_one_step_apart() -> None:
    shares, points = resample(np.array([[0.0, 0.0], [30.0, 40.0], [30.0, 100.0]]))
    gaps = np.hypot(*np.diff(points, axis=0).T)
    assert gaps.max() < 1.01 * SAMPLE_STEP and np.median(gaps) > 0.99 * SAMPLE_STEP, "shorter around a corner"
    assert shares[0] == 0 and shares[-1] == 1
    assert np.interp(50 / 110, np.linspace(0, 1, len(shares)), shares) == pytest.approx(0.5, abs=0.01)
