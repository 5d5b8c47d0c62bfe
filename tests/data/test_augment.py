"""Augmentation: image and masks move together, and nothing changes unless asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vesalius.config import make_settings
from vesalius.data.augment import AugmentSettings, augment
from vesalius.errors import SettingError
from vesalius.types import Item

EVERYTHING = AugmentSettings(
    flip=0.5,
    flip_vertical=0.5,
    rotate_degrees=30,
    scale=0.2,
    shift=0.1,
    gamma=0.3,
    contrast=0.3,
    noise=5,
    invert=0.5,
)


def disc(size: tuple[int, int] = (96, 128), frames: int = 1) -> Item:
    """A bright disc off the centre on grey, with its mask and an empty one."""
    y, x = np.mgrid[: size[0], : size[1]]
    mask = (x + 0.5 - size[1] * 0.6) ** 2 + (y + 0.5 - size[0] * 0.4) ** 2 < (size[0] * 0.2) ** 2
    image = np.where(mask, 200, 60).astype(np.uint8)[..., None].repeat(3, axis=2)
    masks = np.stack([mask, np.zeros_like(mask)])[:, None].repeat(frames, axis=1)
    return Item("disc", image[None].repeat(frames, axis=0), ("disc", "nothing"), masks)


def change(item: Item, seed: int = 0, **values: Any) -> Item:
    return augment(item, AugmentSettings(**values), np.random.default_rng(seed))


def masks_of(item: Item) -> np.ndarray:
    assert item.masks is not None
    return item.masks


def test_nothing_changes_by_default() -> None:
    item = disc()
    same = change(item)
    np.testing.assert_array_equal(same.frames, item.frames)
    np.testing.assert_array_equal(masks_of(same), masks_of(item))
    assert same.prompts == item.prompts


def test_the_generator_decides() -> None:
    item = disc()
    first, again, other = (augment(item, EVERYTHING, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(masks_of(first), masks_of(again))
    assert (first.frames != other.frames).any()


def test_one_setting_does_not_change_what_another_draws() -> None:
    item = disc()
    moved = change(item, rotate_degrees=30, shift=0.1)
    both = change(item, rotate_degrees=30, shift=0.1, gamma=0.3, noise=4)
    np.testing.assert_array_equal(masks_of(moved), masks_of(both))


@pytest.mark.parametrize(("name", "axis"), [("flip", 2), ("flip_vertical", 1)])
def test_mirrors_are_exact(name: str, axis: int) -> None:
    item = disc((95, 128))
    mirrored = change(item, **{name: 1.0})
    np.testing.assert_array_equal(mirrored.frames, np.flip(item.frames, axis))
    np.testing.assert_array_equal(masks_of(mirrored), np.flip(masks_of(item), axis + 1))


@pytest.mark.parametrize(
    "values", [{"rotate_degrees": 60}, {"scale": 0.4}, {"shift": 0.2}, {"flip": 1, "rotate_degrees": 45}]
)
def test_the_mask_stays_on_its_object(values: dict[str, float]) -> None:
    for seed in range(8):
        moved = change(disc(), seed, **values)
        bright = moved.frames[0, :, :, 0] > 130
        mask = masks_of(moved)[0, 0]
        assert 2 * (bright & mask).sum() / (bright.sum() + mask.sum()) > 0.98
        assert not masks_of(moved)[1].any()


def test_scale_and_shift_keep_to_their_range() -> None:
    area = masks_of(disc())[0].sum()
    ratios = [masks_of(change(disc(), seed, scale=0.2))[0].sum() / area for seed in range(40)]
    assert 0.8**2 * 0.97 < min(ratios) < 0.75
    assert 1.3 < max(ratios) < 1.2**2 * 1.03
    columns = [masks_of(change(disc(), seed, shift=0.1))[0, 0].any(axis=0).argmax() for seed in range(40)]
    start = masks_of(disc())[0, 0].any(axis=0).argmax()
    assert max(abs(int(column) - int(start)) for column in columns) in range(9, 14)  # 0.1 x 128 = 12.8


def test_the_border_continues_the_image_and_has_no_mask() -> None:
    full = Item("full", np.full((1, 64, 64, 3), 180, np.uint8), ("all",), np.ones((1, 1, 64, 64), bool))
    moved = change(full, seed=1, rotate_degrees=40, shift=0.5, scale=0.5)
    assert (moved.frames == 180).all()
    assert 0 < masks_of(moved).mean() < 1


def test_all_frames_of_a_clip_move_alike() -> None:
    moved = change(disc(frames=3), rotate_degrees=50, gamma=0.5)
    assert moved.frames.shape == (3, 96, 128, 3)
    np.testing.assert_array_equal(moved.frames[0], moved.frames[2])
    np.testing.assert_array_equal(masks_of(moved)[:, 0], masks_of(moved)[:, 2])


def test_inversion_exchanges_bright_and_dark() -> None:
    np.testing.assert_array_equal(change(disc(), invert=1.0).frames, 255 - disc().frames)


def test_gamma_and_contrast_keep_the_order_of_grey_levels() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    for seed in range(5):
        changed = change(Item("ramp", ramp, ()), seed, gamma=0.5, contrast=0.4).frames[0, :, :, 0].ravel()
        assert (np.diff(changed.astype(int)) >= 0).all()
        assert (changed != np.arange(256)).any()


def test_contrast_keeps_the_mean() -> None:
    for seed in range(5):
        assert change(disc(), seed, contrast=0.2).frames.mean() == pytest.approx(
            disc().frames.mean(), abs=0.6
        )


def test_noise_is_grey_and_of_the_stated_strength() -> None:
    flat = Item("flat", np.full((2, 128, 128, 3), 128, np.uint8), ())
    noise = change(flat, noise=10).frames.astype(float) - 128
    assert (noise == noise[..., :1]).all()
    assert 0 < noise.std() < 10.5
    assert (noise[0] != noise[1]).any()
    strengths = [change(flat, seed, noise=10).frames.std() for seed in range(20)]
    assert 8 < max(strengths) < 10.5


def test_an_item_without_masks_stays_without() -> None:
    bare = Item("bare", disc().frames, ("disc",))
    assert augment(bare, EVERYTHING, np.random.default_rng(0)).masks is None


@pytest.mark.parametrize("values", [{"flip": 1.5}, {"scale": 1.0}, {"noise": -1}, {"rotation": 3}])
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=f"augment: .*{next(iter(values))}"):
        make_settings(AugmentSettings, values, "augment")
