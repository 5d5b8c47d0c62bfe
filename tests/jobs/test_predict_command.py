"""`vesalius predict` on the command line, with a model that needs no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vesalius.cli.main import main

from ..dicom_files import angiogram
from ..segmenters import draw_squares


def predict(*arguments: str | Path, code: int = 0) -> list[dict[str, Any]]:
    """Run the command with `frangi`; returns the lines of `predictions.jsonl` in the last argument, the folder."""
    words = [str(each) for each in arguments]
    assert main(["predict", "frangi", *words[:-1], "--prompt", "vessel", "--out", words[-1]]) == code
    return [json.loads(line) for line in (Path(words[-1]) / "predictions.jsonl").read_text().splitlines()]


def test_damaged_files_of_a_folder_fail_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    draw_squares(folder, 2)
    for name in ("cut.mp4", "bad.dcm", "volume.nii", "two\nlines.png"):
        (folder / name).write_bytes(b"nothing")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    angiogram(folder / "cine.dcm", 2)
    whole = (folder / "cine.dcm").read_bytes()
    (folder / "half.dcm").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "001.jpg")
    lines = predict(folder, tmp_path / "out", code=1)
    status = {line["id"]: line["status"] for line in lines}
    failed = {"cut", "bad", "half", "volume", "two\nlines", "gone"}
    assert {name for name, found in status.items() if found == "failed"} == failed
    assert status.keys() - failed == {"000", "001.png", "001.jpg", "cine__0000", "cine__0001"}
    assert all((tmp_path / "out" / line["mask"]).is_file() for line in lines if line["status"] != "failed")
    assert capsys.readouterr().err.count("failed: ") == len(failed)


def test_the_end_of_a_job_says_where_results_are_and_a_repetition_that_it_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_squares(tmp_path / "in", 2)
    predict(tmp_path / "in", tmp_path / "out")
    first = capsys.readouterr().out
    assert str(tmp_path / "out" / "overlays") in first and "evaluate --predictions" in first
    predict(tmp_path / "in", tmp_path / "out")
    assert "already done" in capsys.readouterr().out
    predict(tmp_path / "in", "--threshold", "0.4", tmp_path / "out", code=1)
    assert "--overwrite" in capsys.readouterr().err
    predict(tmp_path / "in", "--threshold", "0.4", "--overwrite", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["threshold"] == 0.4


def test_scoring_is_suggested_only_for_outputs_that_can_be_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_squares(tmp_path / "in", 1)
    for save in ("table", "labelmap"):
        predict(tmp_path / "in", "--save", save, tmp_path / save)
        assert "evaluate --predictions" not in capsys.readouterr().out
    for save in ("masks", "probs", "table,rle"):
        predict(tmp_path / "in", "--save", save, tmp_path / save)
        assert "evaluate --predictions" in capsys.readouterr().out


def test_a_job_that_segments_nothing_says_so_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((64, 64), 90, np.uint8)).save(tmp_path / "in" / "flat.png")
    predict(tmp_path / "in", "--threshold", "0.99", tmp_path / "out")
    assert "nothing was segmented: 0 of 1" in capsys.readouterr().out.splitlines()[-1]
