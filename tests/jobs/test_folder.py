"""Interrupted prediction jobs continue: each prediction occurs once, none is missing, and none is from another request."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.codes import raises_code

from vesalius.data.image_files import find_images
from vesalius.errors import OutputError, SettingError
from vesalius.jobs.folder import write_predictions
from vesalius.masks import decode_rle

from ..dicom_files import angiogram, read_masks
from ..segmenters import Bright, draw_squares

PROMPTS = ("vessel", "wire")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    draw_squares(tmp_path / "in", 7)
    return tmp_path / "in"


def write(images: Path, out: Path, segmenter: Bright | None = None, **more: Any) -> dict[str, Any]:
    prompts = more.pop("prompts", PROMPTS)
    return write_predictions(segmenter or Bright(), find_images([images]), prompts, out, **more)


def interrupted(images: Path, out: Path, at: str = "004", **more: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(images, out, Bright(stop_at=at), **more)
    assert not (out / "predictions.jsonl").exists()


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def assert_complete(out: Path, masks: list[np.ndarray], prompts: tuple[str, ...] = PROMPTS) -> None:
    lines = lines_of(out)
    expected = [(f"{i:03d}", prompt) for i in range(len(masks)) for prompt in prompts]
    assert [(line["id"], line["prompt"]) for line in lines] == expected
    for line in lines:
        mask = masks[int(line["id"])]
        np.testing.assert_array_equal(decode_rle(line["rle"]), mask)
        with Image.open(out / line["mask"]) as written:
            np.testing.assert_array_equal(np.asarray(written) > 0, mask)
    folders = {"masks", "overlays", *(["combined_overlays"] if len(prompts) > 1 else [])}
    assert {path.name for path in out.iterdir()} == {*folders, "predictions.jsonl", "run.json"}
    assert len(list((out / "masks").iterdir())) == len(lines)
    assert json.loads((out / "run.json").read_text())["coverage"]["ok"] == len(lines)


def test_answers_are_counted_by_how_they_were_made(images: Path, tmp_path: Path) -> None:
    (images / "bad.png").write_bytes(b"no image")
    summary = write(images, tmp_path / "out")
    assert summary["answers"] == {"verified": 14}
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["answers"] == {"verified": 14} and run["batch_halved"] == 0
    assert [line["answered"] for line in lines_of(tmp_path / "out")] == ["verified"] * 14 + ["", ""]


def test_interrupted_job_continues_with_the_missing_images(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted(images, out)
    first = {path.name: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    segmenter = Bright()
    summary = write(images, out, segmenter)
    assert summary["coverage"] == {"ok": 14, "no_seg": 0, "failed": 0}
    assert summary["answers"] == {"verified": 14}
    assert "000" not in segmenter.seen and segmenter.seen[-3:] == ["004", "005", "006"]
    done = 7 - len(segmenter.seen)
    assert done >= 1
    kept = sorted(first)[: 2 * done]
    assert {name: (out / "masks" / name).stat().st_mtime_ns for name in kept} == {name: first[name] for name in kept}
    assert_complete(out, masks_of(images))


def test_half_written_label_volumes_are_removed(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted(images, out)
    (out / "volumes").mkdir()
    half = out / "volumes" / ".a.nii.gz.1.partial"
    half.write_bytes(b"half")
    write(images, out)
    assert not half.exists()


def masks_of(images: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) > 100 for path in sorted(images.iterdir())]


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines.write_bytes(lines.read_bytes()[:-9]),
        lambda lines: lines.write_bytes(lines.read_bytes() + b"\0" * 300),
        lambda lines: lines.write_bytes(lines.read_bytes() + b'{"id": "00'),
        lambda lines: lines.write_bytes(b""),
        lambda lines: lines.unlink(),
        lambda lines: (lines.parent / "masks" / "000--wire.png").unlink(),
        lambda lines: (lines.parent / "masks" / "001--wire.png").write_bytes(b""),
        lambda lines: (lines.parent / "masks" / ".006.png.1.partial").write_bytes(b"half"),
        lambda lines: (lines.parent / ".run.json.1.partial").write_bytes(b"half"),
        lambda lines: (lines.parent / "run.json").write_bytes(b"{}"),
        lambda lines: lines.rename(lines.parent / "predictions.jsonl"),
    ],
)
def test_half_written_files_are_written_again(images: Path, tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    out = tmp_path / "out"
    interrupted(images, out)
    damage(out / ".predictions.unfinished")
    write(images, out)
    assert_complete(out, masks_of(images))


def test_job_with_a_changed_image_is_refused(images: Path, tmp_path: Path) -> None:
    (images / "001.png").write_bytes(b"no image")
    interrupted(images, tmp_path / "out", at="005")
    (images / "006.png").touch()
    summary = write(images, tmp_path / "other")
    assert [line.partition(":")[0] for line in summary["failures"]] == [str(images / "001.png")] * 2
    with raises_code(OutputError, "different_request", "(images)"):
        write(images, tmp_path / "out")  # 006.png has changed


def test_failures_of_the_first_part_are_in_the_summary_of_the_second(images: Path, tmp_path: Path) -> None:
    (images / "001.png").write_bytes(b"no image")
    interrupted(images, tmp_path / "out", at="006")
    segmenter = Bright()
    summary = write(images, tmp_path / "out", segmenter)
    assert "001" not in segmenter.seen and len(segmenter.seen) < 6
    assert summary["coverage"] == {"ok": 12, "no_seg": 0, "failed": 2}
    assert len(summary["failures"]) == 2 and "001.png" in summary["failures"][0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompts": ("vessel",)}, "prompts"),
        ({"save": ["masks"]}, "save"),
        ({"segmenter": Bright(fingerprint="e" * 64)}, "model"),
    ],
)
def test_unfinished_job_of_another_request_is_refused(
    images: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    out = tmp_path / "out"
    interrupted(images, out)
    before = (out / ".predictions.unfinished").read_bytes()
    with raises_code(OutputError, "different_request", f"({named})"):
        write(images, out, **change)
    other = Bright()
    other.threshold = 0.4
    with raises_code(OutputError, "different_request", "(threshold)"):
        write(images, out, other)
    elsewhere = Bright()
    elsewhere.settings = {**elsewhere.settings, "device": "cuda:3"}
    assert (out / ".predictions.unfinished").read_bytes() == before
    write(images, out, elsewhere)
    assert_complete(out, masks_of(images))


def test_finished_job_is_not_repeated(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = write(images, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    (out / "notes.txt").write_text("mine")
    segmenter = Bright()
    again = write(images, out, segmenter)
    assert again["already_done"] and not first["already_done"] and not segmenter.seen
    assert {**again, "already_done": False} == first
    assert {path: path.stat().st_mtime_ns for path in before if path != out} == {
        path: time_ns for path, time_ns in before.items() if path != out
    }
    (out / "masks" / "003--wire.png").unlink()
    write(images, out, segmenter)
    assert segmenter.seen[0] == "003"
    (out / "notes.txt").unlink()
    assert_complete(out, masks_of(images))


def test_finished_job_of_another_request_is_refused_or_replaced(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(images, out)
    with raises_code(OutputError, "different_request", "(prompts)"):
        write(images, out, prompts=["vessel"])
    interrupted_again = Bright(stop_at="004")
    with pytest.raises(KeyboardInterrupt):
        write(images, out, interrupted_again, prompts=["vessel"], overwrite=True)
    assert_complete(out, masks_of(images))  # nothing is lost
    segmenter = Bright()
    write(images, out, segmenter, prompts=["vessel"], overwrite=True)
    assert "000" not in segmenter.seen, "the interrupted job continues"
    assert_complete(out, masks_of(images), ("vessel",))
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_other_job_beside_the_folder_is_started_again(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(images, out)
    with pytest.raises(KeyboardInterrupt):
        write(images, out, Bright(stop_at="004"), prompts=["vessel"], overwrite=True)
    write(images, out, prompts=["wire"], overwrite=True)
    assert_complete(out, masks_of(images), ("wire",))


def test_folder_with_other_files_is_never_overwritten(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(images, out)
    (out / "notes.txt").write_text("mine")
    with raises_code(OutputError, "not_replaceable", "notes.txt"):
        write(images, out, overwrite=True)
    with raises_code(OutputError, "not_replaceable"):
        write(images, images, overwrite=True)
    (out / "notes.txt").unlink()
    with raises_code(SettingError, "output_inside_data"):
        write(out / "masks", out, overwrite=True)
    assert_complete(out, masks_of(images))


def test_two_jobs_in_one_folder_are_refused(images: Path, tmp_path: Path) -> None:
    def again(done: int) -> None:
        with raises_code(OutputError, "folder_in_use"):
            write(images, tmp_path / "out")

    write(images, tmp_path / "out", on_progress=again)
    assert_complete(tmp_path / "out", masks_of(images))


def test_half_done_cine_is_predicted_again_for_its_dicom_segmentation(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, uid in (("a", "1.2.7"), ("b", "1.2.8")):
        angiogram(tmp_path / "in" / f"{name}.dcm", 4, SOPInstanceUID=uid)
    out = tmp_path / "out"
    interrupted(tmp_path / "in", out, at="b__0003", save=["dicom"])
    segmenter = Bright()
    write(tmp_path / "in", out, segmenter, save=["dicom"])
    assert segmenter.seen == [f"b__{frame:04d}" for frame in range(4)]
    assert sorted(path.name for path in (out / "dicom").iterdir()) == ["a.dcm", "b.dcm"]
    assert read_masks(out / "dicom" / "b.dcm", "1.2.8")["vessel"].keys() == {0, 1, 2, 3}
    assert len(lines_of(out)) == 16 and all("rle" not in line for line in lines_of(out))


@pytest.mark.parametrize(
    ("prompts", "save", "code", "number"),
    [
        ([""], [], "bad_value", "empty"),
        ([" \n"], [], "bad_value", "empty"),
        (["vessel " * 10_000], [], "bad_value", "10000 words"),
        (["vessel", "vessel"], [], "duplicate_prompt", "vessel"),
        (["vessel"], ["films"], "bad_value", "video"),
    ],
)
def test_request_is_refused_before_anything_is_read(
    tmp_path: Path, prompts: list[str], save: list[str], code: str, number: str
) -> None:
    with raises_code(SettingError, code, number):
        write_predictions(Bright(), [], prompts, tmp_path / "out", save=save)
    assert not (tmp_path / "out").exists()


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from segmenters import Bright
from vesalius.data.image_files import find_images
from vesalius.jobs.folder import write_predictions
def go_on(done):
    print(done, flush=True)
    sys.stdin.readline()  # so far and no further, however slow the test is

write_predictions(
    Bright(pause_s=0.004), find_images([Path(sys.argv[2])]), ["vessel", "wire"], Path(sys.argv[3]),
    on_progress=go_on,
)
"""


def test_job_killed_at_random_moments_ends_complete(tmp_path: Path) -> None:
    masks = draw_squares(tmp_path / "in", 60)
    out = tmp_path / "out"
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[1]), str(tmp_path / "in"), str(out)]
    rng = random.Random(6)
    reached = [0]
    for _ in range(4):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with subprocess.Popen(command, text=True, **pipes) as job:
            assert job.stdin is not None and job.stdout is not None
            job.stdin.write("\n" * 11)
            job.stdin.flush()
            begun = int(job.stdout.readline())
            time.sleep(rng.uniform(0, 0.04))
            job.send_signal(signal.SIGKILL)
            reported = [begun, *map(int, job.stdout.read().split())]
        assert job.returncode == -signal.SIGKILL
        assert begun in (reached[-1] + 1, reached[-1] + 2), "done images are not predicted again"
        reached.append(reported[-1])
    assert 4 <= reached[-1] <= 48
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    reported = re.search(r"continues after (\d+) of 60 images", done.stderr)
    assert reported and int(reported[1]) in (reached[-1], reached[-1] + 1), done.stderr
    assert_complete(out, masks)
