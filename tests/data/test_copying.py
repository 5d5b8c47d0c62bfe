"""Copying images to a new dataset: they are linked, copied or decoded, and pixels never change."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from tests.codes import raises_code

from vesalius.data.copying import copy_images
from vesalius.data.dataset import load_item
from vesalius.data.images import read_image, sample_id
from vesalius.errors import AnnotationError, ImageError, OutputError
from vesalius.files import replacing
from vesalius.types import Absent, MaskFile, Polygons, RleMask, Sample

LINE = Polygons(((0.0, 0.0, 4.0, 0.0, 4.0, 8.0),))


def picture(path: Path, value: int = 50, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (8, 10) if mode == "L" else (8, 10, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_images_are_linked_under_their_ids_and_samples_point_to_them(tmp_path: Path) -> None:
    image = picture(tmp_path / "in" / "p1" / "a.JPG")
    sample = Sample("p1__a", image, ("vessel", "wire"), ((LINE,), (Absent(),)), "x", group="p1", metadata={"k": 1})
    (placed,) = copy_images([sample], tmp_path / "out")
    assert placed == replace(sample, image=tmp_path / "out" / "images" / "p1__a.JPG")
    assert placed.image.samefile(image)
    assert sample_id(placed.image.relative_to(tmp_path / "out")) == placed.id


def test_a_copy_is_a_separate_file(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    (placed,) = copy_images([Sample("a", image, (), None)], tmp_path / "out", copy=True)
    assert not placed.image.samefile(image)
    assert placed.image.read_bytes() == image.read_bytes()


def test_a_failed_write_names_the_final_path(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    with pytest.raises(OutputError) as caught, replacing(tmp_path / "out") as folder:
        folder.mkdir()
        (folder / "images").touch()
        copy_images([Sample("a", image, (), None)], folder)
    assert caught.value.code == "write_failed"
    assert str(tmp_path / "out" / "images") in str(caught.value)
    assert ".partial" not in str(caught.value)


def test_a_symbolic_link_is_resolved(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(image)
    (placed,) = copy_images([Sample("b", tmp_path / "b.png", (), None)], tmp_path / "out")
    assert not placed.image.is_symlink()
    assert placed.image.samefile(image)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_bytes_are_copied_if_no_hard_link_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    image = picture(tmp_path / "a.png")
    monkeypatch.setattr(os, "link", refuse)
    (placed,) = copy_images([Sample("a", image, (), None)], tmp_path / "out")
    assert not placed.image.samefile(image)
    assert placed.image.read_bytes() == image.read_bytes()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_decoded_images_keep_pixels_and_no_metadata(tmp_path: Path, mode: str) -> None:
    image = picture(tmp_path / "a.png", mode=mode)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "Mueller Hans")
    Image.open(image).save(image, pnginfo=notes, exif=Image.Exif())
    os.utime(image, (1, 1))
    (placed,) = copy_images([Sample("a", image, (), None)], tmp_path / "out", decode=True)
    np.testing.assert_array_equal(read_image(placed.image), read_image(image))
    assert b"Mueller" in image.read_bytes()
    assert b"Mueller" not in placed.image.read_bytes()
    assert placed.image.stat().st_mtime > 1
    with Image.open(placed.image) as written:
        assert (written.mode, written.info) == (mode, {})


def test_an_image_with_another_suffix_becomes_png(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.webp", mode="RGB").rename(tmp_path / "a.image")
    (placed,) = copy_images([Sample("a", image, (), None)], tmp_path / "out")
    assert placed.image.name == "a.png"
    np.testing.assert_array_equal(read_image(placed.image), read_image(image))


def test_mask_files_become_rle_and_other_masks_stay(tmp_path: Path) -> None:
    image, mask = picture(tmp_path / "a.png"), tmp_path / "m.png"
    Image.fromarray(np.eye(8, 10, dtype=np.uint8) * 255).save(mask)
    sample = Sample("a", image, ("x", "y"), ((MaskFile(mask), LINE), (Absent(),)))
    (placed,) = copy_images([sample], tmp_path / "out")
    assert placed.masks is not None
    assert isinstance(placed.masks[0][0], RleMask)
    assert placed.masks[0][1:] + placed.masks[1:] == (LINE, (Absent(),))
    np.testing.assert_array_equal(load_item(placed).masks, load_item(sample).masks)


def test_a_mask_file_of_another_size_is_refused(tmp_path: Path) -> None:
    image, mask = picture(tmp_path / "a.png"), tmp_path / "m.png"
    Image.new("L", (9, 9)).save(mask)
    with raises_code(AnnotationError, "size_mismatch", "9 x 9"):
        copy_images([Sample("a", image, ("x",), ((MaskFile(mask),),))], tmp_path / "out")


def test_new_names_become_ids_and_stems(tmp_path: Path) -> None:
    samples = [Sample(name, picture(tmp_path / f"{name}.png"), (), None, group="g") for name in "ab"]
    placed = copy_images(samples, tmp_path / "out", {"a": "one", "b": "two"})
    assert [sample.id for sample in placed] == ["one", "two"]
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == ["one.png", "two.png"]


def test_progress_counts_each_image(tmp_path: Path) -> None:
    heard: list[int] = []
    samples = [Sample(name, picture(tmp_path / f"{name}.png"), (), None) for name in "abc"]
    copy_images(samples, tmp_path / "out", on_progress=heard.append)
    assert heard == [1, 2, 3]


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\0b"])
def test_an_invalid_file_name_is_refused(tmp_path: Path, name: str) -> None:
    sample = Sample("a", picture(tmp_path / "a.png"), (), None)
    with raises_code(OutputError, "invalid_file_name"):
        copy_images([sample], tmp_path / "out", {"a": name})


def test_two_images_of_one_name_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    first, second = (Sample(name, picture(tmp_path / f"{name}.png"), (), None) for name in "ab")
    with raises_code(OutputError, "duplicate_id"):
        copy_images([first, second], tmp_path / "out", {"a": "x", "b": "x"})
    with raises_code(OutputError, "duplicate_id"):
        copy_images([first, second], tmp_path / "decoded", {"a": "x", "b": "x"}, decode=True)
    with raises_code(ImageError, "missing_image", "none.png"):
        copy_images([replace(first, image=tmp_path / "none.png")], tmp_path / "again")


def test_a_file_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    sample = Sample("a", picture(tmp_path / "a.png"), (), None)
    with raises_code(OutputError, "write_failed"):
        copy_images([sample], tmp_path / "out", {"a": "x" * 300})


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_photo_turned_by_exif_is_written_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    (placed,) = copy_images([Sample("a", tmp_path / "a.png", (), None)], tmp_path / "out")
    np.testing.assert_array_equal(read_image(placed.image), read_image(tmp_path / "a.png"))
    with Image.open(placed.image) as image:
        assert image.getexif().get(0x0112, 1) == 1
        np.testing.assert_array_equal(np.asarray(image), read_image(placed.image))
