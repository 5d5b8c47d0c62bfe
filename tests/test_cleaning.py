"""Mask post-processing: holes are filled and specks dropped up to a given area."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.codes import raises_code

from vesalius.cleaning import Cleaning, drop_specks, fill_holes
from vesalius.config import make_settings
from vesalius.errors import SettingError
from vesalius.mask_maps import LowRes
from vesalius.types import Prediction


def paper(*rows: str) -> np.ndarray:
    return np.array([[each == "#" for each in row] for row in rows])


RINGS = paper("...........", ".###.#####.", ".#.#.#...#.", ".###.#####.", "...........")


@pytest.mark.parametrize(("most", "filled"), [(0, 0), (1, 1), (2, 1), (3, 4)])
def test_holes_are_filled_up_to_a_size(most: int, filled: int) -> None:
    assert (fill_holes(RINGS, most) & ~RINGS).sum() == filled
    assert (fill_holes(RINGS, most) >= RINGS).all()


def test_open_bay_is_no_hole_and_a_gap_at_a_corner_is_closed() -> None:
    bay = paper("#####", "#...#", "#...#")
    np.testing.assert_array_equal(fill_holes(bay, 100), bay)
    edge, corner = paper("###.", "#...", "####"), paper(".##.", "#.#.", "###.", "....")
    np.testing.assert_array_equal(fill_holes(edge, 1), edge)
    assert fill_holes(corner, 1)[1, 1]


def test_specks_are_dropped_up_to_a_size_and_touch_at_corners() -> None:
    mask = paper("#....", "...#.", "..#..", "....#", "....#")
    assert drop_specks(mask, 1).sum() == 4, "the diagonal is one piece of 2"
    assert not drop_specks(mask, 2).any()
    np.testing.assert_array_equal(drop_specks(mask, 0), mask)


def test_holes_are_filled_first_and_keep_a_thin_ring() -> None:
    ring = paper(".....", ".###.", ".#.#.", ".###.", ".....")
    assert Cleaning(fill_holes=1, drop_specks=8)(ring).sum() == 9
    assert not Cleaning(drop_specks=8)(ring).any()


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.integers(0, 90), st.integers(0, 90))
def test_cleaning_is_idempotent(mask: np.ndarray, holes: int, specks: int) -> None:
    filled = fill_holes(mask, holes)
    np.testing.assert_array_equal(fill_holes(filled, holes), filled)
    dropped = drop_specks(mask, specks)
    np.testing.assert_array_equal(drop_specks(dropped, specks), dropped)
    assert (filled >= mask).all() and (dropped <= mask).all()
    assert not drop_specks(mask, mask.size).any()


def test_objects_are_cleaned_before_their_union() -> None:
    ring = paper(".....", ".###.", ".#.#.", ".###.", ".....")
    dot = paper(".....", ".....", "..#..", ".....", ".....")
    logits = np.where(np.stack([ring, dot]), 9, -9).astype(np.float32)
    plain = Prediction("a", "x", "ok", (5, 5), LowRes(logits, 5))
    mended = replace(plain, cleaning=Cleaning(drop_specks=1))
    np.testing.assert_array_equal(mended.mask, ring)
    np.testing.assert_array_equal(mended.probabilities, plain.probabilities)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(mended)).mask, ring)
    nothing = Prediction("a", "x", "no_seg", (5, 5), cleaning=Cleaning(drop_specks=1))
    assert nothing.masks.shape == (0, 5, 5)


def test_negative_size_is_refused() -> None:
    with raises_code(SettingError, "bad_value", "fill_holes"):
        make_settings(Cleaning, {"fill_holes": -1}, "mending masks")
