"""A sheet of augmented samples under their masks: a look at what training will see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vesalius.data.augment import AugmentSettings, augment
from vesalius.data.dataset import epoch_order, load_item
from vesalius.errors import SettingError
from vesalius.masks import area_average
from vesalius.types import Item, Sample
from vesalius.visualization import MIN_COVERAGE, SKY_BLUE, VERMILLION, WHITE, YELLOW, overlay

TILE, GAP, COLUMNS = 224, 6, 8
"""Longer side of an image, and the space between two, in pixels; images in a row."""
COLORS = (VERMILLION, SKY_BLUE, YELLOW)
"""Of the first prompt of a sample, the second, and so on, in turn."""


def draw_examples(
    samples: Sequence[Sample], settings: AugmentSettings, seed: int, n: int = 32
) -> UInt8[np.ndarray, "h w 3"]:
    """The first `n` samples that a run with this seed trains on, row by row, each drawn anew when it comes
    again.

    Every image has the same longer side; masks are filled lightly, with a contour, one color for each
    prompt. Raises SettingError without a sample or for `n` below 1; DataError where a sample cannot be
    loaded.
    """
    if not samples or n < 1:
        raise SettingError(f"there is nothing to draw: {len(samples)} samples, of which {n} were asked for")
    columns = min(n, COLUMNS)
    rows = -(-n // columns)
    step = TILE + GAP
    sheet = Image.new("RGB", (GAP + columns * step, GAP + rows * step), WHITE)
    for place, item in enumerate(_training_items(samples, settings, seed, n)):
        row, column = divmod(place, columns)
        tile = _draw_tile(item)
        left, top = (TILE - tile.width) // 2, (TILE - tile.height) // 2
        sheet.paste(tile, (GAP + column * step + left, GAP + row * step + top))
    return np.array(sheet)


def _training_items(
    samples: Sequence[Sample], settings: AugmentSettings, seed: int, n: int
) -> Iterator[Item]:
    """As training's feed draws them: the generator of a sample is that of (seed, epoch, its number)."""
    for number in range(n):
        epoch, place = divmod(number, len(samples))
        index = int(epoch_order(len(samples), seed, epoch)[place])
        yield augment(load_item(samples[index]), settings, np.random.default_rng([seed, epoch, index]))


def _draw_tile(item: Item) -> Image.Image:
    height, width = item.size
    factor = TILE / max(item.size)
    size = max(1, round(height * factor)), max(1, round(width * factor))
    tile = Image.fromarray(item.frames[0]).resize(size[::-1], Image.Resampling.BICUBIC, reducing_gap=2.0)
    for number, mask in enumerate(item.masks if item.masks is not None else ()):
        shown = area_average(mask[0], size) >= MIN_COVERAGE
        tile = overlay(np.asarray(tile), shown, COLORS[number % len(COLORS)])
    return tile
