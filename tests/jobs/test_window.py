"""Windows on the command line: one picture in every depth, and the window of training in later commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from vesalius import load_item, load_predictor, load_samples
from vesalius.cli.main import main
from vesalius.models.cards import CARD
from vesalius.models.reference import resolve_model

from ..deep_files import write_png16
from ..dicom_files import write_xa


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """An angiogram that uses all gray levels from 0 to 255, uint8 (h, w)."""
    folder = tmp_path_factory.mktemp("synth")
    assert main(["synth", str(folder / "a"), "--n", "1", "--seed", "3"]) == 0
    with Image.open(next((folder / "a" / "images").iterdir())) as image:
        gray = np.asarray(image.convert("L")).astype(float)
    return ((gray - gray.min()) / np.ptp(gray) * 255).round().astype(np.uint8)


def run(*words: str | Path, code: int = 0) -> None:
    assert main([str(word) for word in words]) == code


def lines_of(out: Path) -> dict[str, dict[str, Any]]:
    lines = map(json.loads, (out / "predictions.jsonl").read_text().splitlines())
    return {Path(line["id"]).name: line for line in lines}


def masks_of(out: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(Image.open(out / line["mask"])) > 0 for name, line in lines_of(out).items()}


def test_one_picture_in_every_depth_has_one_mask(
    picture: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, deep = tmp_path / "in", picture.astype(np.uint16) * 16
    folder.mkdir()
    Image.fromarray(picture).save(folder / "a8.png")
    write_png16(folder / "b16.png", deep)
    tifffile.imwrite(folder / "c16.tif", deep + 300)
    tifffile.imwrite(folder / "d32.tif", (picture / 255).astype(np.float32))
    write_xa(folder / "f.dcm", deep[None])
    run("predict", "tiny", folder, "--prompt", "blood vessel", "--out", tmp_path / "out", "--save", "masks")
    masks = masks_of(tmp_path / "out")
    assert len(masks) == 5
    assert masks["a8"].sum() > 1000
    for name, mask in masks.items():
        dice = 2 * (mask & masks["a8"]).sum() / (mask.sum() + masks["a8"].sum())
        assert dice >= 0.98, name
    windows = {name: line["window"] for name, line in lines_of(tmp_path / "out").items()}
    assert windows["a8"] is None
    assert windows["c16"] == [300, 4380]
    assert windows["d32"] == [0, 1]
    summary = json.loads((tmp_path / "out" / "run.json").read_text())
    assert summary["windows"]["images"] == 4
    assert summary["settings"]["window"] == "auto"
    assert "window auto" in capsys.readouterr().out


def test_a_given_window_is_stored_and_another_request(picture: np.ndarray, tmp_path: Path) -> None:
    image = write_png16(tmp_path / "a.png", picture.astype(np.uint16) * 16)
    words = ["predict", "frangi", image, "--prompt", "vessel", "--out", tmp_path / "out"]
    run(*words, "--window", "percentile", "0.5", "99.5")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["window"] == ["percentile", 0.5, 99.5]
    low, high = np.percentile(picture.astype(float) * 16, (0.5, 99.5))
    assert lines_of(tmp_path / "out")["a"]["window"] == [low, high]
    run(*words, "--window", "0", "4080", code=1)
    run(*words, "--window", "4080", "0", "--overwrite", code=2)


def bundle_with_window(folder: Path, window: Any) -> Path:
    """A copy of `tiny` that was trained under a window."""
    source = resolve_model("tiny").folder
    folder.mkdir()
    for path in source.rglob("*"):
        target = folder / path.relative_to(source)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.symlink_to(path)
    card = json.loads((source / CARD).read_text())
    (folder / CARD).unlink()
    (folder / CARD).write_text(json.dumps(card | {"window": window}))
    return folder


def test_the_window_of_training_is_the_default_and_another_one_is_marked(
    picture: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = write_png16(tmp_path / "a.png", picture.astype(np.uint16) * 16)
    model = bundle_with_window(tmp_path / "bundle", [0, 8000])
    words = ["predict", model, image, "--prompt", "blood vessel", "--save", "masks", "--out"]
    run(*words, tmp_path / "own")
    assert lines_of(tmp_path / "own")["a"]["window"] == [0, 8000]
    assert "training_window" not in json.loads((tmp_path / "own" / "run.json").read_text())["settings"]
    assert "differs" not in capsys.readouterr().out
    run(*words, tmp_path / "auto", "--window", "auto")
    assert lines_of(tmp_path / "auto")["a"]["window"] == [0, 4080]
    settings = json.loads((tmp_path / "auto" / "run.json").read_text())["settings"]
    assert (settings["window"], settings["training_window"]) == ("auto", [0, 8000])
    assert "differs from that of training" in capsys.readouterr().out
    own = load_predictor(model)(image, "blood vessel")
    np.testing.assert_array_equal(own.mask, masks_of(tmp_path / "own")["a"])
    other = load_predictor(model, window="auto")(image, "blood vessel")
    np.testing.assert_array_equal(other.mask, masks_of(tmp_path / "auto")["a"])


def write_deep_dataset(folder: Path, n: int = 2) -> Path:
    """A folder of 16-bit images with masks."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(n):
        values = rng.integers(1000, 3000, (64, 64), dtype=np.uint16)
        mask = np.zeros((64, 64), np.uint8)
        mask[20:40, 10:50] = 255
        write_png16(folder / "images" / f"{index}.png", values + np.uint16(800) * (mask > 0))
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    return folder


def test_check_reports_depth_and_window(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_deep_dataset(tmp_path / "data")
    run("check", data, "--prompt", "vessel", "--json")
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])["counts"]
    assert counts["depth"] == {"16-bit": 2}
    assert counts["window"].startswith("window auto: black at 100")
    run("check", data, "--prompt", "vessel", "--window", "0", "255", "--json")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    codes = {each["code"] for each in found["findings"]}
    assert {"clipped_values", "constant_image"} <= codes


def test_check_finds_flat_and_float_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_deep_dataset(tmp_path / "data", 3)
    flat = np.tile(np.array([700, 701], np.uint16), (64, 32))
    write_png16(data / "images" / "0.png", flat)
    write_png16(data / "images" / "1.png", np.full((64, 64), 9, np.uint16))
    for path in (data / "images").glob("2.*"):
        path.unlink()
    tifffile.imwrite(data / "images" / "2.tif", np.random.default_rng(1).normal(size=(64, 64)))
    run("check", data, "--prompt", "vessel", "--json")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    codes = {(each["code"], Path(each["file"]).stem) for each in found["findings"]}
    assert {("few_gray_levels", "0"), ("constant_image", "1"), ("float_range", "2")} <= codes


def test_import_keeps_deep_files_and_a_window_makes_them_8_bits(tmp_path: Path) -> None:
    data = write_deep_dataset(tmp_path / "data")
    run("import", data, tmp_path / "kept", "--prompt", "vessel")
    for name in ("0.png", "1.png"):
        assert (tmp_path / "kept/images" / name).read_bytes() == (data / "images" / name).read_bytes()
    run("import", data, tmp_path / "shown", "--prompt", "vessel", "--window", "1000", "3000")
    with Image.open(tmp_path / "shown/images/0.png") as image:
        assert image.mode == "L"
    run("import", data, tmp_path / "hidden", "--prompt", "vessel", "--pseudonymize")
    for path in (tmp_path / "hidden/images").iterdir():
        with Image.open(path) as image:
            assert image.mode == "I;16"
    for folder in ("kept", "shown", "hidden"):
        run("check", tmp_path / folder)
        assert all(load_item(sample).masks is not None for sample in load_samples(tmp_path / folder))


def test_pages_and_animations_are_clips_of_one_job(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    base = np.random.default_rng(0).integers(0, 4000, (48, 64), dtype=np.uint16)
    tifffile.imwrite(folder / "stack.tif", np.stack([base, base + 90]), photometric="minisblack")
    frames = [Image.fromarray((base // (16 + i)).astype(np.uint8)) for i in range(3)]
    frames[0].save(folder / "loop.gif", save_all=True, append_images=frames[1:], duration=100)
    frames[0].save(folder / "still.webp", lossless=True)
    run("predict", "frangi", folder, "--prompt", "vessel", "--out", tmp_path / "out")
    lines = lines_of(tmp_path / "out")
    assert list(lines) == ["loop__0000", "loop__0001", "loop__0002", "stack__0000", "stack__0001", "still"]
    assert lines["stack__0000"]["window"] == lines["stack__0001"]["window"] == [base.min(), base.max() + 90]
    assert {line["status"] for line in lines.values()} == {"ok"}


def test_masks_of_turned_photos_match_the_upright_picture(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.rot90(pixels, -1)).save(tmp_path / "upright.png")
    run("predict", "frangi", tmp_path, "--prompt", "vessel", "--out", tmp_path.with_name("masks"))
    masks = masks_of(tmp_path.with_name("masks"))
    assert masks["turned"].shape == (64, 40)
    np.testing.assert_array_equal(masks["turned"], masks["upright"])


@pytest.mark.parametrize("orientation", [3, 6])
def test_check_warns_of_masks_on_turned_photos_only_where_no_size_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], orientation: int
) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 64), dtype=np.uint8)).save(tmp_path / "images/a.png", exif=exif)
    mask = np.zeros((40, 64), np.uint8)
    mask[4:14, 5:50] = 255
    Image.fromarray(mask).save(tmp_path / "masks/a.png")
    run("check", tmp_path, "--prompt", "vessel", "--json")
    findings = json.loads(capsys.readouterr().out.splitlines()[-1])["findings"]
    assert ["exif_rotation" in {each["code"] for each in findings}] == [orientation == 3]
    (sample,) = load_samples(tmp_path, prompt="vessel")
    item = load_item(sample)
    assert item.size == (40, 64)
    assert item.masks is not None
    np.testing.assert_array_equal(item.masks[0, 0], mask > 0)


def test_an_evaluation_says_which_window_it_used(tmp_path: Path) -> None:
    data = write_deep_dataset(tmp_path / "data")
    run("evaluate", "frangi", data, "--prompt", "vessel", "--out", tmp_path / "out", "--num-workers", "0")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["settings"]["window"] == "auto"
    assert any("2 images" in note and "black at 100" in note for note in metrics["notes"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert all(row["window"][0] < row["window"][1] for row in rows)
    run("predict", "frangi", data, "--prompt", "vessel", "--out", tmp_path / "stored", "--window", "0", "5000")
    words = ("evaluate", "--predictions", tmp_path / "stored", data, "--prompt", "vessel", "--num-workers", "0")
    run(*words, "--out", tmp_path / "scores")
    rows = [json.loads(line) for line in (tmp_path / "scores" / "samples.jsonl").read_text().splitlines()]
    assert [row["window"] for row in rows] == [[0, 5000], [0, 5000]]


@pytest.mark.slow
def test_a_threshold_tuned_under_another_window_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = bundle_with_window(tmp_path / "bundle", "auto")
    data = write_deep_dataset(tmp_path / "data", 1)
    words = ("tune", model, data, "--prompt", "blood vessel", "--window", "0", "5000", "--json", "--out")
    run(*words, tmp_path / "tuned")
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["window"] == [0, 5000]
    assert "differs from that of training" in printed.err
    assert json.loads((tmp_path / "tuned" / CARD).read_text())["window"] == "auto"
