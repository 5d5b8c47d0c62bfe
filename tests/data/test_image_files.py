"""Folders given to a prediction: only images of a dataset, unique ids, and no file that stops the others."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from PIL import Image
from tests.codes import raises_code

from vesalius.data.dataset import load_item
from vesalius.data.image_files import find_images
from vesalius.errors import ImageError

from ..dicom_files import angiogram


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), 200).save(path)
    return path


def ids(*paths: Path) -> list[str]:
    return [sample.id for sample in find_images(list(paths))]


@pytest.mark.parametrize("annotation", [None, "annotations.json", "labels.xml", "coco.json"])
def test_only_the_images_of_a_dataset_are_taken(
    tmp_path: Path, annotation: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    picture(tmp_path / "images" / "p1" / "a.png")
    picture(tmp_path / ("masks" if annotation is None else "previews") / "p1" / "a.png")
    if annotation is not None:
        (tmp_path / annotation).write_text("[]")
    with caplog.at_level(logging.WARNING):
        assert ids(tmp_path) == ["p1__a"]
    assert "masks/" in caplog.text or "previews/" in caplog.text


def test_training_and_test_images_of_nnunet_are_taken(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        picture(tmp_path / folder / "a_0000.png")
    (tmp_path / "dataset.json").write_text(json.dumps({}))
    assert ids(tmp_path) == ["imagesTr__a_0000", "imagesTs__a_0000"]


def test_datasets_below_the_folder_are_recognized_too(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        picture(tmp_path / patient / "images" / "a.png")
        picture(tmp_path / patient / "masks" / "a.png")
    assert ids(tmp_path) == ["p1__images__a", "p2__images__a"]


def test_ids_of_a_folder_are_unique(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "p1/x.png", "p1__x.png", "b.png", "图 像.png", "two\nlines.png"):
        picture(tmp_path / name)
    assert ids(tmp_path) == ["a.jpg", "a.png", "b", "p1__x.png", "p1__x.png-2", "two\nlines", "图 像"]


def test_ids_of_given_files_are_unique(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = picture(tmp_path / "p1" / "x.png"), picture(tmp_path / "p2" / "x.png")
    assert ids(first, second) == ["p1__x.png", "p2__x.png"]
    with caplog.at_level(logging.WARNING):
        assert ids(first, tmp_path / "p1", second) == ["p1__x.png", "p2__x.png"]
    assert "twice" in caplog.text


def test_frames_of_a_clip_do_not_share_an_id_with_an_image(tmp_path: Path) -> None:
    angiogram(tmp_path / "cine.dcm", 2)
    picture(tmp_path / "cine__0001.png")
    assert ids(tmp_path) == ["cine__0000", "cine__0001", "cine__0001-2"]


def test_damaged_files_of_a_folder_are_samples_and_others_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture(tmp_path / "good.png")
    for name in ("cut.mp4", "empty.png", "bad.dcm", "volume.nii.gz", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"" if name == "empty.png" else b"nothing")
    (tmp_path / "object.dcm").write_bytes(b"\0" * 128 + b"DICM\x02\x00\x02\x00UI\x14\x001.2.840.10008.1.3.10\0")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    picture(tmp_path / ".thumbnails" / "good.png")
    with caplog.at_level(logging.WARNING):
        assert ids(tmp_path) == ["bad", "cut", "empty", "gone", "good", "pipe", "volume"]
    assert "notes.txt" in caplog.text and "object.dcm" in caplog.text and "2 files" in caplog.text


def test_links_to_folders_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    picture(tmp_path / "disk" / "a.png")
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "in" / "b" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "itself").symlink_to(tmp_path / "in" / "itself")
    assert ids(tmp_path / "in") == ["linked__a"]


def test_names_that_are_not_utf_8_get_an_id_with_escapes(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xb2\xe2.png")).touch()
    assert ids(tmp_path) == ["\\udcb2\\udce2"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read every folder")
def test_locked_folder_is_one_failing_sample(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "locked").mkdir(mode=0)
    assert ids(tmp_path) == ["a", "locked"]


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").touch()
    with raises_code(ImageError, "no_image"):
        find_images([tmp_path])


@pytest.mark.parametrize("marker", ["predictions.jsonl", ".predictions.request.json", "samples.jsonl"])
def test_results_inside_the_folder_are_left_out(tmp_path: Path, marker: str, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "out" / "masks" / "a.png")
    (tmp_path / "out" / marker).touch()
    with caplog.at_level(logging.WARNING):
        assert ids(tmp_path) == ["a"]
    assert str(tmp_path / "out") in caplog.text
    with raises_code(ImageError, "no_image"):
        find_images([tmp_path / "out"])


def test_images_without_their_suffix_are_known_by_content(tmp_path: Path) -> None:
    picture(tmp_path / "a.png").rename(tmp_path / "frame_1")
    picture(tmp_path / "b.jpg").rename(tmp_path / "b.img")
    (tmp_path / "notes").write_text("BMI")
    assert ids(tmp_path) == ["b", "frame_1"]
    assert all(load_item(sample).size == (4, 4) for sample in find_images([tmp_path]))
