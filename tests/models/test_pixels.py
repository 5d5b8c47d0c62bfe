"""Preprocessing of images to tensors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vesalius.data.images import read_image
from vesalius.models.pixels import normalize, resize_bicubic, tile_grid, tile_image
from vesalius.models.presets import find_spec

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
    np.testing.assert_array_equal(np.asarray(tiles[2]), np.asarray(image.resize((448, 448), Image.Resampling.BICUBIC)))


def test_pixels_are_normalized_with_the_imagenet_numbers() -> None:
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    values[3, 5] = 0, 128, 255
    tensor = normalize(Image.fromarray(values))
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == ((3, 16, 16), torch.float32, True)
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    # all 256 values of each channel, to the bit
    expected = ((values.astype(np.float32) / 255 - mean) / deviation).transpose(2, 0, 1)
    np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("name", ["odd_517x389", "square_400", "square_700"])
def test_pixels_are_those_of_the_official_code(name: str) -> None:
    folder = GOLDEN.parent / "preprocessing"
    pixels = read_image(folder / f"{name}.png")
    spec = find_spec("Sa2VA-1B")
    tiles = torch.stack(
        [normalize(tile) for tile in tile_image(Image.fromarray(pixels), spec.tile_size, spec.max_tiles)]
    )
    square = normalize(resize_bicubic(Image.fromarray(pixels), (spec.sam_size, spec.sam_size)))
    with np.load(folder / "expected.npz") as expected:
        for_words, for_masks = expected[f"{name}/pixel_values"], expected[f"{name}/g_pixel_values"]
    assert tiles.shape == (len(for_words), 3, 448, 448)
    np.testing.assert_allclose(tiles[:, :, 5::32, 5::32].numpy(), for_words, atol=1e-6, rtol=0)
    np.testing.assert_allclose(square[None, :, 7::64, 7::64].numpy(), for_masks, atol=1e-6, rtol=0)
