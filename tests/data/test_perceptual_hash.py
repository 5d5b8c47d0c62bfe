"""Perceptual and texture hashes find altered copies and separate different images."""

from pathlib import Path

import numpy as np
import pytest

from vesalius.data.dataset import load_image, open_dataset
from vesalius.data.perceptual_hash import TEXTURE_SIDE, ImageHashes, KnownImages, encode_texture, hash_image, near_pairs


def pairs_of(hashes: list[ImageHashes]) -> list[list[int]]:
    return [pair for pairs in near_pairs(hashes) for pair in pairs.T.tolist()]


def texture(seed: int) -> np.ndarray:
    """An image of blobs of several sizes, uint8 (256, 256, 3)."""
    rng = np.random.default_rng(seed)
    total = np.zeros((256, 256))
    for cells in (4, 16, 64):
        total += rng.normal(size=(cells, cells)).repeat(256 // cells, 0).repeat(256 // cells, 1)
    return np.repeat(np.clip(128 + 30 * total, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("change", ["none", "brighter", "noise"])
def test_an_altered_copy_is_found(change: str) -> None:
    image = texture(1)
    changed = {
        "none": image.astype(float),
        "brighter": image * 1.2,
        "noise": image + np.random.default_rng(0).normal(0, 8, image.shape),
    }[change]
    again = np.clip(changed, 0, 255).astype(np.uint8)
    assert pairs_of([hash_image(image), hash_image(texture(2)), hash_image(again)]) == [[0, 2]]


def test_the_texture_hash_ignores_brightness_and_is_zero_for_a_flat_image() -> None:
    image = texture(3) // 2
    textures = [np.frombuffer(hash_image(each).texture_hash, np.int8).astype(float) for each in (image, image * 2)]
    assert np.corrcoef(textures)[0, 1] > 0.98
    flat = hash_image(np.full((80, 80, 3), 7, np.uint8))
    assert not any(flat.texture_hash)
    assert len(flat.texture_hash) == TEXTURE_SIDE**2
    assert pairs_of([flat, flat]) == []  # flat frames match nothing


def test_only_wanted_pairs_are_compared() -> None:
    hashes = [hash_image(texture(1))] * 3
    assert pairs_of(hashes) == [[0, 1], [0, 2], [1, 2]]
    some = near_pairs(hashes, lambda pairs: pairs[0] == 0)
    assert [pair for pairs in some for pair in pairs.T.tolist()] == [[0, 1], [0, 2]]


def test_retinas_of_different_eyes_are_no_near_duplicates(shared: Path) -> None:
    dataset = open_dataset(shared / "data" / "chase_db1", prompt="blood vessel")
    assert pairs_of([hash_image(load_image(sample)) for sample in dataset.samples[:12]]) == []


def test_malformed_hashes_are_refused_and_none_match_without_any() -> None:
    image = texture(1)
    hashes = hash_image(image)
    assert KnownImages([]).find(image) is None and len(KnownImages([])) == 0
    with pytest.raises(ValueError, match="1 perceptual hashes, but 2 texture hashes"):
        KnownImages([hashes.perceptual_hash], ["", ""])
    for text in ("?", encode_texture(hashes.texture_hash)[:-4]):
        with pytest.raises(ValueError, match="a texture hash"):
            KnownImages([hashes.perceptual_hash], [text]).find(image)
