"""Windows: one way to write them everywhere, and the mapping of pixel values to gray levels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import BaseModel
from tests.codes import raises_code

from vesalius.errors import ImageError, SettingError
from vesalius.window import AUTO, Window, apply_range, clipped_fraction, to_8_bit

WRITTEN = {
    AUTO: ["auto", ("auto",), ["auto"], AUTO],
    Window("range", 100, 4000): ["100 4000", "100,4000", (100, 4000), ["100", "4000"], [100.0, 4000.0]],
    Window("range", -160, 240): ["-160 240", (-160, 240)],
    Window("percentile", 0.5, 99.5): ["percentile 0.5 99.5", ("percentile", 0.5, 99.5), ["percentile", "0.5", "99.5"]],
}
DEPTHS = ("uint8", "int8", "uint16", ">u2", "int16", "uint32", "int32", "float16", "float32", ">f4", "float64")


def test_a_window_is_written_alike_in_words_python_and_json() -> None:
    class Holder(BaseModel):
        window: Window = AUTO

    for window, ways in WRITTEN.items():
        for way in ways:
            assert Window.of(way) == window, way
        assert Window.of(str(window)) == window
        stored = json.loads(Holder(window=window).model_dump_json())
        assert stored == {"window": window.plain}
        assert Holder.model_validate(stored).window == window


NO_WINDOWS = """
automatic; 5; 4000 100; 7 7; 1 2 3; percentile; percentile 5; percentile -1 50; nan 1; 0 inf; percentile 50 101; percentile 90 10
auto 1 2; low high
""".replace("\n", ";").split(";")


@pytest.mark.parametrize("value", [*map(str.strip, NO_WINDOWS), 3, None, (1,), {"low": 1}, ("percentile", 1)])
def test_other_windows_are_refused(value: Any) -> None:
    with raises_code(SettingError, "bad_value") as error:
        Window.of(value)
    assert error.value.field == "window"


@given(st.data(), st.sampled_from(DEPTHS), st.sampled_from([window for window in WRITTEN]))
@settings(max_examples=300, deadline=None)
def test_the_mapping_is_monotone_and_its_ends_are_black_and_white(data: Any, depth: str, window: Window) -> None:
    values = data.draw(
        arrays(
            np.dtype(depth), (3, 4), elements={"allow_nan": False, "allow_infinity": False} if "f" in depth else None
        )
    )
    gray, shown = to_8_bit(values, window)
    assert gray.dtype == np.uint8
    assert gray.shape == values.shape
    if shown is None:
        np.testing.assert_array_equal(gray, values)
        return
    order = np.argsort(values, axis=None, kind="stable")
    assert (np.diff(gray.ravel()[order].astype(int)) >= 0).all()
    assert (gray[values < shown[0]] == 0).all()
    assert (gray[values > shown[1]] == 255).all()
    if shown[0] < shown[1]:
        assert (gray[values == shown[0]] == 0).all()
        assert (gray[values == shown[1]] == 255).all()


def test_auto_keeps_8_bits_and_shows_deeper_values_from_the_lowest_to_the_highest() -> None:
    levels = np.array([[3, 100], [200, 250]], np.uint8)
    assert to_8_bit(levels) == (levels, None) or to_8_bit(levels)[0] is levels
    gray, shown = to_8_bit(levels.astype(np.uint16) * 16)
    assert shown == (48, 4000)
    assert gray[0, 0] == 0
    assert gray[1, 1] == 255
    assert to_8_bit(levels > 99)[0].tolist() == [[0, 255], [255, 255]]


def test_floats_scaled_to_one_keep_black_and_white_and_others_are_stretched() -> None:
    levels = np.array([[3, 100], [200, 250]], np.uint8)
    gray, shown = to_8_bit(levels / 255)
    assert shown == (0, 1)
    np.testing.assert_array_equal(gray, levels)
    assert to_8_bit(levels / 65535)[1] == (3 / 65535, 250 / 65535)
    assert to_8_bit(levels / 255 * 2 - 1)[1] == (3 / 255 * 2 - 1, 250 / 255 * 2 - 1)


def test_a_given_range_applies_to_8_bits_too_and_colors_share_it() -> None:
    gray, shown = to_8_bit(np.array([[[0, 100, 150]]], np.uint8), Window.of((100, 200)))
    assert shown == (100, 200)
    assert gray.tolist() == [[[0, 0, 128]]]


def test_percentiles_leave_outliers_out() -> None:
    values = np.arange(1001, dtype=np.uint16)
    values[-1] = 60000
    assert to_8_bit(values, Window.of(("percentile", 1, 99)))[1] == (10, 990)
    assert clipped_fraction(values, (10, 990)) == 20 / 1001


def test_percentiles_of_many_values_come_from_an_even_sample() -> None:
    parts = [np.full((64, 64), level, np.uint16) for level in range(2048)]
    low, high = Window.of("percentile 25 75").find_range(parts, 2048 * 4096, "a.tif")
    assert abs(low - 511.75) < 2
    assert abs(high - 1535.25) < 2


def test_a_constant_image_is_black_and_a_range_of_no_width_a_threshold() -> None:
    assert to_8_bit(np.full((2, 2), 700, np.uint16))[0].max() == 0
    assert apply_range(np.array([4, 5, 6]), (5, 5)).tolist() == [0, 0, 255]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("window", ["auto", "0 1", "percentile 1 99"])
def test_pixels_that_are_no_numbers_are_refused_with_their_count(bad: float, window: str) -> None:
    with raises_code(ImageError, "not_finite_pixels", "1 of 4"):
        to_8_bit(np.array([[0.1, bad], [0.3, 0.4]], np.float32), Window.of(window))
