"""Which images are known again, and which are told apart."""

from pathlib import Path

import numpy as np
import pytest

from vesalius.data.dataset import load_image, open_dataset
from vesalius.data.perceptual_hash import GRAIN_SIDE, Likeness, likeness_of, near_pairs


def pairs_of(likenesses: list[Likeness]) -> list[list[int]]:
    return [pair for pairs in near_pairs(likenesses) for pair in pairs.T.tolist()]


def texture(seed: int) -> np.ndarray:
    """uint8 (256, 256, 3): blobs of several sizes."""
    rng = np.random.default_rng(seed)
    total = np.zeros((256, 256))
    for cells in (4, 16, 64):
        total += rng.normal(size=(cells, cells)).repeat(256 // cells, 0).repeat(256 // cells, 1)
    return np.repeat(np.clip(128 + 30 * total, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("change", ["none", "brighter", "noise"])
def test_a_changed_image_is_known_again(change: str) -> None:
    image = texture(1)
    changed = {
        "none": image.astype(float),
        "brighter": image * 1.2,
        "noise": image + np.random.default_rng(0).normal(0, 8, image.shape),
    }[change]
    again = np.clip(changed, 0, 255).astype(np.uint8)
    assert pairs_of([likeness_of(image), likeness_of(texture(2)), likeness_of(again)]) == [[0, 2]]


def test_grain_does_not_change_with_brightness_and_is_nothing_for_a_flat_image() -> None:
    image = texture(3) // 2
    grains = [np.frombuffer(likeness_of(each).grain, np.int8).astype(float) for each in (image, image * 2)]
    assert np.corrcoef(grains)[0, 1] > 0.98
    flat = likeness_of(np.full((80, 80, 3), 7, np.uint8))
    assert not any(flat.grain)
    assert len(flat.grain) == GRAIN_SIDE**2
    assert pairs_of([flat, flat]) == []  # empty frames are like none


def test_only_wanted_pairs_are_looked_at() -> None:
    likenesses = [likeness_of(texture(1))] * 3
    assert pairs_of(likenesses) == [[0, 1], [0, 2], [1, 2]]
    some = near_pairs(likenesses, lambda pairs: pairs[0] == 0)
    assert [pair for pairs in some for pair in pairs.T.tolist()] == [[0, 1], [0, 2]]


def test_retinas_of_different_eyes_are_told_apart(shared: Path) -> None:
    dataset = open_dataset(shared / "data" / "chase_db1", prompt="blood vessel")
    assert pairs_of([likeness_of(load_image(sample)) for sample in dataset.samples[:12]]) == []
