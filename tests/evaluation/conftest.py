"""Mask pairs shared by the tests of evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

Pair = tuple[np.ndarray, np.ndarray]


def vessels(rng: np.random.Generator, side: int) -> np.ndarray:
    """Four winding lines, 1 to 13 pixels wide, from border to border."""
    rows, columns = np.mgrid[:side, :side]
    mask = np.zeros((side, side), dtype=bool)
    for _ in range(4):
        wave = 12 * np.sin(rng.uniform(0.03, 0.08) * np.arange(side) + rng.uniform(0, 6))
        middle = rng.uniform(0.15, 0.85) * side + wave
        half_width = np.linspace(*rng.uniform(0.5, 6.5, 2), side)
        across = np.abs(rows - middle[columns]) <= half_width[columns]
        mask |= across.T if rng.random() < 0.5 else across
    return mask


@pytest.fixture(scope="session")
def vessel_pairs() -> list[Pair]:
    """Eight vessel masks, each with a copy moved by up to 3 pixels, with gaps and false blobs."""
    pairs = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        target = vessels(rng, 128)
        moved = np.roll(target, rng.integers(-3, 4, 2), axis=(0, 1))
        gaps = gaussian_filter(rng.random(target.shape), 3) > 0.54
        blobs = gaussian_filter(rng.random(target.shape), 3) > 0.58
        pairs.append((target, (moved & ~gaps) | blobs))
    return pairs
