"""Phrases: masks agree with the visible objects, and ambiguous phrases are omitted."""

import numpy as np
import pytest

from vesalius.synth import angiogram, fundus
from vesalius.synth.phrases import MEANINGS, masks_for
from vesalius.synth.picture import Picture, VisibleVessel, find_visible
from vesalius.synth.tubes import Tube, cast
from vesalius.synth.vessels import Vessel

SIZE = 256
CLEAR = np.ones((SIZE, SIZE), dtype=bool)


def vessel(x: float, radius: float, depth: float = 0.0, kind: str = "") -> Vessel:
    """A vertical vessel through the whole frame with a stenosis in its middle."""
    points = np.stack([np.full(400, x), 8 + 0.6 * np.arange(400)], axis=1)
    stenosis = depth * np.exp(-(((np.arange(400) - 200) / 15) ** 2))
    return Vessel(points, np.full(400, radius), stenosis, kind=kind)


def picture_of(*vessels: Vessel, clear: np.ndarray = CLEAR, filled: float = 1.0) -> Picture:
    """An image of vessels that are filled up to a share of their length."""
    visible = []
    for each in vessels:
        points = np.arange(len(each.points)) < filled * len(each.points)
        visible.append(find_visible(each, each.tube, points, clear, cast(each.tube, SIZE)))
    return Picture(np.zeros((SIZE, SIZE, 3), dtype=np.uint8), visible, clear)


def mask_of(each: Vessel) -> np.ndarray:
    return picture_of(each).mask_of([cast(each.tube, SIZE)])


def test_every_phrase_of_every_kind_has_a_meaning() -> None:
    assert set(angiogram.ALL_PHRASES) | set(fundus.ALL_PHRASES) == set(MEANINGS)
    assert set(angiogram.PHRASES) <= set(angiogram.ALL_PHRASES)
    assert set(fundus.PHRASES) <= set(fundus.ALL_PHRASES)


def test_every_phrase_has_an_empty_mask_in_an_empty_image() -> None:
    masks = masks_for(picture_of(), tuple(MEANINGS))
    assert set(masks) == set(MEANINGS)
    assert not any(mask.any() for mask in masks.values())


def test_the_widest_vessel_has_the_largest_mean_radius() -> None:
    thick, thin = vessel(60, 6), vessel(180, 4)
    np.testing.assert_array_equal(
        masks_for(picture_of(thin, thick), ["the widest vessel"])["the widest vessel"], mask_of(thick)
    )


@pytest.mark.parametrize(("other", "asked"), [(5.0, False), (5.5, False), (4.3, True)])
def test_the_widest_vessel_is_omitted_if_another_is_almost_as_wide(other: float, asked: bool) -> None:
    masks = masks_for(picture_of(vessel(60, 5), vessel(180, other)), ["the widest vessel"])
    assert bool(masks) == asked


def test_the_vessel_on_the_left_has_the_leftmost_center() -> None:
    left, right = vessel(60, 4), vessel(180, 6)
    masks = masks_for(picture_of(right, left), ["the vessel on the left"])
    np.testing.assert_array_equal(masks["the vessel on the left"], mask_of(left))
    assert not masks_for(picture_of(left), ["the vessel on the left"]), "one vessel is on no side"
    assert not masks_for(picture_of(left, vessel(70, 6)), ["the vessel on the left"]), "too close to tell"


def test_a_branch_with_a_short_visible_part_does_not_count() -> None:
    clear = CLEAR.copy()
    clear[15:, :100] = False  # only a short part of the wide vessel is left
    wide, thin = vessel(60, 8), vessel(180, 4)
    picture = picture_of(wide, thin, clear=clear)
    np.testing.assert_array_equal(masks_for(picture, ["the widest vessel"])["the widest vessel"], mask_of(thin))
    assert masks_for(picture, ["blood vessel"])["blood vessel"][10, 60], "it is a blood vessel all the same"


def test_a_stenosis_is_the_healthy_lumen_between_its_shoulders() -> None:
    narrowed = vessel(100, 6, depth=0.6)
    mask = masks_for(picture_of(narrowed, vessel(180, 6, depth=0.45)), ["stenosis"])["stenosis"]
    rows, columns = np.nonzero(mask)
    reach = 15 * np.sqrt(np.log(0.6 / 0.2)) * 0.6  # at this distance, the stenosis is 20 %
    assert columns.min() >= 94 and columns.max() <= 106 and mask[:, 94:106].sum() > 0.7 * 12 * 2 * reach
    assert rows.max() - rows.min() == pytest.approx(2 * reach + 12, abs=3), "and a sphere at either end"
    assert mask[128, 95] and not mask_of(narrowed)[128, 95], "wider than what is open"


def test_a_mild_narrowing_is_no_stenosis() -> None:
    masks = masks_for(picture_of(vessel(100, 6, depth=0.4)), ["stenosis"])
    assert not masks["stenosis"].any()


def test_a_stenosis_behind_another_vessel_is_omitted() -> None:
    assert not masks_for(picture_of(vessel(100, 6, depth=0.6), vessel(102, 7)), ["stenosis"])


def test_a_stenosis_without_contrast_agent_is_absent() -> None:
    narrowed = vessel(100, 6, depth=0.6)
    assert not masks_for(picture_of(narrowed, filled=0.4), ["stenosis"])["stenosis"].any()
    assert masks_for(picture_of(narrowed, filled=0.7), ["stenosis"])["stenosis"].any()


def test_a_stenosis_behind_the_collimator_is_absent() -> None:
    clear = CLEAR.copy()
    clear[100:160] = False
    assert not masks_for(picture_of(vessel(100, 6, depth=0.6), clear=clear), ["stenosis"])["stenosis"].any()


def test_arteries_and_veins_have_separate_masks() -> None:
    artery, vein = vessel(60, 4, kind="artery"), vessel(180, 5, kind="vein")
    masks = masks_for(picture_of(artery, vein), ["artery", "vein", "blood vessel"])
    np.testing.assert_array_equal(masks["artery"], mask_of(artery))
    np.testing.assert_array_equal(masks["vein"], mask_of(vein))
    np.testing.assert_array_equal(masks["blood vessel"], mask_of(artery) | mask_of(vein))


def test_only_the_visible_part_of_a_vessel_counts() -> None:
    tube = Tube(np.stack([np.linspace(-60, 60, 200), np.full(200, 20.0)], axis=1), np.linspace(8, 2, 200))
    each = Vessel(tube.points, tube.radii, np.zeros(200))
    sight = find_visible(each, each.tube, np.ones(200, dtype=bool), CLEAR, cast(tube, SIZE))
    assert sight.length == pytest.approx(100 * 0.6)
    assert sight.radius == pytest.approx(tube.radii[100:].mean())
    assert isinstance(sight, VisibleVessel) and not (sight.stenosis.chords > 0).any()


def test_random_trees_have_present_absent_and_omitted_phrases() -> None:
    counts = {phrase: [0, 0, 0] for phrase in angiogram.ALL_PHRASES}
    for index in range(24):
        scene = angiogram.compose(np.random.default_rng([6, index]), 320, 1, np.random.default_rng(index))
        masks = masks_for(angiogram.take(scene, np.random.default_rng(0)), angiogram.ALL_PHRASES)
        for phrase, count in counts.items():
            count[2 if phrase not in masks else int(masks[phrase].any())] += 1
    for phrase in ("catheter", "guide wire", "stenosis"):
        assert counts[phrase][0] > 1 and counts[phrase][1] > 1, (phrase, counts[phrase])
    for phrase in ("the widest vessel", "the vessel on the left"):
        assert counts[phrase][1] > 8, (phrase, counts[phrase])
    assert counts["blood vessel"][1] == 24
