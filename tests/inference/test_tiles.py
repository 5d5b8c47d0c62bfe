"""Sliding windows: they cover the image, and their maps are blended at the right position."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.inference.predictor import Predictor
from vesalius.inference.tiles import TileSettings, find_windows
from vesalius.mask_maps import Tile, Tiled, Window
from vesalius.masks import area_average
from vesalius.models.checkpoint import OpenedModel
from vesalius.types import Item, Prediction


@given(size=st.tuples(st.integers(1, 700), st.integers(1, 700)), side=st.integers(32, 400), overlap=st.floats(0, 0.9))
@settings(max_examples=80, deadline=None)
def test_windows_cover_the_image_and_overlap_enough(size: tuple[int, int], side: int, overlap: float) -> None:
    covered = np.zeros(size, dtype=int)
    windows = find_windows(size, side, overlap)
    for window in windows:
        assert (window.height, window.width) == (min(side, size[0]), min(side, size[1]))
        covered[window.pixels] += 1
    assert covered.min() >= 1
    assert covered.sum() == sum(window.height * window.width for window in windows)  # none reaches outside
    tops = sorted({window.top for window in windows})
    for above, below in itertools.pairwise(tops):
        assert above + side - below >= np.floor(overlap * side) - 1


def test_windows_start_as_in_the_documented_example() -> None:
    windows = find_windows((110, 40), 64, 0.5)
    assert [(window.top, window.left) for window in windows] == [(0, 0), (23, 0), (46, 0)]


def tiled(size: tuple[int, int], tiles: list[Tile]) -> Prediction:
    return Prediction("a", "v", "ok", size, Tiled(tuple(tiles), 64))


def test_equal_tiles_blend_to_the_same_everywhere() -> None:
    windows = find_windows((90, 130), 40, 0.3)
    flat = np.stack([np.full((16, 16), value, np.float32) for value in (1.5, -2.0)])
    prediction = tiled((90, 130), [Tile(window, flat) for window in windows])
    np.testing.assert_allclose(prediction.probabilities[0], 1 / (1 + np.exp(-1.5)), rtol=1e-5)
    assert prediction.masks[0].all()
    assert not prediction.masks[1].any()


def test_a_thin_line_survives_in_tiles_and_not_in_one_map() -> None:
    """Perfect predictions on maps of 64 cells: the line is lost in one map and survives in tiles."""
    size = (400, 600)
    y, x = np.mgrid[: size[0], : size[1]]
    target = np.abs(y - 200 - 90 * np.sin(x / 60)) < 2

    def seen(window: Window) -> Tile:
        return Tile(window, 8 * (area_average(target[window.pixels], (64, 64))[None] - 0.5))

    def dice(windows: list[Window]) -> float:
        mask = tiled(size, [seen(window) for window in windows]).mask
        return 2 * float((mask & target).sum()) / float(mask.sum() + target.sum())

    assert dice([Window(0, 0, *size)]) < 0.4
    assert dice(find_windows(size, 128, 0.25)) > 0.95


def test_one_window_of_the_whole_image_equals_the_plain_prediction(opened: OpenedModel) -> None:
    rng = np.random.default_rng(0)
    items = [
        Item(name, rng.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8), prompts)
        for name, prompts in (("a", ("vessel", "wire")), ("b", ("catheter",)))
    ]
    plain = Predictor(opened, answer="force").predict(items)
    whole = Predictor(opened, answer="force", tiles=TileSettings(sides=(96,))).predict(items)
    for left, right in zip(plain, whole, strict=True):
        assert (left.id, left.prompt, left.status) == (right.id, right.prompt, right.status)
        assert isinstance(right.maps, Tiled) and len(right.maps.tiles) == 1
        np.testing.assert_allclose(left.probabilities, right.probabilities, atol=1e-5)
        assert left.scores == pytest.approx(right.scores, abs=1e-5)


def test_several_scales_are_blended_and_reported(opened: OpenedModel) -> None:
    predictor = Predictor(opened, answer="force", tiles=TileSettings(sides=(48, 96)))
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    prediction = predictor(image, "vessel")
    assert isinstance(prediction.maps, Tiled)
    assert {tile.window.width for tile in prediction.maps.tiles} == {48, 96}
    assert prediction.probability is not None
    assert prediction.probability.shape == (64, 96)
    assert predictor.description.settings["tiles"] == {"sides": (48, 96), "overlap": 0.25}
