"""Images to tensors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vesalius.data.images import read_image
from vesalius.models.pixels import DEVIATION, MEAN, normalise, resize_bicubic, tile_grid, tile_image
from vesalius.models.specs import find_spec

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "tiling.json"


def test_tile_grids_are_the_official_ones() -> None:
    rows = json.loads(GOLDEN.read_text())["rows"]
    assert len(rows) == 401
    for width, height, columns, grid_rows, n_tiles in rows:
        assert tile_grid((width, height), 448, 12) == (columns, grid_rows)
        tiles = columns * grid_rows
        assert n_tiles == (1 if tiles == 1 else tiles + 1)


def test_tiles_are_cut_row_by_row_and_the_thumbnail_comes_last() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (448, 896, 3), dtype=np.uint8))
    tiles = tile_image(image, 448, 12)
    assert len(tiles) == 3
    np.testing.assert_array_equal(np.asarray(tiles[0]), np.asarray(image)[:, :448])
    np.testing.assert_array_equal(np.asarray(tiles[1]), np.asarray(image)[:, 448:])
    np.testing.assert_array_equal(
        np.asarray(tiles[2]), np.asarray(image.resize((448, 448), Image.Resampling.BICUBIC))
    )


def test_pixels_are_normalised_with_the_imagenet_numbers() -> None:
    grey = Image.fromarray(np.full((2, 3, 3), 128, dtype=np.uint8))
    expected = (128 / 255 - MEAN) / DEVIATION
    tensor = normalise(grey)
    assert tensor.shape == (3, 2, 3)
    np.testing.assert_allclose(tensor[:, 0, 0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["odd_517x389", "square_400", "square_700"])
def test_pixels_are_those_of_the_official_code(name: str) -> None:
    folder = GOLDEN.parent / "preprocessing"
    pixels = read_image(folder / f"{name}.png")
    spec = find_spec("Sa2VA-1B")
    tiles = torch.stack(
        [normalise(tile) for tile in tile_image(Image.fromarray(pixels), spec.tile_size, spec.max_tiles)]
    )
    square = normalise(resize_bicubic(Image.fromarray(pixels), (spec.sam_size, spec.sam_size)))
    with np.load(folder / "expected.npz") as expected:
        for_words, for_masks = expected[f"{name}/pixel_values"], expected[f"{name}/g_pixel_values"]
    assert tiles.shape == (len(for_words), 3, 448, 448)
    np.testing.assert_allclose(tiles[:, :, 5::32, 5::32].numpy(), for_words, atol=1e-6, rtol=0)
    np.testing.assert_allclose(square[None, :, 7::64, 7::64].numpy(), for_masks, atol=1e-6, rtol=0)
