"""The check of a data set: every problem is found in one pass, and none is invented."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vesalius.data.checks import check, counts, inspect
from vesalius.data.dataset import DataSet, open_data_set
from vesalius.errors import AnnotationError
from vesalius.types import MaskFile, Sample

SQUARE = [1, 1, 6, 1, 6, 6, 1, 6]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Ten entries, each wrong (or odd) in its own way; see `test_every_problem_is_found_in_one_pass`."""
    for name in "abcdefgh":
        Image.new("L", (10, 8), 90).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:50])
    (tmp_path / "g.png").write_bytes(b"")
    rows = [
        ("a.png", [SQUARE], ["v"], {}),
        ("b.png", [SQUARE], ["v"], {}),
        ("c.png", [[0, 0, 40, 0, 0, 40], SQUARE, [30, 0, 40, 0, 30, 9]], ["v", "w", "x"], {}),
        ("d.png", [[[1, 2]]], ["v"], {}),
        ("e.png", [SQUARE], ["v"], {"size": [80, 100]}),
        ("f.png", [SQUARE, [2.2, 2.2, 2.4, 2.2, 2.2, 2.4], None], ["v", "v", "w"], {"group": "p1"}),
        ("g.png", [SQUARE], ["v"], {}),
        ("h.png", [[3.1, 3.1, 3.2, 3.1, 3.1, 3.2]], ["v"], {}),
        ("missing.png", [SQUARE], ["v"], {}),
    ]
    entries = [{"image": i, "mask": mask, "text": text, **more} for i, mask, text, more in rows]
    (tmp_path / "annotations.json").write_text(json.dumps(entries))
    return tmp_path


def test_every_problem_is_found_in_one_pass(broken: Path) -> None:
    data_set, findings = inspect(broken)
    assert [sample.id for sample in data_set.samples] == ["a", "b", "c", "e", "f", "g", "h"]
    found = [(finding.code, finding.severity) for finding in findings]
    assert found == [
        ("annotation", "error"),  # d: one point
        ("annotation", "error"),  # missing.png
        ("image", "error"),  # b: cut short
        ("annotation", "error"),  # c: v outside
        ("annotation", "error"),  # c: x outside
        ("annotation", "error"),  # e: another size
        ("empty_mask", "warning"),  # f: the second v
        ("image", "error"),  # g: no bytes
        ("empty_mask", "warning"),  # h
        ("repeated_phrase", "warning"),  # f
        ("no_groups", "warning"),  # all but f
    ]
    assert all(finding.place and finding.message for finding in findings)
    assert not any(finding.message.startswith(finding.place) for finding in findings)


def test_a_clean_data_set_has_no_finding(tmp_path: Path) -> None:
    Image.new("RGB", (10, 8)).save(tmp_path / "a.png")
    entry = {"image": "a.png", "mask": [SQUARE, None], "text": ["v", "w"], "group": "p", "size": [8, 10]}
    (tmp_path / "annotations.json").write_text(json.dumps([entry]))
    assert check(open_data_set(tmp_path)) == []


def test_turned_images_and_lossy_masks_are_warned_of(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (10, 8)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("L", (10, 8), 255).save(tmp_path / "mask.jpg")
    sample = Sample("a", tmp_path / "a.jpg", ("v",), ((MaskFile(tmp_path / "mask.jpg"),),), group="p")
    codes = [finding.code for finding in check(DataSet("d", "maskfolder", tmp_path, (sample,)))]
    assert codes == ["turned_image", "lossy_mask"]


def test_what_is_no_data_set_still_raises(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError):
        inspect(tmp_path)


def test_counts_tell_images_pairs_objects_and_groups(broken: Path) -> None:
    assert counts(inspect(broken)[0]) == {
        "images": 7,
        "pairs": 10,
        "objects": 10,
        "absent": 1,
        "groups": 7,
        "phrases": {"v": 7, "w": 2, "x": 1},
    }


def test_arcade_has_no_error_and_no_groups(shared: Path) -> None:
    data_set = open_data_set(shared / "data" / "arcade", split="val")
    assert [finding.code for finding in check(data_set)] == ["no_groups"]
    numbers = counts(data_set)
    assert numbers["images"] == numbers["groups"] == 40
    assert numbers["objects"] == numbers["pairs"] == sum(numbers["phrases"].values())
    json.dumps(numbers, allow_nan=False)


def test_hrf_masks_are_not_empty(shared: Path) -> None:
    data_set = open_data_set(shared / "data" / "hrf", prompt="blood vessel", group=r"(\d+)")
    assert check(data_set) == []
    assert np.unique([sample.group for sample in data_set.samples]).tolist() == ["01", "02"]
