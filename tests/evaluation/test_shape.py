"""Properties of one mask: by hand, against scipy and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import distance_transform_edt, label
from skimage.measure import euler_number

from vesalius.evaluation.shape import Shape, distances_to, points_of
from vesalius.masks import dilate

masks = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(lambda shape: hnp.arrays(bool, shape))


def drawn(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def line(width: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    """A horizontal line from border to border."""
    mask = np.zeros(size, dtype=bool)
    mask[20 : 20 + width] = True
    return mask


def test_boundary_is_the_mask_without_pixels_that_have_four_neighbors():
    mask = drawn("#####", "#####", "#####", ".....")

    assert np.array_equal(Shape(mask).boundary, drawn("#####", "#...#", "#####", "....."))


@pytest.mark.parametrize(
    ("rows", "components", "holes"),
    [
        (("...", "..."), 0, 0),
        (("#..", ".#.", "..#"), 1, 0),  # corners connect
        (("#.#", "...", "#.#"), 4, 0),
        ((".#.", "#.#", ".#."), 1, 1),  # and close the hole
        (("###", "#.#", "###"), 1, 1),
        (("###", "#.#", "##."), 1, 1),
        (("###", "#.#", "#.#"), 1, 0),
        (("#####", "#.#.#", "#####"), 1, 2),
        (("####", "#..#", "#.##", "####"), 1, 1),
        (("#####", "#...#", "#.#.#", "#...#", "#####"), 2, 1),
    ],
)
def test_components_and_holes_of_small_drawings(rows, components, holes):
    assert (Shape(drawn(*rows)).betti0, Shape(drawn(*rows)).betti1) == (components, holes)


@given(masks)
def test_components_and_holes_agree_with_background_labels_and_the_euler_number(mask):
    shape = Shape(mask)
    background = label(~np.pad(mask, 1))[1]

    assert shape.betti1 == background - 1
    assert shape.betti0 - shape.betti1 == euler_number(np.pad(mask, 1), connectivity=2)


@given(masks)
def test_skeleton_lies_in_the_mask_and_has_its_components_and_holes(mask):
    shape = Shape(mask)
    thin = Shape(shape.skeleton)

    assert not (shape.skeleton & ~mask).any()
    assert (thin.betti0, thin.betti1) == (shape.betti0, shape.betti1)


@given(masks, st.integers(0, 3), st.integers(0, 3))
def test_background_around_the_mask_changes_nothing(mask, above, left):
    where = ((1 + above, 2), (1 + left, 2))
    small, large = Shape(np.pad(mask, 1)), Shape(np.pad(mask, where))

    assert (small.betti0, small.betti1) == (large.betti0, large.betti1)
    assert np.array_equal(np.pad(small.boundary[1:-1, 1:-1], where), large.boundary)
    assert np.array_equal(np.pad(small.skeleton[1:-1, 1:-1], where), large.skeleton)
    assert small.widths == pytest.approx(large.widths)


@pytest.mark.parametrize(("pixels", "width"), [(1, 2), (2, 2), (3, 4), (4, 4), (5, 6), (7, 8), (8, 8), (9, 10)])
def test_width_of_a_straight_line_is_even_and_at_most_one_pixel_too_large(pixels, width):
    for mask in (line(pixels), line(pixels).T):
        # at its ends, a skeleton forks into the corners of the line; only the middle counts
        shape = Shape(mask)
        middle = np.all((points_of(shape.skeleton) > 12) & (points_of(shape.skeleton) < 48), axis=1)

        assert set(shape.widths[middle]) == {width}


def test_image_border_is_not_a_vessel_wall():
    half = np.zeros((30, 40), dtype=bool)
    half[:6] = True  # runs along the border; the part beyond is unknown

    assert Shape(half).widths.max() >= 8
    assert np.isinf(Shape(np.ones((5, 5), dtype=bool)).widths).all()


def test_strips_at_any_angle_have_about_their_drawn_width():
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :96] - 48
    inner = rows**2 + columns**2 < 25**2
    for drawn_width in (1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 12.0):
        found = []
        for _ in range(20):
            angle = rng.uniform(0, np.pi)
            away = np.abs(columns * np.sin(angle) - rows * np.cos(angle) + rng.uniform(-0.5, 0.5))
            shape = Shape(away <= drawn_width / 2)
            found.append(shape.widths[inner[shape.skeleton]])
        widths = np.concatenate(found)

        assert -0.1 <= widths.mean() - drawn_width <= 0.55, drawn_width
        assert widths.std() <= 0.75, drawn_width


@given(masks)
def test_widths_are_those_of_the_distance_transform(mask):
    mask[0, 0] = False  # the distance transform needs background
    shape = Shape(mask)

    assert shape.widths == pytest.approx(2 * distance_transform_edt(mask)[shape.skeleton])


@given(masks)
def test_points_are_those_of_argwhere_and_dilation_adds_the_four_neighbors(mask):
    wider = dilate(mask)
    near = distance_transform_edt(~np.pad(mask, 1))[1:-1, 1:-1] <= 1 if mask.any() else mask

    assert np.array_equal(points_of(mask), np.argwhere(mask))
    assert np.array_equal(wider, near)


def test_distance_in_mm_of_whole_pixels_is_exact():
    others, points = np.array([[3, 0]]), np.array([[13, 0], [3, 10]])

    assert distances_to(others, points, (0.1, 0.2)).tolist() == [1.0, 2.0]
