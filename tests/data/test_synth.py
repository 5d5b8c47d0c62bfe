"""Synthetic angiograms: reproducible, physically plausible, written whole or not at all."""

import doctest
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from vesalius.data import phantom
from vesalius.data.phantom import SAMPLE_STEP, Tube, chords, grow_tree
from vesalius.data.readers import sa2va_json
from vesalius.data.synth import PROMPTS, draw, write_data_set
from vesalius.errors import OutputError, SettingError
from vesalius.masks import decode_rle
from vesalius.types import Item, RleMask

SIZE = 256


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return [draw(seed=3, index=index, size=SIZE) for index in range(16)]


def line(start: tuple[float, float], end: tuple[float, float], radius: float) -> Tube:
    n = int(np.hypot(end[0] - start[0], end[1] - start[1]) / SAMPLE_STEP) + 1
    points = np.linspace(start, end, n)
    return Tube(points, np.full(n, radius))


def test_same_seed_and_index_give_the_same_bytes() -> None:
    first, again = draw(5, 2, 96), draw(5, 2, 96)
    assert first.frames.tobytes() == again.frames.tobytes()
    assert first.masks is not None and again.masks is not None
    assert first.masks.tobytes() == again.masks.tobytes()


def test_another_process_gives_the_same_bytes() -> None:
    code = "import hashlib; from vesalius.data.synth import draw; i = draw(5, 2, 96)"
    code += "; print(hashlib.sha256(i.frames.tobytes() + i.masks.tobytes()).hexdigest())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip()
    item = draw(5, 2, 96)
    assert item.masks is not None
    assert there == hashlib.sha256(item.frames.tobytes() + item.masks.tobytes()).hexdigest()


def test_another_seed_or_index_gives_another_frame() -> None:
    frames = {draw(seed, index, 64).frames.tobytes() for seed in range(3) for index in range(3)}
    assert len(frames) == 9


def test_an_item_is_one_grey_frame_with_a_mask_for_each_prompt(items: list[Item]) -> None:
    item = items[7]
    assert (item.id, item.prompts) == ("synth_00007", PROMPTS)
    assert item.frames.shape == (1, SIZE, SIZE, 3)
    assert (item.frames == item.frames[..., :1]).all()
    assert item.masks is not None and item.masks.shape == (2, 1, SIZE, SIZE)


def test_masks_are_neither_empty_nor_large_and_mostly_apart(items: list[Item]) -> None:
    for item in items:
        assert item.masks is not None
        vessel, catheter = item.masks[:, 0]
        assert 0.01 < vessel.mean() < 0.12, item.id
        assert 0.001 < catheter.mean() < 0.05, item.id
        assert (vessel & catheter).sum() < 0.35 * catheter.sum(), item.id


def test_vessels_are_darker_than_their_surroundings(items: list[Item]) -> None:
    for item in items:
        assert item.masks is not None
        vessel = item.masks[0, 0]
        either = item.masks[:, 0].any(axis=0)
        around = binary_dilation(either, iterations=5) & ~binary_dilation(either, iterations=2)
        grey = item.frames[0, :, :, 0]
        assert grey[vessel].mean() < grey[around].mean(), item.id


def test_small_frames_keep_their_vessels() -> None:
    for index in range(8):
        masks = draw(1, index, 64).masks
        assert masks is not None and masks.any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("size", [63, 0, -1])
def test_a_size_too_small_is_refused(size: int, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=f"size {size} .* at least 64"):
        draw(0, 0, size)
    with pytest.raises(SettingError, match=f"size {size} .* at least 64"):
        write_data_set(tmp_path / "out", n=1, size=size)


def test_the_chord_through_a_tube_is_that_of_a_cylinder() -> None:
    # centre line at y = 20; pixel row 20 + i has its centre i + 0.5 away; r = 3: rows 17 to 22 are inside
    column = chords([line((0, 20), (40, 20), 3)], 40)[:, 20]
    expected = np.zeros(40)
    for i, distance in enumerate((0.5, 1.5, 2.5)):
        expected[[20 + i, 19 - i]] = 2 * np.sqrt(9 - distance**2)
    # between two points of the line, at most half a step away, the chord falls short by that much
    np.testing.assert_allclose(column, expected, atol=0.04)
    assert ((column > 0) == (expected > 0)).all()


def test_crossing_tubes_add_up_and_branches_melt_into_their_parent() -> None:
    across, down = line((0, 50), (100, 50), 3), line((50, 0), (50, 100), 3)
    crossing = chords([across, down], 100)
    assert crossing[50, 50] == pytest.approx(2 * crossing[50, 20], rel=0.02)
    branch = chords([across, line((50, 50), (50, 100), 3)], 100)
    assert branch.max() == pytest.approx(crossing[50, 20], rel=0.02)


def test_tubes_outside_of_the_frame_leave_no_shadow() -> None:
    assert not chords([line((-50, -50), (-20, 200), 4)], 64).any()
    assert chords([line((-50, 30), (30, 30), 4)], 64)[30, :20].all()


def test_side_branches_are_thinner_than_the_trunk_and_start_on_it() -> None:
    for seed in range(10):
        vessels, twigs = grow_tree(np.random.default_rng(seed), 512)
        drawn = np.concatenate([vessel.points for vessel in vessels])
        for twig in twigs:
            gap = np.hypot(*(drawn - twig.points[0]).T).min()
            assert gap < 1e-6 and twig.radii.max() <= vessels[0].radii.max()


def test_radii_of_two_children_obey_murray() -> None:
    for share in (0.3, 0.6, 0.9):
        assert share**3 + phantom.murray_share(share) ** 3 == pytest.approx(1)
    assert doctest.testmod(phantom).failed == 0


def test_a_data_set_reads_back_as_it_was_drawn(tmp_path: Path) -> None:
    done: list[int] = []
    write_data_set(tmp_path / "new" / "out", n=3, seed=4, size=96, on_progress=done.append)
    assert done == [1, 2, 3]
    out = tmp_path / "new" / "out"
    assert sorted(path.name for path in out.iterdir()) == ["annotations.json", "images"]
    samples = sa2va_json.read(out / "annotations.json")
    assert [sample.group for sample in samples] == ["tree_00000", "tree_00001", "tree_00002"]
    for index, sample in enumerate(samples):
        item = draw(4, index, 96)
        assert (sample.id, sample.prompts, sample.size) == (item.id, item.prompts, (96, 96))
        frame = np.asarray(Image.open(sample.image).convert("RGB"))
        assert (frame == item.frames[0]).all()
        assert sample.masks is not None and item.masks is not None
        for objects, mask in zip(sample.masks, item.masks[:, 0], strict=True):
            assert isinstance(objects[0], RleMask)
            assert (decode_rle(objects[0].rle) == mask).all()


def test_a_folder_with_content_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match=r"not empty; name another folder"):
        write_data_set(tmp_path, n=1, size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("keep")
    with pytest.raises(OutputError, match="out: exists"):
        write_data_set(tmp_path / "out", n=1, size=64)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    write_data_set(tmp_path / "out", n=1, size=64)
    (tmp_path / "empty").mkdir()
    write_data_set(tmp_path / "empty", n=1, size=64)
    first, second = (tmp_path / name / "annotations.json" for name in ("out", "empty"))
    assert first.read_bytes() == second.read_bytes()


def test_no_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"n 0 .* at least 1"):
        write_data_set(tmp_path / "out", n=0)


def test_an_interrupted_data_set_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_data_set(tmp_path / "out", n=3, size=64, on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []
