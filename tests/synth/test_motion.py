"""Synthetic clips: inflow and washout of contrast medium, and motion of the heart."""

from itertools import pairwise

import numpy as np
import pytest

from vesalius.synth.angiogram import compose, take
from vesalius.synth.heart import grow_tree
from vesalius.synth.motion import VISIBLE_CONCENTRATION, choose_bolus, choose_motion
from vesalius.synth.series import draw_clip
from vesalius.synth.tubes import Tube
from vesalius.types import Item

FRAMES = 24


@pytest.fixture(scope="module")
def clips() -> list[list[Item]]:
    return [list(draw_clip(5, index, FRAMES, 128)) for index in range(4)]


def vessel(item: Item) -> np.ndarray:
    assert item.masks is not None
    mask: np.ndarray = item.masks[item.prompts.index("blood vessel"), 0]
    return mask


@pytest.mark.parametrize("frames", [2, 12, 90])
def test_contrast_agent_arrives_fills_the_tree_and_washes_out(frames: int) -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        tree = grow_tree(rng, 256)
        bolus = choose_bolus(rng, tree, frames)
        path = np.concatenate([vessel.path_px for vessel in (*tree.vessels, *tree.twigs)])
        filled = np.stack([bolus.concentration(path, frame) for frame in range(frames)])
        assert filled.min() >= 0 and filled.max() <= 1
        assert not filled[0].any(), "nothing is filled before it arrives"
        filling = filled[: int(bolus.leaves) + 1]
        assert (np.diff(filling, axis=0) >= 0).all(), "wash-in never goes back"
        assert (np.diff(filled[:, np.argsort(path)][: int(bolus.leaves) + 1], axis=1) <= 1e-12).all()
        if frames >= 12:
            assert (filled == 1).all(axis=1).any(), "there is a frame in which all is filled"
            assert filled[-1].min() < 1, "it has begun to leave"


def test_the_mask_grows_with_the_contrast_agent_and_is_absent_before(clips: list[list[Item]]) -> None:
    for clip in clips:
        areas = np.array([vessel(item).sum() for item in clip])
        assert areas[0] == 0
        growing = areas[: int(0.6 * FRAMES)]
        # a beat may move part of a vessel out of the frame, or over another one
        assert (np.diff(growing) >= -0.06 * areas.max()).all()
        assert growing[-1] > 0.85 * areas.max()


def test_a_mask_ends_with_the_visible_concentration() -> None:
    scene = compose(np.random.default_rng([5, 1]), 128, FRAMES)
    assert scene.bolus is not None and scene.motion is not None
    for frame in (4, 8, 11):
        picture = take(scene, np.random.default_rng(0), frame)
        reached = np.zeros((128, 128), dtype=bool)
        y, x = np.mgrid[:128, :128] + 0.5
        for each in scene.tree.vessels:
            filled = scene.bolus.concentration(each.path_px, frame) >= VISIBLE_CONCENTRATION
            points = scene.motion.moved(each.points, frame)[filled]
            for (px, py), radius in zip(points, each.tube.radii[filled], strict=True):
                reached |= (x - px) ** 2 + (y - py) ** 2 < radius**2 - 1e-4
        mask = picture.mask_of([sight.shadow for sight in picture.vessels])
        assert ((mask != (reached & picture.clear)).mean()) < 1e-4


def test_masks_of_neighboring_frames_overlap_but_differ(clips: list[list[Item]]) -> None:
    for clip in clips:
        full = [vessel(item) for item in clip[int(0.62 * FRAMES) : int(0.65 * FRAMES) + 2]]
        assert all(mask.any() for mask in full)
        for one, other in pairwise(full):
            assert (one & other).sum() > 0.2 * one.sum()
    moving = [vessel(item) for item in clips[0][14:17]]
    assert any((one != other).any() for one, other in pairwise(moving))


def test_moving_vessels_stay_on_their_parents_and_catheters_at_their_entry() -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        tree = grow_tree(rng, 256)
        motion = choose_motion(rng, tree)
        catheter = Tube(np.linspace((0, 0), tree.vessels[0].points[0], 50), np.full(50, 3.0))
        for frame in range(0, 30, 3):
            assert 0 <= motion.contraction(frame) <= 1
            for each in tree.vessels[1:]:
                assert each.parent is not None
                origin = motion.moved(each.points[:1], frame)
                parent = motion.moved(each.parent.points[each.start : each.start + 1], frame)
                np.testing.assert_allclose(origin, parent, atol=1e-9)
            carried = motion.carried(catheter, frame)
            np.testing.assert_allclose(carried.points[0], catheter.points[0])
            np.testing.assert_allclose(carried.points[-1], motion.moved(tree.vessels[0].points[:1], frame)[0])


def test_a_heart_contracts_and_rests_within_a_beat() -> None:
    rng = np.random.default_rng(3)
    motion = choose_motion(rng, grow_tree(rng, 128))
    beat = [motion.contraction(frame) for frame in range(30)]
    assert max(beat) > 0.7 and min(beat) == 0
