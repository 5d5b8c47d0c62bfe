"""Masks against their references: pycocotools for RLE and polygons, torch for resizing."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from vesalius.masks import area_average, cell_weights, decode_rle, encode_rle, polygon_error, rasterize, resize_bilinear

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))
# far-away points cost pycocotools memory for the whole way there
coordinates = st.floats(-30, 60, allow_nan=False, width=32)
polygons = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=12).map(
    lambda p: [n for xy in p for n in xy]
)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def coco_decode(rle: Any) -> np.ndarray:
    with warnings.catch_warnings():  # pycocotools' own call of numpy 1
        warnings.simplefilter("ignore", DeprecationWarning)
        decoded: np.ndarray = coco.decode(rle)
    return decoded != 0


@given(masks)
def test_rle_round_trip_agrees_with_pycocotools(mask: np.ndarray) -> None:
    rle = encode_rle(mask)
    np.testing.assert_array_equal(decode_rle(rle), mask)
    np.testing.assert_array_equal(coco_decode(rle), mask)


def test_long_runs_round_trip() -> None:
    mask = np.zeros((3000, 2000), dtype=bool)
    mask[5, 1900] = True
    np.testing.assert_array_equal(decode_rle(encode_rle(mask)), mask)


def test_uncompressed_rle_runs_down_the_columns() -> None:
    mask = decode_rle({"size": [2, 3], "counts": [1, 2, 3]})
    np.testing.assert_array_equal(mask, [[0, 1, 0], [1, 0, 0]])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
sides = st.lists(st.integers(-2, 12) | st.floats(0, 5), max_size=3) | json_values
counts = st.lists(st.integers(-3, 50) | st.just(2**62), max_size=6) | st.text(max_size=12) | json_values


@given(st.fixed_dictionaries({}, optional={"size": sides, "counts": counts}))
@settings(max_examples=400)
def test_malformed_rle_raises_nothing_but_value_error(rle: Any) -> None:
    try:
        mask = decode_rle(rle)
    except ValueError:
        return
    assert list(mask.shape) == rle["size"]


@given(masks, st.data())
def test_a_damaged_rle_string_is_a_mask_of_the_size_or_a_value_error(mask: np.ndarray, data: st.DataObject) -> None:
    rle = encode_rle(mask)
    text = str(rle["counts"])
    index = data.draw(st.integers(0, len(text) - 1))
    rle["counts"] = text[:index] + data.draw(st.characters()) + text[index + data.draw(st.integers(0, 2)) :]
    with contextlib.suppress(ValueError):
        assert decode_rle(rle).shape == mask.shape


@pytest.mark.parametrize(
    ("size", "runs", "reason"),
    [
        ([2, 3], [7], "cover 7 pixels, but the stated size 2 x 3 has 6"),
        ([2, 3], [2**62, 2**62, 2**62, 2**62, 6], "cover"),
        ([10**9, 10**9], [10**18], "cover"),
        ([2, 3], [1.0, 5.0], "integers"),
        ([2, 3], "P", "ends inside a number"),
        ([2, 3], "é", "codec can't encode"),
    ],
)
def test_rle_that_does_not_fill_its_size_is_refused(size: list[int], runs: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_rle({"size": size, "counts": runs})


@given(st.lists(polygons, min_size=1, max_size=3), sizes)
def test_polygons_rasterize_as_in_pycocotools(parts: list[list[float]], size: tuple[int, int]) -> None:
    runs = coco.frPyObjects(parts, *size)
    np.testing.assert_array_equal(rasterize(parts, size), coco_decode(runs).any(axis=2))


def test_a_square_covers_the_pixels_between_its_corners() -> None:
    mask = rasterize([[1, 1, 3, 1, 3, 3, 1, 3]], (4, 5))
    np.testing.assert_array_equal(mask, [[0] * 5, [0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0] * 5])


def test_no_polygon_is_an_empty_mask_and_overlap_is_a_union() -> None:
    assert not rasterize([], (3, 4)).any()
    square = [0, 0, 3, 0, 3, 3, 0, 3]
    np.testing.assert_array_equal(rasterize([square, square], (4, 4)), rasterize([square], (4, 4)))


@pytest.mark.parametrize(
    ("polygon", "code", "holds"),
    [
        ([1, 2], "too_few_points", "has 1 point;"),
        ([1, 2, 3, 4], "too_few_points", "has 2 points;"),
        ([], "too_few_points", "has 0 points;"),
        ([1, 2, 3, 4, 5, 6, 7], "too_few_points", "has 7 numbers;"),
        ([1, 2, 3, 4, 5, float("inf")], "not_finite", "(point 2)"),
        ([0, -1.5, 5, 0, 0, 5], "outside_image", "y -1.5 to 5 in an image of 9 x 9 (h x w), 1.5 px beyond"),
        ([0, 0, 10.5, 0, 0, 5], "outside_image", "x 0 to 10.5"),
    ],
)
def test_a_polygon_without_a_valid_shape_has_a_fault(polygon: list[float], code: str, holds: str) -> None:
    found = polygon_error(polygon, (9, 9))
    assert found is not None
    assert found[0] == code
    assert holds in found[1]
    if code != "outside_image":
        with pytest.raises(ValueError, match="polygon 1 has"):
            rasterize([[0, 0, 5, 0, 0, 5], polygon], (9, 9))


def test_a_polygon_up_to_a_pixel_outside_has_no_fault() -> None:
    assert polygon_error([-1, 0, 10, 0, 0, 10], (9, 9)) is None
    assert polygon_error([-99, 0, 99, 0, 0, 99]) is None


@given(sizes, sizes, st.integers(0, 2**32 - 1))
def test_bilinear_resizing_gives_the_numbers_of_torch(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    image = np.random.default_rng(seed).normal(size=old).astype(np.float32) * 10
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None], size=new, mode="bilinear", align_corners=False
    )
    resized = resize_bilinear(image, new)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected[0, 0].numpy(), rtol=0, atol=1e-4)


@given(masks, sizes)
def test_area_average_keeps_the_area(mask: np.ndarray, size: tuple[int, int]) -> None:
    shares = area_average(mask, size)
    assert shares.dtype == np.float32
    assert shares.shape == size
    assert shares.min() >= 0
    assert shares.max() <= 1 + 1e-5
    area = shares.astype(float).sum() * (mask.size / shares.size)
    assert area == pytest.approx(mask.sum(), rel=1e-4, abs=1e-3)


def test_area_average_is_the_block_mean_where_sizes_divide() -> None:
    mask = np.random.default_rng(0).random((12, 20)) < 0.3
    np.testing.assert_allclose(area_average(mask, (3, 5)), mask.reshape(3, 4, 5, 4).mean(axis=(1, 3)), atol=1e-6)


def test_three_pixels_in_two_cells_cut_the_middle_one() -> None:
    np.testing.assert_allclose(cell_weights(3, 2), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], atol=1e-6)


def test_a_line_one_pixel_wide_survives_shrinking() -> None:
    mask = np.zeros((64, 64), dtype=bool)
    mask[:, 31] = True
    assert (area_average(mask, (16, 16)).max(axis=1) == 0.25).all()
