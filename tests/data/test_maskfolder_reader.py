"""Folders of images and masks, paired by stem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vesalius.data.dataset import load_item, open_dataset
from vesalius.data.readers.maskfolder import notes, read, recognize
from vesalius.data.source import Source
from vesalius.data.writers import vesalius_json
from vesalius.errors import AnnotationError, DataError, SettingError
from vesalius.lineage import fingerprint_samples
from vesalius.types import Absent, MaskFile, RleMask

from ..codes import raises_code

CLASSES = np.array([[0, 1, 1], [2, 0, 0]], dtype=np.uint8)
COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], dtype=np.uint8)


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3)).save(root / name)
    return root


def test_images_and_masks_pair_by_stem_whatever_the_suffix(tmp_path: Path) -> None:
    fill(tmp_path, "images/b.JPG", "masks/b.png", "images/a.tif", "masks/a.bmp", "images/p1/é.png", "masks/p1/é.PNG")
    assert recognize(Source(tmp_path))
    samples = read(Source(tmp_path), "vessel")
    assert [sample.id for sample in samples] == ["a", "b", "p1__é"]
    assert all(sample.prompts == ("vessel",) for sample in samples)
    assert samples[1].image == tmp_path / "images" / "b.JPG"
    assert samples[1].masks == ((MaskFile(tmp_path / "masks" / "b.png"),),)


@pytest.mark.parametrize(("lonely", "other"), [("images", "masks"), ("masks", "images")])
def test_a_missing_partner_is_named(tmp_path: Path, lonely: str, other: str) -> None:
    fill(tmp_path, "images/a.png", "masks/a.png", *(f"{lonely}/x{i}.png" for i in range(7)))
    names = "x0, x1, x2, x3, x4 and 2 more"
    with raises_code(AnnotationError, "unpaired_file", f"{tmp_path / lonely}: ", f"{other}/", names):
        read(Source(tmp_path), "vessel")


@pytest.mark.parametrize("side", ["images", "masks"])
def test_two_files_of_one_stem_are_refused(tmp_path: Path, side: str) -> None:
    fill(tmp_path, "images/a.png", "masks/a.png", f"{side}/a.bmp")
    with raises_code(AnnotationError, "duplicate_id", "a.png", "a.bmp"):
        read(Source(tmp_path), "vessel")


def test_an_empty_side_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "images/a.png")
    (tmp_path / "masks").mkdir()
    with raises_code(AnnotationError, "no_image", "masks"):
        read(Source(tmp_path), "vessel")


def test_errors_of_all_files_are_collected(tmp_path: Path) -> None:
    fill(tmp_path, "images/a.png", "masks/a.png", "images/b.png", "masks/c.png", "masks/c.bmp")
    problems: list[DataError] = []
    assert [sample.id for sample in read(Source(tmp_path), "vessel", problems)] == ["a"]
    assert len(problems) == 3


def test_other_siblings_are_listed(tmp_path: Path) -> None:
    fill(tmp_path, "images/a.png", "masks/a.png", "masks_2nd/a.png", "fov/a.png")
    (tmp_path / "README.md").touch()
    (tmp_path / ".DS_Store").touch()
    assert notes(Source(tmp_path)) == ["ignored beside images/ and masks/: README.md, fov/, masks_2nd/"]


def test_a_folder_without_masks_is_not_recognized(tmp_path: Path) -> None:
    assert not recognize(Source(fill(tmp_path, "images/a.png")))


def fill_classes(root: Path, mask: np.ndarray, table: Any) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    Image.new("RGB", (3, 2)).save(root / "images" / "a.png")
    Image.fromarray(mask).save(root / "masks" / "a.png")
    (root / "classes.json").write_text(json.dumps(table), encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("mask", "table"),
    [
        (CLASSES, {"血管": 1, "catheter": 2, "wire": 3}),
        (CLASSES, {"background": 0, "血管": 1, "catheter": 2, "wire": 300}),
        (COLORS[CLASSES], {"血管": [255, 0, 0], "catheter": [0, 255, 0], "wire": [0, 0, 1]}),
    ],
)
def test_with_a_table_every_class_is_a_prompt_of_every_image(tmp_path: Path, mask: np.ndarray, table: Any) -> None:
    (sample,) = open_dataset(fill_classes(tmp_path, mask, table)).samples
    assert sample.prompts == ("血管", "catheter", "wire")
    item = load_item(sample)
    assert item.masks is not None
    for drawn, value in zip(item.masks[:, 0], (1, 2, 3), strict=True):
        np.testing.assert_array_equal(drawn, value == CLASSES)


def test_a_class_without_pixels_is_written_as_absent(tmp_path: Path) -> None:
    samples = open_dataset(fill_classes(tmp_path, CLASSES, {"vessel": 1, "wire": 3, "catheter": 2})).samples
    vesalius_json.write(tmp_path / "annotations.json", samples)
    (written,) = open_dataset(tmp_path).samples
    assert written.prompts == ("vessel", "wire", "catheter") and written.masks is not None
    assert isinstance(written.masks[0][0], RleMask)
    assert written.masks[1] == (Absent(),)


def test_a_prompt_maps_all_classes_to_one(tmp_path: Path) -> None:
    root = fill_classes(tmp_path, CLASSES, {"vessel": 1, "catheter": 2})
    (sample,) = open_dataset(root, prompt="anything").samples
    item = load_item(sample)
    assert item.prompts == ("anything",) and item.masks is not None
    np.testing.assert_array_equal(item.masks[0, 0], CLASSES > 0)


def test_the_same_files_with_another_table_have_another_fingerprint(tmp_path: Path) -> None:
    one = open_dataset(fill_classes(tmp_path, CLASSES, {"vessel": 1, "catheter": 2})).samples
    other = open_dataset(fill_classes(tmp_path, CLASSES, {"vessel": 2, "catheter": 1})).samples
    assert fingerprint_samples(one) != fingerprint_samples(other)


def test_a_mask_value_of_no_class_is_refused_when_the_mask_is_read(tmp_path: Path) -> None:
    (sample,) = read(Source(fill_classes(tmp_path, CLASSES, {"vessel": 1})))
    with raises_code(AnnotationError, "unknown_mask_value", "masks/a.png", ": 2 (pixels: 1)"):
        load_item(sample)


@pytest.mark.parametrize(
    ("table", "holds"),
    [
        ([], "a list"),
        ({}, ""),
        ({"background": 0}, ""),
        ({" ": 1}, ""),
        ({"vessel": 0, "b": 1}, "'vessel'"),
        ({"vessel": [0, 0, 0], "b": [1, 1, 1]}, "'vessel'"),
        ({"a": 1, "b": 1}, "distinct"),
        ({"a": 1, "b": [1, 2, 3]}, "colors"),
        ({"a": 1, "background": [0, 0, 0]}, "colors"),
        ({"a": True}, "1 to 65535 or a color"),
        ({"a": 70_000}, "70000"),
        ({"a": -1}, "-1"),
        ({"a": [1, 2]}, "[1, 2]"),
        ({"a": [1, 2, 256]}, "[1, 2, 256]"),
        ({"a": "red"}, "'red'"),
    ],
)
def test_a_wrong_class_table_is_refused(tmp_path: Path, table: Any, holds: str) -> None:
    with raises_code(AnnotationError, "invalid_class_table", holds) as caught:
        read(Source(fill_classes(tmp_path, CLASSES, table)), "vessel", [])
    assert caught.value.path == str(tmp_path / "classes.json")


def test_a_folder_with_neither_phrase_nor_table_is_refused(tmp_path: Path) -> None:
    with raises_code(SettingError, "no_phrase", "--prompt", "classes.json"):
        read(Source(fill(tmp_path, "images/a.png", "masks/a.png")))
