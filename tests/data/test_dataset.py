"""Datasets: detection of the format, merging of phrases, pixels and masks of a sample."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.codes import raises_code

from vesalius.data.dataset import epoch_order, load_item, load_samples, merge_phrases, open_dataset
from vesalius.data.formats import FORMATS
from vesalius.data.image_files import find_images
from vesalius.errors import AnnotationError, ImageError, SettingError
from vesalius.masks import encode_rle, rasterize
from vesalius.types import Absent, MaskFile, Polygons, RleMask, Sample

LEFT = [0, 0, 4, 0, 4, 8, 0, 8]
RIGHT = [6, 0, 10, 0, 10, 8, 6, 8]


def make(root: Path, name: str = "annotations.json", *entries: dict[str, Any]) -> Path:
    """Write images a and b (8 x 10) and an annotation file; returns the folder."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    for image in "ab":
        Image.new("L", (10, 8), 50).save(root / "images" / f"{image}.png")
    rows = entries or tuple({"image": f"{image}.png", "mask": [LEFT], "text": ["vessel"]} for image in "ab")
    (root / name).write_text(json.dumps(rows), encoding="utf-8")
    return root


def one(mask: list[Any], text: list[str], **more: Any) -> dict[str, Any]:
    return {"image": "a.png", "mask": mask, "text": text, **more}


def test_a_file_and_its_folder_are_the_same_dataset(tmp_path: Path) -> None:
    folder = open_dataset(make(tmp_path))
    file = open_dataset(str(tmp_path / "annotations.json"))
    assert folder == file
    assert (folder.format, folder.root, folder.name) == ("vesalius", tmp_path, tmp_path.name)
    assert load_samples(tmp_path) == list(folder.samples)


def test_the_split_picks_one_of_several_annotation_files(tmp_path: Path) -> None:
    for name in ("annotations.train.json", "annotations.test.json"):
        make(tmp_path, name)
    dataset = open_dataset(tmp_path, split="test")
    assert dataset.name == f"{tmp_path.name}/test"
    for split, reason in ((None, "has several annotation files"), ("val", r"has no annotations\.val\.json")):
        with pytest.raises(SettingError, match=rf"{reason}.*annotations\.test\.json, annotations\.train\.json"):
            open_dataset(tmp_path, split=split)


def test_a_split_without_a_choice_is_a_note(tmp_path: Path) -> None:
    make(tmp_path)
    note = "split 'train' is ignored: annotations.json is the only dataset"
    assert note in open_dataset(tmp_path, split="train").notes
    make(tmp_path / "named", "annotations.train.json")
    assert not any("split" in note for note in open_dataset(tmp_path / "named", split="train").notes)


def test_a_folder_of_masks_needs_a_prompt_and_names_what_it_ignores(tmp_path: Path) -> None:
    for name in ("images/a.png", "masks/a.jpg", "fov/a.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("L", (10, 8), 255).save(tmp_path / name)
    with pytest.raises(SettingError, match='--prompt "blood vessel"'):
        open_dataset(tmp_path)
    dataset = open_dataset(tmp_path, prompt="nerve")
    assert dataset.format == "maskfolder"
    assert dataset.samples[0].prompts == ("nerve",)
    assert dataset.notes == (
        "ignored beside images/ and masks/: fov/",
        "masks stored as JPEG, where every gray level above 0 counts as foreground: 1",
        "no groups are stated: each image is its own group",
    )


def test_the_same_data_has_the_same_ids_in_both_formats(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "masks").mkdir()
    for image in "ab":
        Image.new("L", (10, 8)).save(tmp_path / "masks" / f"{image}.png")
    described = [sample.id for sample in load_samples(tmp_path)]
    (tmp_path / "annotations.json").unlink()
    assert described == [sample.id for sample in load_samples(tmp_path, prompt="vessel")]


def test_a_folder_without_permission_is_an_error(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    (locked / "images").mkdir(parents=True)
    for mode in (0o000, 0o400):
        locked.chmod(mode)
        try:
            if os.access(locked, os.X_OK):
                pytest.skip("this user may enter locked folders (root)")
            with pytest.raises(AnnotationError, match="locked: cannot be read"):
                open_dataset(locked)
        finally:
            locked.chmod(0o700)


def test_other_files_and_folders_are_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("[]")
    (tmp_path / "notes.txt").touch()
    with raises_code(AnnotationError, "unknown_format", "annotations*.json", "masks/", "train.json"):
        open_dataset(tmp_path)
    with raises_code(AnnotationError, "unknown_format", "notes.txt", *FORMATS):
        open_dataset(tmp_path / "notes.txt")
    with raises_code(AnnotationError, "not_found", str(tmp_path / "none")):
        open_dataset(tmp_path / "none")
    with raises_code(SettingError, "bad_value"):
        open_dataset(tmp_path, prompt=" ")


def test_objects_of_one_phrase_become_one_target_in_order_of_first_appearance(tmp_path: Path) -> None:
    dataset = open_dataset(make(tmp_path, "annotations.json", one([LEFT, None, RIGHT], ["x", "y", "x"])))
    item = load_item(dataset.samples[0])
    assert item.prompts == ("x", "y")
    assert item.masks is not None
    np.testing.assert_array_equal(item.masks[0, 0], rasterize([LEFT, RIGHT], (8, 10)))
    assert not item.masks[1].any()
    assert dataset.merged == ("a",)
    assert "merged objects of the same phrase: 1 image" in dataset.notes


def test_a_prompt_replaces_every_phrase_and_unites_masks(tmp_path: Path) -> None:
    rows = (one([LEFT, None, RIGHT], ["x", "y", "z"], extra=1), {"image": "b.png", "mask": [None], "text": ["y"]})
    dataset = open_dataset(make(tmp_path, "annotations.json", *rows), prompt="vessel")
    first, second = dataset.samples
    assert first.prompts == second.prompts == ("vessel",)
    assert first.masks is not None
    assert [type(each) for each in first.masks[0]] == [Polygons, Polygons]
    assert second.masks == ((Absent(),),)
    assert dataset.merged == ()
    assert "further keys kept as metadata: extra (1 entry)" in dataset.notes
    assert any("mapped to 'vessel'" in note for note in dataset.notes)


def test_merging_keeps_distinct_phrases() -> None:
    sample = Sample("a", Path("a.png"), ("x", "y"), ((Absent(),), (Absent(),)))
    assert merge_phrases(sample) == sample


def test_groups_come_from_a_field_or_from_the_id(tmp_path: Path) -> None:
    rows = [{"image": f"{name}.png", "mask": [None], "text": ["v"], "patient": 3} for name in "ab"]
    make(tmp_path, "annotations.json", *rows)
    assert [sample.group for sample in load_samples(tmp_path)] == [None, None]
    assert [sample.group for sample in load_samples(tmp_path, group="patient")] == ["3", "3"]
    assert [sample.group for sample in load_samples(tmp_path, group="^(.)")] == ["a", "b"]
    assert "1 group" in open_dataset(tmp_path, group="patient").notes


def test_groups_in_the_annotations_are_used_by_default(tmp_path: Path) -> None:
    rows = [one([None], ["v"], group="p1"), {"image": "b.png", "mask": [None], "text": ["v"]}]
    dataset = open_dataset(make(tmp_path, "annotations.json", *rows))
    assert dataset.samples[0].group == "p1"
    assert "1 group; 1 image without one, each its own group" in dataset.notes
    with raises_code(SettingError, "missing_group", "entry 1 (b.png)"):
        open_dataset(tmp_path, group="group")


def test_every_kind_of_mask_becomes_the_same_pixels(tmp_path: Path) -> None:
    root = make(tmp_path)
    mask = rasterize([LEFT], (8, 10))
    Image.fromarray(mask).save(root / "mask.png")
    references = (Polygons((tuple(LEFT),)), RleMask(encode_rle(mask)), MaskFile(root / "mask.png"))
    sample = Sample("a", root / "images/a.png", ("p", "r", "f"), tuple((each,) for each in references))
    item = load_item(sample)
    assert item.frames.shape == (1, 8, 10, 3)
    assert item.masks is not None
    assert item.masks.shape == (3, 1, 8, 10)
    np.testing.assert_array_equal(item.masks[:, 0], [mask] * 3)


@pytest.mark.parametrize(
    ("entry", "code", "holds"),
    [
        (one([LEFT], ["v"], size=[16, 20]), "size_mismatch", "16 x 20 (h x w) but the image is 8 x 10, ratio 2 x 2"),
        (one([[0, 0, 11.5, 0, 0, 5]], ["v"]), "outside_image", "x 0 to 11.5 and y 0 to 5 in an image of 8 x 10"),
        (one([[0, -1.5, 5, 0, 0, 5]], ["v"]), "outside_image", "y -1.5 to 5"),
        (one([{"size": [4, 4], "counts": [16]}], ["v"]), "size_mismatch", "4 x 4"),
        (one([{"size": [8, 10], "counts": [16]}], ["v"]), "invalid_rle", "16 pixels"),
        (one([{"size": [8, 10], "counts": "~~é"}], ["v"]), "invalid_rle", "entry 0"),
    ],
)
def test_masks_that_do_not_fit_the_image_are_refused(
    tmp_path: Path, entry: dict[str, Any], code: str, holds: str
) -> None:
    (sample,) = load_samples(make(tmp_path, "annotations.json", entry))
    with raises_code(AnnotationError, code, f"{tmp_path / 'annotations.json'}, entry 0 (a.png)", holds):
        load_item(sample)


def test_points_up_to_a_pixel_outside_are_clipped(tmp_path: Path) -> None:
    (sample,) = load_samples(make(tmp_path, "annotations.json", one([[-1, -1, 11, -1, 11, 9, -1, 9]], ["v"])))
    masks = load_item(sample).masks
    assert masks is not None
    assert masks.all()


def test_images_are_found_in_files_and_folders(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    alone = tmp_path / "alone.png"
    Image.new("L", (4, 4)).save(alone)
    samples = find_images([root, alone])
    assert [sample.id for sample in samples] == ["a", "b", "alone"]
    item = load_item(samples[2])
    assert (item.prompts, item.masks) == ((), None)


def test_unusable_image_lists_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "set")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[list[Path], str]] = [
        ([], "no_image"),
        ([tmp_path / "empty"], "no_image"),
        ([tmp_path / "none.png"], "not_found"),
    ]
    for paths, code in cases:
        with raises_code(ImageError, code):
            find_images(paths)


def test_epochs_are_permutations_determined_by_seed_and_epoch() -> None:
    order = epoch_order(50, seed=1, epoch=0)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(50))
    np.testing.assert_array_equal(order, epoch_order(50, seed=1, epoch=0))
    assert (order != epoch_order(50, seed=1, epoch=1)).any()
    assert (order != epoch_order(50, seed=2, epoch=0)).any()
    assert order[:6].tolist() == GOLDEN_ORDER  # a resumed run must visit the same samples


GOLDEN_ORDER = [15, 25, 37, 23, 30, 6]


def test_a_note_states_how_many_samples_were_left_out(tmp_path: Path) -> None:
    dataset = open_dataset(make(tmp_path))
    assert dataset.first(2) == dataset
    assert dataset.first(1).samples == dataset.samples[:1]
    assert dataset.first(1).notes[-1] == "only the first 1 of 2 samples"


@pytest.mark.parametrize(("split", "n"), [("train", 160), ("val", 40), ("test", 100)])
def test_arcade_polygons_give_the_stored_masks(shared: Path, split: str, n: int) -> None:
    arcade = shared / "data" / "arcade"
    samples = load_samples(arcade, split=split, prompt="blood vessel")
    assert len(samples) == n
    for sample in samples[::20]:
        masks = load_item(sample).masks
        stored = np.asarray(Image.open(arcade / "masks" / f"{sample.id}.png")) != 0
        assert masks is not None
        dice = 2 * (masks[0, 0] & stored).sum() / (masks[0, 0].sum() + stored.sum())
        assert dice == 1.0


def test_chase_db1_has_two_eyes_for_each_of_14_children(shared: Path) -> None:
    dataset = open_dataset(shared / "data" / "chase_db1", prompt="blood vessel", group=r"Image_(\d+)")
    assert len(dataset.samples) == 28
    assert len({sample.group for sample in dataset.samples}) == 14
    assert any("fov/" in note and "masks_2nd/" in note for note in dataset.notes)
    masks = load_item(dataset.samples[0]).masks
    assert masks is not None
    assert masks.shape == (1, 1, 960, 999)
    assert masks.mean() == pytest.approx(0.06974, abs=1e-5)  # the publisher's share, in manifest.json


def test_reading_data_does_not_import_torch() -> None:
    code = "import sys, vesalius.checks, vesalius.data.augment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
