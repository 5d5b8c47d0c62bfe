"""A figure of augmented samples with their masks, identical to those of a training run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vesalius.colors import Color, phrase_colors
from vesalius.data.augment import AugmentSettings, augment
from vesalius.data.dataset import epoch_order, load_item
from vesalius.errors import SettingError
from vesalius.masks import area_average
from vesalius.types import Item, Sample
from vesalius.visualization import MIN_COVERAGE, WHITE, overlay_phrases

CELL, GAP, COLUMNS = 224, 6, 8
"""Longer side of an image in pixels, gap between images in pixels, and images per row."""


def draw_examples(
    samples: Sequence[Sample],
    settings: AugmentSettings,
    seed: int,
    n: int = 32,
    colors: Mapping[str, Color] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Grid of the first `n` augmented training samples of a run with this seed, in row-major order.

    A repeated sample gets a new augmentation. All images have the same longer side; masks are translucent with a
    contour, in the color of their prompt: `colors`, or those of `phrase_colors` in the order of the samples. Raises SettingError without samples or for `n` below 1; DataError if a sample cannot
    be loaded.
    """
    if not samples or n < 1:
        raise SettingError(
            f"the figure needs samples: {len(samples)} given, {n} requested", code="bad_value", field="n"
        )
    if colors is None:
        colors = phrase_colors(prompt for sample in samples for prompt in sample.prompts)
    columns = min(n, COLUMNS)
    rows = -(-n // columns)
    step = CELL + GAP
    figure = Image.new("RGB", (GAP + columns * step, GAP + rows * step), WHITE)
    for index, item in enumerate(_training_items(samples, settings, seed, n)):
        row, column = divmod(index, columns)
        cell = _draw_cell(item, colors)
        left, top = (CELL - cell.width) // 2, (CELL - cell.height) // 2
        figure.paste(cell, (GAP + column * step + left, GAP + row * step + top))
    return np.array(figure)


def _training_items(samples: Sequence[Sample], settings: AugmentSettings, seed: int, n: int) -> Iterator[Item]:
    """Augmented samples in training order; as in training, (seed, epoch, sample index) seeds the random generator."""
    for number in range(n):
        epoch, position = divmod(number, len(samples))
        index = int(epoch_order(len(samples), seed, epoch)[position])
        yield augment(load_item(samples[index]), settings, np.random.default_rng([seed, epoch, index]))


def _draw_cell(item: Item, colors: Mapping[str, Color]) -> Image.Image:
    height, width = item.size
    factor = CELL / max(item.size)
    size = max(1, round(height * factor)), max(1, round(width * factor))
    cell = Image.fromarray(item.frames[0]).resize(size[::-1], Image.Resampling.BICUBIC, reducing_gap=2.0)
    shown = {}
    if item.masks is not None:
        for prompt, mask in zip(item.prompts, item.masks, strict=True):
            shown[prompt] = area_average(mask[0], size) >= MIN_COVERAGE
    return overlay_phrases(np.asarray(cell), shown, colors, legend=False)
