"""Label maps, the table of areas and label volumes of a prediction folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.codes import raises_code

from vesalius.colors import PHRASE_COLORS
from vesalius.data.image_files import find_images
from vesalius.errors import SettingError
from vesalius.jobs.folder import write_predictions
from vesalius.mask_maps import Full
from vesalius.masks import decode_rle
from vesalius.types import Item, Prediction

from ..dicom_files import angiogram
from ..segmenters import SIDE, Bright, draw_squares

PROMPTS = ["vessel", "血管"]


class Halves(Bright):
    """The first prompt is the upper half with the logit 2, any other the left half with the logit 4."""

    def answer(self, item: Item, prompt: str) -> Prediction:
        height, width = item.size
        logits = np.full((1, height, width), -9, dtype=np.float32)
        if prompt == PROMPTS[0]:
            logits[:, : height // 2] = 2
        else:
            logits[:, :, : width // 2] = 4
        return Prediction(item.id, prompt, "ok", item.size, Full(logits))


class Silent(Bright):
    """Answers without [SEG]."""

    def answer(self, item: Item, prompt: str) -> Prediction:
        return Prediction(item.id, prompt, "no_seg", item.size, text="uuuu")


def write(paths: Path, out: Path, save: list[str], prompts: list[str] = PROMPTS) -> dict[str, Any]:
    return write_predictions(Halves(), find_images([paths]), prompts, out, save=save)


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def test_label_map_gives_common_pixels_to_the_higher_probability(tmp_path: Path) -> None:
    draw_squares(tmp_path / "in", 2)
    (tmp_path / "in" / "bad.png").write_bytes(b"nothing")
    write(tmp_path / "in", tmp_path / "out", ["labelmap"])
    expected = np.zeros((SIDE, SIDE), np.uint8)
    expected[: SIDE // 2] = 1
    expected[:, : SIDE // 2] = 2
    for line in lines_of(tmp_path / "out"):
        assert ("labelmap" in line) == (line["status"] == "ok")
        if line["status"] == "ok":
            with Image.open(tmp_path / "out" / line["labelmap"]) as picture:
                assert picture.mode == "L"
                np.testing.assert_array_equal(np.asarray(picture), expected)
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == {"vessel": 1, "血管": 2}
    assert sorted(each.name for each in (tmp_path / "out" / "labelmaps").iterdir()) == ["000.png", "001.png"]


def test_several_prompts_have_an_overlay_of_all_masks_with_a_legend(tmp_path: Path) -> None:
    draw_squares(tmp_path / "in", 1)
    (tmp_path / "in" / "bad.png").write_bytes(b"nothing")
    write(tmp_path / "in", tmp_path / "out", ["overlay"])
    for line in lines_of(tmp_path / "out"):
        assert ("combined_overlay" in line) == (line["status"] == "ok")
        if line["status"] == "ok":
            with Image.open(tmp_path / "out" / line["combined_overlay"]) as picture:
                pixels = np.asarray(picture)
            assert pixels.shape[0] > SIDE and pixels.shape[1] == SIDE
            assert {tuple(pixel) for pixel in pixels[:SIDE].reshape(-1, 3).tolist()} >= set(PHRASE_COLORS[:2])
    write(tmp_path / "in", tmp_path / "one", ["overlay"], PROMPTS[:1])
    assert not (tmp_path / "one" / "combined_overlays").exists()


def test_labels_of_more_prompts_than_8_bits_are_refused(tmp_path: Path) -> None:
    draw_squares(tmp_path / "in", 1)
    for save in ("labelmap", "nifti"):
        with raises_code(SettingError, "bad_value", "256"):
            write(tmp_path / "in", tmp_path / "out", [save], [f"p{i}" for i in range(256)])


def read_table(out: Path) -> list[dict[str, str]]:
    with (out / "areas.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_table_has_pixels_and_where_the_spacing_is_known_millimeters(tmp_path: Path) -> None:
    draw_squares(tmp_path / "in", 1)
    (tmp_path / "in" / "bad.png").write_bytes(b"nothing")
    angiogram(tmp_path / "in" / "detector.dcm", 1, ImagerPixelSpacing=[0.25, 0.5])
    angiogram(tmp_path / "in" / "patient.dcm", 1, PixelSpacing=[0.5, 0.5], SOPInstanceUID="1.2.8")
    summary = write(tmp_path / "in", tmp_path / "out", ["table"])
    assert summary["spacing"] == {"": 2, "ImagerPixelSpacing": 2, "PixelSpacing": 2}
    rows = {(row["id"], row["prompt"]): row for row in read_table(tmp_path / "out")}
    plain = rows["000", "vessel"]
    assert (plain["area_px"], plain["area_mm2"], plain["spacing_from"]) == (str(SIDE**2 // 2), "", "")
    assert float(plain["max_diameter_px"]) == pytest.approx(SIDE / 2, abs=1)
    failed = rows["bad", "血管"]
    assert (failed["status"], failed["area_px"], failed["length_px"]) == ("failed", "", "")
    for name, area, source in (("detector", 0.125, "ImagerPixelSpacing"), ("patient", 0.25, "PixelSpacing")):
        row = rows[name, "血管"]
        assert row["spacing_from"] == source
        assert float(row["area_mm2"]) == pytest.approx(int(row["area_px"]) * area)
    same = rows["patient", "血管"]
    assert float(same["length_mm"]) == pytest.approx(float(same["length_px"]) / 2)
    assert (same["spacing_y_mm"], same["spacing_x_mm"]) == ("0.5", "0.5")


def test_interrupted_job_has_the_whole_table(tmp_path: Path) -> None:
    draw_squares(tmp_path / "in", 5)
    images = find_images([tmp_path / "in"])
    for stop_at in ("003", ""):
        segmenter = Halves(batch_size=1, stop_at=stop_at)
        try:
            write_predictions(segmenter, images, PROMPTS, tmp_path / "out", save=["table", "labelmap"])
        except KeyboardInterrupt:
            assert not (tmp_path / "out" / "areas.csv").exists()
    assert segmenter.seen != [image.id for image in images]
    assert [(row["id"], row["prompt"]) for row in read_table(tmp_path / "out")] == [
        (image.id, prompt) for image in images for prompt in PROMPTS
    ]


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_label_volume_lies_on_the_grid_of_its_source(tmp_path: Path, suffix: str, second: bool) -> None:
    nib = pytest.importorskip("nibabel", reason="needs the extra nifti")
    rng = np.random.default_rng(3)
    affine = np.array([[-0.5, 0.1, 0, 9], [0, 0, 2.5, -4], [0.1, 0.7, 0, 30], [0, 0, 0, 1]])
    volume = rng.integers(0, 200, (9, 7, 4)).astype(np.int16)
    kind = nib.Nifti2Image if second else nib.Nifti1Image
    source = kind(volume, affine)
    source.header.set_xyzt_units("mm")
    source.header["cal_max"] = 150
    (tmp_path / "in").mkdir()
    source.to_filename(tmp_path / "in" / f"scan{suffix}")
    summary = write(tmp_path / "in", tmp_path / "out", ["rle", "nifti"])
    assert summary["coverage"]["ok"] == 8, summary["failures"]
    found = nib.load(tmp_path / "out" / "volumes" / "scan.nii.gz")
    before = nib.load(tmp_path / "in" / f"scan{suffix}")
    np.testing.assert_array_equal(found.affine, before.affine)
    for name in ("qform_code", "sform_code", "pixdim", "xyzt_units", "dim"):
        np.testing.assert_array_equal(found.header[name], before.header[name])
    labels = np.asarray(found.dataobj)
    assert labels.dtype == np.uint8 and labels.shape == volume.shape and type(found) is kind
    expected = np.zeros_like(labels)
    expected[:, :3] = 1  # the upper half of a slice: axis 1 runs down
    expected[:4] = 2  # the left half: axis 0 runs to the right
    np.testing.assert_array_equal(labels, expected)
    line = lines_of(tmp_path / "out")[0]
    np.testing.assert_array_equal(decode_rle(line["rle"]), np.arange(7)[:, None] < np.full((7, 9), 3))
    assert "label_rle" not in line


def test_volume_of_one_prompt_is_its_mask_and_a_failed_slice_prevents_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nib = pytest.importorskip("nibabel", reason="needs the extra nifti")
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        nib.Nifti1Image(np.zeros((8, 8, 3), np.uint8), np.eye(4)).to_filename(tmp_path / "in" / f"{name}.nii.gz")

    class Partly(Halves):
        def answer(self, item: Item, prompt: str) -> Prediction:
            if item.id == "b__0001":
                raise RuntimeError("no answer")
            return super().answer(item, prompt)

    summary = write_predictions(Partly(), find_images([tmp_path / "in"]), ["vessel"], tmp_path / "out", save=["nifti"])
    assert summary["coverage"] == {"ok": 5, "no_seg": 0, "failed": 1}
    assert [each.name for each in (tmp_path / "out" / "volumes").iterdir()] == ["a.nii.gz"]
    assert set(np.unique(nib.load(tmp_path / "out" / "volumes" / "a.nii.gz").dataobj)) == {0, 1}
    assert "b.nii.gz: gets no label volume" in caplog.text


def test_label_volumes_are_for_nifti_files(tmp_path: Path) -> None:
    draw_squares(tmp_path / "in", 1)
    with raises_code(SettingError, "conflicting_settings", "000.png"):
        write(tmp_path / "in", tmp_path / "out", ["nifti"])


def test_job_that_segments_nothing_is_counted(tmp_path: Path) -> None:
    draw_squares(tmp_path / "in", 2)
    images = find_images([tmp_path / "in"])
    summary = write_predictions(Silent(), images, PROMPTS, tmp_path / "out")
    assert (summary["segmented"], summary["refusal"]) == (0, "uuuu")
    assert write_predictions(Halves(), images, PROMPTS, tmp_path / "more")["segmented"] == 4
