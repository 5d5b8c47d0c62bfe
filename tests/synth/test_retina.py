"""Synthetic fundus photographs: round field of view, bright disc, dark vessels."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from vesalius.synth.fundus import ALL_PHRASES, PHRASES, photograph
from vesalius.synth.phrases import masks_for
from vesalius.synth.picture import Picture
from vesalius.synth.retina import Eye
from vesalius.synth.series import draw
from vesalius.synth.tubes import chords

SIZE = 256


@pytest.fixture(scope="module")
def eyes() -> list[tuple[Picture, Eye]]:
    return [photograph(np.random.default_rng([2, index]), SIZE) for index in range(8)]


def test_an_item_is_one_color_frame_with_a_mask_for_each_prompt() -> None:
    item = draw(3, 4, 128, kind="retina")
    assert (item.id, item.prompts) == ("synth_00004", PHRASES)
    assert item.frames.shape == (1, 128, 128, 3) and item.masks is not None
    assert item.masks.shape == (2, 1, 128, 128) and item.masks.any(axis=(1, 2, 3)).all()
    again = draw(3, 4, 128, kind="retina")
    assert item.frames.tobytes() == again.frames.tobytes()


def test_a_retina_is_red_before_green_before_blue_and_black_outside(eyes: list[tuple[Picture, Eye]]) -> None:
    for picture, eye in eyes:
        red, green, blue = np.moveaxis(picture.pixels, 2, 0)
        assert np.median(red[picture.clear]) > np.median(green[picture.clear]) > np.median(blue[picture.clear])
        y, x = np.mgrid[:SIZE, :SIZE] + 0.5
        away = np.hypot(x - eye.center[0], y - eye.center[1])
        np.testing.assert_array_equal(picture.clear, away < eye.field_px)
        assert (picture.pixels[away > eye.field_px + 6] < 12).all()


def test_vessels_are_darker_than_their_surroundings_most_of_all_in_green(eyes: list[tuple[Picture, Eye]]) -> None:
    for picture, _ in eyes:
        masks = masks_for(picture, ALL_PHRASES)
        vessel = masks["blood vessel"] & ~masks["optic disc"]
        around = binary_dilation(masks["blood vessel"], iterations=4) & picture.clear
        around &= ~binary_dilation(masks["blood vessel"]) & ~binary_dilation(masks["optic disc"], iterations=4)
        contrast = [1 - picture.pixels[vessel, c].mean() / picture.pixels[around, c].mean() for c in (0, 1)]
        assert contrast[1] > 0.08 and contrast[1] > contrast[0]
        assert 0.03 < masks["blood vessel"].mean() < 0.25


def test_the_disc_is_the_brightest_and_all_vessels_come_from_it(eyes: list[tuple[Picture, Eye]]) -> None:
    for picture, eye in eyes:
        disc = picture.objects["optic disc"]
        radius = eye.disc_px / 2
        assert disc.sum() == pytest.approx(np.pi * radius**2, rel=0.06)
        green = picture.pixels[..., 1].astype(float)
        assert green[disc].mean() > 1.3 * np.median(green[picture.clear & ~disc])
        mains = [vessel for vessel in eye.vessels if vessel.parent is None]
        assert [vessel.kind for vessel in mains] == ["vein"] * 4 + ["artery"] * 4
        for vessel in mains:
            assert np.hypot(*(vessel.points[0] - eye.disc)) < radius


def test_masks_are_the_rays_through_vessels_in_the_field_of_view(eyes: list[tuple[Picture, Eye]]) -> None:
    for picture, eye in eyes:
        masks = masks_for(picture, ALL_PHRASES)
        for kind in ("artery", "vein"):
            tubes = [vessel.tube for vessel in eye.vessels if vessel.kind == kind]
            np.testing.assert_array_equal(masks[kind], (chords(tubes, SIZE) > 0) & picture.clear)
        np.testing.assert_array_equal(masks["blood vessel"], masks["artery"] | masks["vein"])


def test_no_vessel_crosses_the_center_of_the_macula(eyes: list[tuple[Picture, Eye]]) -> None:
    for _, eye in eyes:
        for vessel in eye.vessels:
            near = np.hypot(*(vessel.points - eye.macula).T) < 0.3 * eye.disc_px
            assert near.sum() <= 4, "a branch that begins at the border has four points at least"


@pytest.mark.parametrize("size", [64, 1024])
def test_the_eye_is_the_same_at_sizes_from_64_to_1024(size: int) -> None:
    picture, eye = photograph(np.random.default_rng([2, 0]), size)
    assert picture.pixels.shape == (size, size, 3)
    assert eye.spacing_mm * eye.disc_px == pytest.approx(1.8, rel=0.01)
    assert eye.disc_px / size == pytest.approx(photograph(np.random.default_rng([2, 0]), 128)[1].disc_px / 128)
