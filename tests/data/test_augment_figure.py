"""The figure of augmented samples: contents and order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.codes import raises_code

from vesalius.data.augment import AugmentSettings
from vesalius.data.augment_figure import CELL, COLUMNS, GAP, draw_examples
from vesalius.data.dataset import epoch_order
from vesalius.errors import SettingError
from vesalius.types import MaskFile, Sample


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Samples of three images of different gray level and shape: two with a square mask, the third unannotated."""
    found = []
    for i, size in enumerate(((60, 80), (300, 200), (50, 50))):
        image, mask = tmp_path / f"{i}.png", tmp_path / f"mask_{i}.png"
        Image.new("L", size[::-1], 50 + 60 * i).save(image)
        square = np.zeros(size, np.uint8)
        square[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = 255
        Image.fromarray(square).save(mask)
        masks = ((MaskFile(mask),),) if i < 2 else None
        found.append(Sample(str(i), image, ("square",), masks))
    return found


def middle(figure: np.ndarray, index: int) -> np.ndarray:
    """Central pixels of a cell, to the lower right of its mask."""
    row, column = divmod(index, COLUMNS)
    y, x = (GAP + each * (CELL + GAP) + CELL // 2 for each in (row, column))
    return figure[y + 5 : y + 20, x + 5 : x + 20]


def test_samples_are_in_the_order_of_training_and_repeat(samples: list[Sample]) -> None:
    figure = draw_examples(samples, AugmentSettings(), seed=4, n=10)
    assert figure.dtype == np.uint8
    assert figure.shape == (GAP + 2 * (CELL + GAP), GAP + COLUMNS * (CELL + GAP), 3)
    order = [int(index) for epoch in range(4) for index in epoch_order(3, 4, epoch)]
    for index in range(10):
        assert (middle(figure, index) == 50 + 60 * order[index]).all()
    assert (middle(figure, 10) == 255).all()  # nothing there


def test_masks_are_drawn_in_color(samples: list[Sample]) -> None:
    figure = draw_examples(samples[:2], AugmentSettings(), seed=0, n=2)
    for index in range(2):
        cell = figure[GAP : GAP + CELL, GAP + index * (CELL + GAP) :][:, :CELL].astype(int)
        colored = np.ptp(cell, axis=2) > 30
        assert 0.03 < colored.mean() < 0.09  # a sixteenth of the image
    bare = draw_examples(samples[2:], AugmentSettings(), seed=0, n=1)
    assert not np.ptp(bare, axis=2).any()


def test_the_seed_determines_the_figure_and_repeated_samples_differ(samples: list[Sample]) -> None:
    moving = AugmentSettings(rotate_degrees=90, shift=0.2)
    one, same, other = (draw_examples(samples[:1], moving, seed, n=3) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    tiles = [one[:, GAP + i * (CELL + GAP) :][:, :CELL] for i in range(3)]
    assert (tiles[0] != tiles[1]).any()


@pytest.mark.parametrize(("kept", "n"), [(0, 4), (3, 0)])
def test_nothing_to_draw_is_refused(samples: list[Sample], kept: int, n: int) -> None:
    with raises_code(SettingError, "bad_value"):
        draw_examples(samples[:kept], AugmentSettings(), seed=0, n=n)
