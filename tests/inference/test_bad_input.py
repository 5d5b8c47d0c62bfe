"""Bad images, bad requests and a full disk on the command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.codes import raises_code

from vesalius.cleaning import Cleaning
from vesalius.cli import main
from vesalius.data.image_files import find_images
from vesalius.errors import OutputError
from vesalius.jobs.folder import write_predictions
from vesalius.masks import decode_rle

from ..deep_files import write_png16
from ..segmenters import Bright, draw_squares

ANSWERED = {
    "cmyk": (30, 40),
    "deep": (30, 40),
    "deep_color": (30, 40),
    "long": (50, 20_000),
    "one": (1, 1),
    "tall": (300, 2),
}
REFUSED = {
    "animated": "has 2 frames; save each as an image of its own",
    "endless": "1 of 1200 values are NaN or infinite",
    "empty": "is empty (0 bytes)",
    "text": "cannot identify image file",
    "truncated": "cannot be decoded",
}


def draw_bad_images(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)

    def noise(*shape: int, dtype: Any = np.uint8) -> Image.Image:
        return Image.fromarray(rng.integers(0, 255, shape).astype(dtype))

    noise(1, 1, 3).save(folder / "one.png")
    noise(50, 20_000).save(folder / "long.png")
    noise(300, 2, 3).save(folder / "tall.png")
    noise(30, 40, 3).convert("CMYK").save(folder / "cmyk.jpg")
    noise(30, 40, dtype=np.uint16).save(folder / "deep.png")
    noise(30, 40, 3).save(folder / "animated.png", save_all=True, append_images=[noise(30, 40, 3)])
    noise(90, 90, 3).save(folder / "truncated.png")
    (folder / "truncated.png").write_bytes((folder / "truncated.png").read_bytes()[:5000])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("I am an image")
    write_png16(folder / "deep_color.png", rng.integers(0, 65536, (30, 40, 3), dtype=np.uint16))
    endless = rng.random((30, 40), dtype=np.float32)
    endless[7, 9] = np.inf
    Image.fromarray(endless).save(folder / "endless.tif")


def test_each_bad_image_fails_with_its_own_reason_and_the_others_are_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_bad_images(tmp_path / "in")
    out = tmp_path / "out"
    command = ["predict", "tiny", str(tmp_path / "in"), "--prompt", "blood vessel", "--out", str(out), "--json"]
    assert main(command) == 1
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    lines = {line["id"]: line for line in map(json.loads, (out / "predictions.jsonl").read_text().splitlines())}
    assert list(lines) == sorted(ANSWERED | REFUSED)
    for name, size in ANSWERED.items():
        line = lines[name]
        assert line["status"] in ("ok", "no_seg") and line["answered"] in ("verified", "generated"), line
        assert decode_rle(line["rle"]).shape == size
        with Image.open(out / line["mask"]) as mask:
            assert mask.size == size[::-1]
    for name, reason in REFUSED.items():
        assert lines[name]["status"] == "failed" and reason in lines[name]["error"], lines[name]
        assert "rle" not in lines[name] and not (out / "masks" / f"{name}.png").exists()
        assert f"failed: {tmp_path / 'in' / name}." in printed.err
    assert result["coverage"]["failed"] == result["failed"] == len(REFUSED)
    assert sum(result["answers"].values()) == len(ANSWERED)


def test_tiles_and_cleaning_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["synth", str(tmp_path / "data"), "--n", "1", "--size", "300", "--seed", "9"])
    asked = ["--prompt", "blood vessel", "--json", "--tiles", "280", "200"]
    mended = [*asked, "--fill-holes", "40", "--drop-specks", "60"]
    predict = ["predict", "tiny", str(tmp_path / "data" / "images"), "--save", "rle,probs"]
    for name, more in (("plain", asked), ("mended", mended)):
        assert main([*predict, *more, "--out", str(tmp_path / name)]) == 0
    run = json.loads((tmp_path / "mended" / "run.json").read_text())
    assert run["settings"]["tiles"] == {"sides": [280, 200], "overlap": 0.25}
    assert run["settings"]["cleaning"] == {"fill_holes": 40, "drop_specks": 60}
    plain, clean = (
        decode_rle(json.loads((tmp_path / name / "predictions.jsonl").read_text())["rle"])
        for name in ("plain", "mended")
    )
    np.testing.assert_array_equal(clean, Cleaning(fill_holes=40, drop_specks=60)(plain))
    assert (plain != clean).any(), "the test needs something to clean"

    assert main(["evaluate", "tiny", str(tmp_path / "data"), *mended, "--out", str(tmp_path / "score")]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert metrics["settings"]["tiles"] == run["settings"]["tiles"]
    assert metrics["settings"]["cleaning"] == run["settings"]["cleaning"]
    rows = [json.loads(line) for line in (tmp_path / "score" / "samples.jsonl").read_text().splitlines()]
    assert metrics["answers"] == {"verified": len(rows)}
    assert {row["prediction_pixels"] for row in rows} == {clean.sum()}, "all phrases are mapped to one, with one mask"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompt", "vessel " * 10_000], "(10000 words), more than 2000"),
        (["--prompt", "x", "--tiles", "3"], "--tiles: sides.0: expected a whole number of at least 32; got 3"),
        (["--prompt", "x", "--drop-specks", "-1"], "drop_specks: expected a whole number of at least 0; got -1"),
    ],
)
def test_request_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    draw_squares(tmp_path / "in", 1)
    command = ["predict", "tiny", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *arguments]
    assert main(command) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[None]:
    """A small disk mounted at `place`; the test is skipped if mounting fails."""
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("only root can make a full disk: mount -t tmpfs failed")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("save", [("rle",), ("masks", "probs")], ids="-".join)
def test_full_disk_stops_the_job_and_freed_space_lets_it_continue(tmp_path: Path, save: tuple[str, ...]) -> None:
    masks = draw_squares(tmp_path / "in", 150)
    images, disk = find_images([tmp_path / "in"]), tmp_path / "disk"
    with small_disk(disk, 48):
        with raises_code(OutputError, "write_failed", "No space left on device"):
            write_predictions(Bright(), images, ["vessel"], disk / "out", save=save)
        assert not (disk / "out" / "predictions.jsonl").exists()
        subprocess.run(["mount", "-o", "remount,size=9M", str(disk)], check=True)
        segmenter = Bright()
        summary = write_predictions(segmenter, images, ["vessel"], disk / "out", save=save)
        assert summary["coverage"]["ok"] == 150 and len(segmenter.seen) < 150
        lines = [json.loads(line) for line in (disk / "out" / "predictions.jsonl").read_text().splitlines()]
        assert [line["id"] for line in lines] == [f"{i:03d}" for i in range(150)]
        for line, expected in zip(lines, masks, strict=True):
            if "rle" in save:
                np.testing.assert_array_equal(decode_rle(line["rle"]), expected)
            else:
                with Image.open(disk / "out" / line["mask"]) as mask:
                    np.testing.assert_array_equal(np.asarray(mask) > 0, expected)
                with np.load(disk / "out" / line["probabilities"]) as stored:
                    np.testing.assert_array_equal(stored["probabilities"][0] > 0.5, expected)
        assert not list(disk.rglob("*.partial"))
