"""Images to the tensors that both halves see, to the digit as the official code makes them.

InternVL and the segmenter resize with Pillow's bicubic filter, which no tensor resize equals; Qwen-VL's images are
resized twice, by Pillow and then by torch's antialiased bicubic filter on uint8, which Pillow does not equal.
Source: `dynamic_preprocess`, `DirectResize` and `predict_forward` of ByteDance/Sa2VA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from vesalius.errors import SettingError
from vesalius.masks import Size
from vesalius.models.specs import ModelSpec

MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)

# limits in pixels, all multiples of 28 x 28 whatever the model's own patch is, as in the official code
QWEN_FIRST = {"factor": 28, "min_pixels": 4 * 28 * 28, "max_pixels": 16384 * 28 * 28}
QWEN_SECOND = {"min_pixels": 512 * 28 * 28, "max_pixels": 2048 * 28 * 28}
QWEN_MEAN = {"qwen2_5_vl": [0.48145466, 0.4578275, 0.40821073], "qwen3_vl": [0.5, 0.5, 0.5]}
QWEN_DEVIATION = {"qwen2_5_vl": [0.26862954, 0.26130258, 0.27577711], "qwen3_vl": [0.5, 0.5, 0.5]}


@dataclass(frozen=True)
class Pixels:
    """What the language model's half sees of one image, or of the frames of one video."""

    values: torch.Tensor
    """InternVL: float32 (tiles, 3, 448, 448). Qwen-VL: float32 (patches, values of a patch)."""
    grid: torch.Tensor
    """Qwen-VL: int64 (frames, 3), patches in time, down and across. InternVL: (0, 3)."""
    tokens: tuple[int, ...]
    """Image tokens of each part that the text names apart: of the image, or of each frame."""

    @property
    def parts(self) -> int:
        """Tiles, or frames of Qwen-VL, in `values`."""
        return len(self.grid) or len(self.values)


def read_pixels(image: Image.Image, spec: ModelSpec) -> Pixels:
    """One image: its tiles and a thumbnail for InternVL, its patches for Qwen-VL."""
    if spec.family != "internvl":
        return _qwen_pixels([image], spec)
    tiles = tile_image(image, spec.tile_size, spec.max_tiles)
    return _tiles(tiles, (len(tiles) * spec.vlm["image_seq_length"],))


def read_frames(frames: Sequence[Image.Image], spec: ModelSpec) -> Pixels:
    """Frames of a video: one tile each for InternVL, squashed to a square; Qwen-VL's as images."""
    if spec.family != "internvl":
        return _qwen_pixels(frames, spec)
    square = (spec.tile_size, spec.tile_size)
    return _tiles(
        [resize_bicubic(frame, square) for frame in frames], (spec.vlm["image_seq_length"],) * len(frames)
    )


def _tiles(tiles: Sequence[Image.Image], tokens: tuple[int, ...]) -> Pixels:
    return Pixels(
        torch.stack([normalize(tile) for tile in tiles]), torch.zeros(0, 3, dtype=torch.int64), tokens
    )


def _qwen_pixels(images: Sequence[Image.Image], spec: ModelSpec) -> Pixels:
    vision = spec.vlm["vision_config"]
    merge = vision.get("spatial_merge_size", 2)
    reader = Qwen2VLImageProcessorPil(
        do_resize=False,
        patch_size=vision["patch_size"],
        merge_size=merge,
        temporal_patch_size=vision.get("temporal_patch_size", 2),
        image_mean=QWEN_MEAN[spec.family],
        image_std=QWEN_DEVIATION[spec.family],
    )
    read = reader(
        images=[_qwen_resize(image, vision["patch_size"] * merge) for image in images], return_tensors="pt"
    )
    grid = read["image_grid_thw"]
    return Pixels(read["pixel_values"], grid, tuple((grid.prod(dim=1) // merge**2).tolist()))


def _qwen_resize(image: Image.Image, factor: int) -> Image.Image:
    try:
        first = smart_resize(image.height, image.width, **QWEN_FIRST)
        second = smart_resize(*first, factor, **QWEN_SECOND)
    except ValueError as error:
        raise SettingError(
            f"an image of {image.width} x {image.height} pixels is too long for Qwen-VL: {error}"
        ) from error
    pixels = torch.from_numpy(np.array(resize_bicubic(image, first))).permute(2, 0, 1)
    pixels = functional.interpolate(pixels[None], size=second, mode="bicubic", antialias=True)[0]
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def tile_image(image: Image.Image, tile: int, max_tiles: int) -> list[Image.Image]:
    """Tiles of tile x tile pixels, row by row, then a thumbnail of the whole if there is more than one.

    The image is first squashed to the grid whose aspect ratio is nearest to its own.
    """
    columns, rows = tile_grid(image.size, tile, max_tiles)
    squashed = image.resize((columns * tile, rows * tile), Image.Resampling.BICUBIC)
    tiles = [
        squashed.crop((column * tile, row * tile, (column + 1) * tile, (row + 1) * tile))
        for row in range(rows)
        for column in range(columns)
    ]
    if len(tiles) > 1:
        tiles.append(image.resize((tile, tile), Image.Resampling.BICUBIC))
    return tiles


def tile_grid(size_wh: tuple[int, int], tile: int, max_tiles: int) -> tuple[int, int]:
    """(columns, rows) of the grid of at most `max_tiles` tiles whose aspect ratio is nearest to the image's.

    Equally near grids: the larger one is taken if the image has more than half as many pixels as it.
    """
    width, height = size_wh
    best, best_difference = (1, 1), float("inf")
    for columns, rows in _grids(max_tiles):
        difference = abs(width / height - columns / rows)
        roomy = width * height > 0.5 * tile * tile * columns * rows
        if difference < best_difference or (difference == best_difference and roomy):
            best, best_difference = (columns, rows), difference
    return best


@cache
def _grids(max_tiles: int) -> tuple[tuple[int, int], ...]:
    # the official code sorts a Python set by area alone, so equal areas keep the order of the set
    grids = {
        (i, j)
        for n in range(1, max_tiles + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if i * j <= max_tiles
    }
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def resize_bicubic(image: Image.Image, size: Size) -> Image.Image:
    """The image at (h, w) by Pillow's antialiased bicubic filter; the aspect ratio is not kept."""
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def normalize(image: Image.Image) -> torch.Tensor:
    """float32 (3, h, w): ImageNet mean and deviation."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    planes = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    # in place: three new images of 1024 x 1024 cost more than the arithmetic
    return planes.div_(255).sub_(MEAN).div_(DEVIATION)
