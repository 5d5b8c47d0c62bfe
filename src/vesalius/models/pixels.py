"""Resizing, tiling and normalization of images, with exactly the results of the official code.

Images are resized with Pillow's bicubic filter, which no tensor resize reproduces.
Source: `dynamic_preprocess`, `DirectResize` and `predict_forward` of ByteDance/Sa2VA.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image

from vesalius.masks import Size

MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)


@dataclass(frozen=True)
class Pixels:
    """Input of the vision-language model for one image, or for the frames of one video."""

    values: torch.Tensor
    """float32: tiles (n, 3, 448, 448) or flattened patches (n, values per patch), depending on the family."""
    grid: torch.Tensor
    """int64 (frames, 3): number of patches along time, height and width; (0, 3) for tiles."""
    tokens: tuple[int, ...]
    """Number of image tokens of the image, or of each frame."""

    @property
    def parts(self) -> int:
        """Number of tiles, or of frames split into patches, in `values`."""
        return len(self.grid) or len(self.values)


def tile_image(image: Image.Image, tile: int, max_tiles: int) -> list[Image.Image]:
    """Tiles of tile x tile pixels, row by row, then a thumbnail of the image if there is more than one tile.

    The image is first resized to the grid with the aspect ratio nearest to its own.
    """
    columns, rows = tile_grid(image.size, tile, max_tiles)
    resized = image.resize((columns * tile, rows * tile), Image.Resampling.BICUBIC)
    tiles = [
        resized.crop((column * tile, row * tile, (column + 1) * tile, (row + 1) * tile))
        for row in range(rows)
        for column in range(columns)
    ]
    if len(tiles) > 1:
        tiles.append(image.resize((tile, tile), Image.Resampling.BICUBIC))
    return tiles


def tile_grid(size_wh: tuple[int, int], tile: int, max_tiles: int) -> tuple[int, int]:
    """(columns, rows) of the grid of at most `max_tiles` tiles with the aspect ratio nearest to the image's.

    Ties go to the larger grid if the image has more than half as many pixels as that grid.
    """
    width, height = size_wh
    best, best_difference = (1, 1), float("inf")
    for columns, rows in _grids(max_tiles):
        difference = abs(width / height - columns / rows)
        fills_half = width * height > 0.5 * tile * tile * columns * rows
        if difference < best_difference or (difference == best_difference and fills_half):
            best, best_difference = (columns, rows), difference
    return best


@cache
def _grids(max_tiles: int) -> tuple[tuple[int, int], ...]:
    # the official code sorts a Python set by area only, so equal areas keep the order of the set
    grids = {
        (i, j) for n in range(1, max_tiles + 1) for i in range(1, n + 1) for j in range(1, n + 1) if i * j <= max_tiles
    }
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def resize_bicubic(image: Image.Image, size: Size) -> Image.Image:
    """The image resized to (h, w) by Pillow's antialiased bicubic filter; the aspect ratio is not kept."""
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def normalize(image: Image.Image) -> torch.Tensor:
    """The image normalized by ImageNet's mean and standard deviation, float32 (3, h, w)."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    planes = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    # in place, since allocating three images of 1024 x 1024 takes longer than the arithmetic
    return planes.div_(255).sub_(MEAN).div_(DEVIATION)
