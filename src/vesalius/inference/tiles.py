"""Sliding windows: decode the masks of a large image in overlapping windows, each at the segmenter's full resolution.

The mask decoder outputs maps with a quarter of the segmenter's input side. On a whole fundus image of 3504 x 2336 one
map cell is 14 pixels wide, and even the ground truth, downsampled to the map and upsampled again, has a Dice of 0.77.
In windows of half the input side a cell is 2 pixels wide, and the Dice is 0.99 (benchmarks/tiles.py).
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from vesalius.config import Settings
from vesalius.mask_maps import Tile, Window
from vesalius.masks import Size
from vesalius.models.processor import Processor
from vesalius.models.sam2 import SegPrompts, encode_images
from vesalius.models.textseg import Encode, TextSegModel


class TileSettings(Settings):
    """Sliding-window settings. The language model sees the whole image; each [SEG] is decoded in every window."""

    sides: tuple[Annotated[int, Field(ge=32)], ...] = ()
    """Window sides in pixels, one per scale; empty: half of the segmenter's input side."""
    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.25
    """Minimum overlap of neighboring windows, as a fraction of the window side."""


def find_windows(size: Size, side: int, overlap: float) -> list[Window]:
    """Evenly spaced windows of `side` that cover an image of `size`, row by row from the top left.

    Example: 110 pixels with side 64 and overlap 0.5 need steps of at most 32, so windows start at 0, 23 and 46. An axis
    no longer than `side` gets a single window of the axis length.
    """
    return [
        Window(top, left, min(side, size[0]), min(side, size[1]))
        for top in _starts(size[0], side, overlap)
        for left in _starts(size[1], side, overlap)
    ]


def decode_tiles(
    model: TextSegModel,
    processor: Processor,
    frame: np.ndarray,
    prompts: torch.Tensor,
    settings: TileSettings,
    batch_size: int,
    encode: Encode = encode_images,
) -> tuple[list[Tile], torch.Tensor]:
    """Tiles of a frame uint8 (h, w, 3), and the predicted IoU of each [SEG], float (n,), averaged over the tiles.

    `prompts` float (n, c) are the [SEG] embeddings; `encode` encodes `batch_size` windows at a time.
    """
    size = frame.shape[0], frame.shape[1]
    sides = settings.sides or (processor.spec.sam_size // 2,)
    windows = [window for side in sides for window in find_windows(size, side, settings.overlap)]
    tiles: list[Tile] = []
    scores = []
    for start in range(0, len(windows), batch_size):
        some = windows[start : start + batch_size]
        squares = [processor.for_segmenter(Image.fromarray(frame[window.pixels])).to(prompts) for window in some]
        decoded = model.decode(squares, _repeat_prompts(prompts, len(some)), encode)
        maps = decoded.logits.unflatten(0, (len(some), -1)).float().cpu().numpy()
        tiles += [Tile(window, each) for window, each in zip(some, maps, strict=True)]
        scores.append(decoded.scores.unflatten(0, (len(some), -1)))
    return tiles, torch.cat(scores).mean(dim=0)


def _repeat_prompts(prompts: torch.Tensor, images: int) -> SegPrompts:
    """The [SEG] embeddings, repeated for each image and grouped by image."""
    image = torch.arange(images, device=prompts.device).repeat_interleave(len(prompts))
    return SegPrompts(prompts.repeat(images, 1), image, image)


def _starts(length: int, side: int, overlap: float) -> list[int]:
    if length <= side:
        return [0]
    steps = math.ceil((length - side) / max(1.0, side * (1 - overlap)))
    return [round(step * (length - side) / steps) for step in range(steps + 1)]
