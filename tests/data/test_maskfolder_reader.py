"""Folders of images and masks, paired by stem."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vesalius.data.readers.maskfolder import notes, read, recognise
from vesalius.data.source import Source
from vesalius.errors import AnnotationError, DataError
from vesalius.types import MaskFile


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3)).save(root / name)
    return root


def test_images_and_masks_pair_by_stem_whatever_the_suffix(tmp_path: Path) -> None:
    fill(
        tmp_path,
        "images/b.JPG",
        "masks/b.png",
        "images/a.tif",
        "masks/a.bmp",
        "images/p1/é.png",
        "masks/p1/é.PNG",
    )
    assert recognise(Source(tmp_path))
    samples = read(Source(tmp_path), "vessel")
    assert [sample.id for sample in samples] == ["a", "b", "p1__é"]
    assert all(sample.prompts == ("vessel",) for sample in samples)
    assert samples[1].image == tmp_path / "images" / "b.JPG"
    assert samples[1].masks == ((MaskFile(tmp_path / "masks" / "b.png"),),)


@pytest.mark.parametrize(("lonely", "other"), [("images", "masks"), ("masks", "images")])
def test_a_missing_partner_is_named(tmp_path: Path, lonely: str, other: str) -> None:
    fill(tmp_path, "images/a.png", "masks/a.png", *(f"{lonely}/x{i}.png" for i in range(7)))
    with pytest.raises(
        AnnotationError, match=rf"{lonely}: no file in {other}/ has the stem of x0, .*x4 and 2 more"
    ):
        read(Source(tmp_path), "vessel")


@pytest.mark.parametrize("side", ["images", "masks"])
def test_two_files_of_one_stem_are_refused(tmp_path: Path, side: str) -> None:
    fill(tmp_path, "images/a.png", "masks/a.png", f"{side}/a.bmp")
    with pytest.raises(AnnotationError, match=r"a\.png: has the same stem as a\.bmp"):
        read(Source(tmp_path), "vessel")


def test_an_empty_side_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "images/a.png")
    (tmp_path / "masks").mkdir()
    with pytest.raises(AnnotationError, match="masks: holds no image"):
        read(Source(tmp_path), "vessel")


def test_problems_are_collected_where_asked(tmp_path: Path) -> None:
    fill(tmp_path, "images/a.png", "masks/a.png", "images/b.png", "masks/c.png", "masks/c.bmp")
    problems: list[DataError] = []
    assert [sample.id for sample in read(Source(tmp_path), "vessel", problems)] == ["a"]
    assert len(problems) == 3


def test_other_siblings_are_listed(tmp_path: Path) -> None:
    fill(tmp_path, "images/a.png", "masks/a.png", "masks_2nd/a.png", "fov/a.png")
    (tmp_path / "README.md").touch()
    (tmp_path / ".DS_Store").touch()
    assert notes(Source(tmp_path)) == ["ignored beside images/ and masks/: README.md, fov/, masks_2nd/"]


def test_a_folder_without_masks_is_not_recognised(tmp_path: Path) -> None:
    assert not recognise(Source(fill(tmp_path, "images/a.png")))
