"""Augmentation: images and masks are transformed together, and nothing changes by default."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy import ndimage
from tests.codes import raises_code

from vesalius.config import make_settings
from vesalius.data.augment import FOLD_LIMIT, AugmentSettings, Probabilities, augment
from vesalius.data.warping import Elastic, SamplingMap
from vesalius.errors import SettingError
from vesalius.types import Item

EVERYTHING = AugmentSettings(
    flip=0.5,
    flip_vertical=0.5,
    rotate_degrees=30,
    scale=0.2,
    shift=0.1,
    elastic=0.04,
    gamma=0.3,
    contrast=0.3,
    blur=1.5,
    noise=5,
    invert=0.5,
)


def disc(size: tuple[int, int] = (96, 128), frames: int = 1) -> Item:
    """An item with a bright off-center disc on gray, its mask and an empty mask."""
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


def test_the_generator_determines_the_result() -> None:
    item = disc()
    first, again, other = (augment(item, EVERYTHING, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(masks_of(first), masks_of(again))
    assert (first.frames != other.frames).any()


@pytest.mark.parametrize(
    "other",
    [
        {"gamma": 0.3, "noise": 4},
        {"blur": 2},
        {"invert": 1},
        {"contrast": 0.5, "probability": {"contrast": 0.5, "gamma": 0.1}},
    ],
)
def test_one_setting_does_not_change_what_another_draws(other: dict[str, Any]) -> None:
    moves = {"rotate_degrees": 30, "shift": 0.1, "elastic": 0.04}
    np.testing.assert_array_equal(masks_of(change(disc(), **moves)), masks_of(change(disc(), **moves, **other)))


def test_later_draws_of_the_generator_do_not_depend_on_the_settings() -> None:
    nothing, everything = np.random.default_rng(5), np.random.default_rng(5)
    augment(disc(), AugmentSettings(), nothing)
    augment(disc(), EVERYTHING, everything)
    assert nothing.random() == everything.random()


def test_draws_are_unchanged_by_later_augmentations() -> None:
    """Stored runs stay reproducible: flip is random number 1, rotation is number 3, and the seed follows number 10."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        first = rng.random(10)
        rng.integers(2**63)
        after = np.random.default_rng(seed)
        mirrored = augment(disc(), AugmentSettings(flip=0.5), after)
        assert (mirrored.frames != disc().frames).any() == (first[0] < 0.5)
        assert after.random() == rng.random()
        turned = masks_of(change(disc((96, 96)), seed, rotate_degrees=90))[0, 0]
        angle = np.radians((2 * first[2] - 1) * 90)
        y, x = (mean - 48 for mean in np.argwhere(masks_of(disc((96, 96)))[0, 0]).mean(axis=0) + 0.5)
        expected = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
        got = np.argwhere(turned).mean(axis=0)[::-1] + 0.5 - 48
        np.testing.assert_allclose(got, expected, atol=0.3)


@pytest.mark.parametrize(("name", "axis"), [("flip", 2), ("flip_vertical", 1)])
def test_flips_are_exact(name: str, axis: int) -> None:
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


moves = st.fixed_dictionaries(
    {
        "flip": st.sampled_from([0.0, 1.0]),
        "flip_vertical": st.sampled_from([0.0, 1.0]),
        "rotate_degrees": st.floats(0, 180),
        "scale": st.floats(0, 0.4),
        "shift": st.floats(0, 0.15),
        "elastic": st.floats(0, 0.06),
    }
)


@given(moves, st.integers(0, 10**6), st.tuples(st.integers(60, 130), st.integers(60, 130)))
@examples(max_examples=60)
def test_image_and_mask_move_alike(values: dict[str, float], seed: int, size: tuple[int, int]) -> None:
    y, x = np.mgrid[: size[0], : size[1]]
    distance = np.hypot(x + 0.5 - size[1] * 0.55, y + 0.5 - size[0] * 0.45)
    soft = np.clip(9 - distance, 0, 1)  # a disc with a border of one pixel, half of it inside of the mask
    frames = np.rint(200 * soft).astype(np.uint8)[None, ..., None].repeat(3, axis=3)
    blob = Item("blob", frames, ("blob",), (distance < 8.5)[None, None])
    moved = change(blob, seed, **values)
    light, mask = moved.frames[0, :, :, 0].astype(float), masks_of(moved)[0, 0]
    border = np.concatenate([light[0], light[-1], light[:, 0], light[:, -1]])
    if not mask.any() or border.any():
        return  # it left the image, at least in part
    center = np.array(ndimage.center_of_mass(light))
    assert np.abs(center - ndimage.center_of_mass(mask)).max() < 0.5
    assert light.sum() / 200 == pytest.approx(mask.sum(), rel=0.12)


@given(st.integers(0, 10**6), st.floats(0, 180), st.sampled_from([0.01, 0.02, 0.04]))
@examples(max_examples=40)
def test_a_line_of_two_pixels_stays_connected(seed: int, degrees: float, elastic: float) -> None:
    mask = np.zeros((128, 128), bool)
    mask[64:66, 24:104] = True
    mask[30:98, 70:72] = True
    frames = np.where(mask, 40, 180).astype(np.uint8)[None, ..., None].repeat(3, axis=3)
    moved = change(Item("line", frames, ("line",), mask[None, None]), seed, elastic=elastic, rotate_degrees=degrees)
    _, n = ndimage.label(masks_of(moved)[0, 0], structure=np.ones((3, 3)))
    assert n == 1
    assert masks_of(moved).sum() == pytest.approx(mask.sum(), rel=0.25)
    assert moved.frames[0, :, :, 0][masks_of(moved)[0, 0]].mean() < 90  # it is blurred once, not twice


def test_elastic_displacement_stays_within_its_amplitude() -> None:
    height, width = 90, 140
    for seed in range(10):
        elastic = Elastic.sample(np.random.default_rng(seed), (height, width), amplitude=5, extent=20)
        by = elastic.displacement(0, height)
        assert by.shape == (2, height, width)
        assert np.abs(by).max() < 5
        # a product of matrices rounds by its size, so a strip is the same to the last bits only
        np.testing.assert_allclose(elastic.displacement(30, 50), by[:, 30:50], rtol=0, atol=1e-5)


def test_elastic_at_its_limit_does_not_fold() -> None:
    """With control points displaced as far apart as possible, the Jacobian is positive at every pixel."""
    side, extent = 100, 20.0
    limit = FOLD_LIMIT * extent
    for seed in range(20):
        rng = np.random.default_rng(seed)
        drawn = Elastic.sample(rng, (side, side), limit, extent)
        corners = rng.choice([-limit, limit], (2, drawn.rows.shape[1], drawn.rows.shape[1]))
        for elastic in (drawn, Elastic(drawn.rows, (corners @ drawn.rows.T).astype(np.float32))):
            x, y = elastic.displacement(0, side) + np.mgrid[:side, :side][::-1]
            (x_y, x_x), (y_y, y_x) = np.gradient(x), np.gradient(y)
            assert (x_x * y_y - x_y * y_x).min() > 0


def test_a_sampling_map_takes_each_pixel_from_its_source() -> None:
    ramp = np.arange(12, dtype=np.uint8).reshape(1, 3, 4) * 10
    right = np.array([[1, 0, 0.25], [0, 1, 0], [0, 0, 1.0]])  # a quarter of a pixel further right
    pixels, masks = SamplingMap((3, 4), right).resample(ramp, np.zeros((0, 3, 4), bool))
    np.testing.assert_array_equal(pixels[0, 0], [3, 13, 23, 30])  # 2.5 and 12.5 rounded up; the edge is repeated
    assert masks.shape == (0, 3, 4)
    mask = ramp[:, :, :] >= 60
    down = np.array([[1, 0, 0], [0, 1, -1.0], [0, 0, 1]])
    _, masks = SamplingMap((3, 4), down).resample(ramp, mask)
    np.testing.assert_array_equal(masks[0], [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]])


def test_images_of_any_size_can_be_augmented() -> None:
    for size in ((1, 1), (1, 40), (37, 2), (300, 3)):
        item = disc(size)
        for seed in range(4):
            changed = augment(item, EVERYTHING, np.random.default_rng(seed))
            assert changed.frames.shape == item.frames.shape
            assert masks_of(changed).shape == masks_of(item).shape


def test_a_gray_image_changes_as_the_same_image_in_three_channels() -> None:
    gray = disc()
    colored = Item("disc", gray.frames.copy(), gray.prompts, gray.masks)
    colored.frames[0, 0, 0] += np.array([0, 0, 1], np.uint8)  # so that it is not gray
    values = {"rotate_degrees": 30, "elastic": 0.04, "gamma": 0.3, "blur": 1.0, "noise": 3}
    one, three = change(gray, **values).frames, change(colored, **values).frames
    np.testing.assert_array_equal(one[0, 20:, 20:], three[0, 20:, 20:])


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


def test_inversion_inverts_gray_levels() -> None:
    np.testing.assert_array_equal(change(disc(), invert=1.0).frames, 255 - disc().frames)


def test_gamma_and_contrast_keep_the_order_of_gray_levels() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    for seed in range(5):
        changed = change(Item("ramp", ramp, ()), seed, gamma=0.5, contrast=0.4).frames[0, :, :, 0].ravel()
        assert (np.diff(changed.astype(int)) >= 0).all()
        assert (changed != np.arange(256)).any()


def test_contrast_keeps_the_mean() -> None:
    for seed in range(5):
        assert change(disc(), seed, contrast=0.2).frames.mean() == pytest.approx(disc().frames.mean(), abs=0.6)


def test_noise_is_gray_and_of_the_stated_strength() -> None:
    flat = Item("flat", np.full((2, 128, 128, 3), 128, np.uint8), ())
    noise = change(flat, noise=10).frames.astype(float) - 128
    assert (noise == noise[..., :1]).all()
    assert 0 < noise.std() < 10.5
    assert (noise[0] != noise[1]).any()
    strengths = [change(flat, seed, noise=10).frames.std() for seed in range(20)]
    assert 8 < max(strengths) < 10.5


def test_blur_is_gaussian_of_the_stated_width_and_keeps_the_mean() -> None:
    frames = np.zeros((2, 61, 61, 3), np.uint8)
    frames[:, 30, 30] = 255
    frames[:, 25:36, 25:36] = 255
    widths = []
    for seed in range(12):
        light = change(Item("square", frames, ()), seed, blur=3.0).frames[0, :, :, 0].astype(float)
        assert light.sum() == pytest.approx(121 * 255, rel=0.02)
        share = light.sum(axis=0) / light.sum()
        variance = share @ (np.arange(61) - 30) ** 2
        widths.append(np.sqrt(max(0, variance - 10)))  # 10 is the variance of a square of 11
    assert 0 <= min(widths) < 0.7
    assert 2.3 < max(widths) < 3.1


@pytest.mark.parametrize("name", sorted(Probabilities.model_fields))
def test_each_augmentation_has_a_probability(name: str) -> None:
    amount = {"rotate_degrees": 40, "elastic": 0.05, "noise": 9, "blur": 3}.get(name, 0.4)
    wide = disc((70, 60))
    wide.frames[0] += np.random.default_rng(0).integers(0, 40, (70, 60, 1), np.uint8)
    changed = [
        (change(wide, seed, **{name: amount, "probability": {name: 0.3}}).frames != wide.frames).any()
        for seed in range(100)
    ]
    assert 17 <= sum(changed) <= 43
    assert not (change(wide, **{name: amount, "probability": {name: 0.0}}).frames != wide.frames).any()
    always = change(wide, **{name: amount})
    first = changed.index(True)
    one = change(wide, first, **{name: amount, "probability": {name: 0.3}})
    np.testing.assert_array_equal(one.frames, change(wide, first, **{name: amount}).frames)
    assert always.frames.shape == one.frames.shape


def test_an_item_without_masks_has_none_afterwards() -> None:
    bare = Item("bare", disc().frames, ("disc",))
    assert augment(bare, EVERYTHING, np.random.default_rng(0)).masks is None


@pytest.mark.parametrize(
    "values",
    [
        {"flip": 1.5},
        {"scale": 1.0},
        {"noise": -1},
        {"rotation": 3},
        {"blur": 51},
        {"elastic_extent": 0.01},
        {"probability": {"flip": 1}},
        {"elastic": 0.1},
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any]) -> None:
    key = next(iter(values))
    unknown = key not in AugmentSettings.model_fields or key == "probability"
    with raises_code(SettingError, "unknown_setting" if unknown else "bad_value", key):
        make_settings(AugmentSettings, values, "augment")


def test_an_elastic_deformation_that_would_fold_is_refused() -> None:
    with raises_code(SettingError, "bad_value", "0.08"):
        make_settings(AugmentSettings, {"elastic": 0.1, "elastic_extent": 0.2}, "augment")
