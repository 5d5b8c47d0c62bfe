"""Synthetic angiograms: plausible images with masks of exact geometry."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from vesalius.synth.angiogram import ALL_PHRASES, PHRASES, compose, take
from vesalius.synth.series import draw
from vesalius.synth.tubes import chords
from vesalius.types import Item

SIZE = 256


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return [draw(seed=3, index=index, size=SIZE) for index in range(16)]


def test_an_item_is_one_gray_frame_with_a_mask_for_each_prompt(items: list[Item]) -> None:
    item = items[7]
    assert (item.id, item.prompts) == ("synth_00007", PHRASES)
    assert item.frames.shape == (1, SIZE, SIZE, 3)
    assert (item.frames == item.frames[..., :1]).all()
    assert item.masks is not None and item.masks.shape == (2, 1, SIZE, SIZE)


def test_masks_are_not_empty_small_and_mostly_disjoint(items: list[Item]) -> None:
    for item in items:
        assert item.masks is not None
        vessel, catheter = item.masks[:, 0]
        assert 0.01 < vessel.mean() < 0.12, item.id
        assert 0.001 < catheter.mean() < 0.05, item.id
        assert (vessel & catheter).sum() < 0.35 * catheter.sum(), item.id


def test_vessels_are_darker_than_their_surroundings(items: list[Item]) -> None:
    for item in items:
        assert item.masks is not None
        vessel, either = item.masks[0, 0], item.masks[:, 0].any(axis=0)
        around = binary_dilation(either, iterations=5) & ~binary_dilation(either, iterations=2)
        gray = item.frames[0, :, :, 0]
        assert gray[vessel].mean() < gray[around].mean(), item.id


@pytest.mark.parametrize("size", [64, 65, 200, 1024])
def test_masks_are_the_rays_through_a_lumen_and_the_collimator(size: int) -> None:
    scene = compose(np.random.default_rng([4, 2]), size)
    picture = take(scene, np.random.default_rng(1))
    vessels = chords([vessel.tube for vessel in scene.tree.vessels], size) > 0
    clear = scene.opening > 0.5
    np.testing.assert_array_equal(picture.mask_of([sight.shadow for sight in picture.vessels]), vessels & clear)
    assert scene.catheter is not None
    np.testing.assert_array_equal(picture.objects["catheter"], (chords([scene.catheter], size) > 0) & clear)
    assert picture.pixels.shape == (size, size, 3)


def test_frames_differ_in_noise_and_share_their_anatomy() -> None:
    scene = compose(np.random.default_rng(0), 128)
    one, other = (take(scene, np.random.default_rng(seed)) for seed in (1, 2))
    assert (one.pixels != other.pixels).mean() > 0.5
    assert np.abs(one.pixels.astype(int) - other.pixels).mean() < 20
    np.testing.assert_array_equal(one.objects["catheter"], other.objects["catheter"])


def test_small_frames_keep_their_vessels() -> None:
    for index in range(8):
        masks = draw(1, index, 64).masks
        assert masks is not None and masks.any(axis=(1, 2, 3)).all()


def test_devices_vary_only_with_all_phrases() -> None:
    found = []
    for index in range(16):
        item = draw(2, index, 96, phrases="all")
        assert item.masks is not None
        masks = dict(zip(item.prompts, item.masks[:, 0], strict=True))
        assert set(masks) <= set(ALL_PHRASES) and {"blood vessel", "catheter", "guide wire"} <= set(masks)
        found.append((masks["catheter"].any(), masks["guide wire"].any()))
        plain = draw(2, index, 96)
        assert plain.masks is not None and plain.masks.any(axis=(1, 2, 3)).all()
        np.testing.assert_array_equal(masks["blood vessel"], plain.masks[0, 0])
    assert {(False, False), (True, False), (True, True)} == set(found), "a wire never comes without a catheter"


def test_a_guide_wire_is_dark_and_runs_in_the_vessels() -> None:
    for index in range(12):
        scene = compose(np.random.default_rng([8, index]), SIZE, 1, np.random.default_rng(index))
        if scene.wire is None:
            continue
        picture = take(scene, np.random.default_rng(0))
        wire = picture.objects["guide wire"]
        vessel = picture.mask_of([sight.shadow for sight in picture.vessels])
        assert (wire & ~vessel).sum() < 0.1 * wire.sum()
        gray = picture.pixels[..., 0].astype(float)
        if (around := vessel & binary_dilation(wire, iterations=3) & ~binary_dilation(wire)).any():
            assert gray[wire].mean() < gray[around].mean()
