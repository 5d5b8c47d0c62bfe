"""Prediction with several processes: the same files as with one process, and one error if a process is killed."""

from __future__ import annotations

import json
import logging
import os
import signal
from functools import partial
from pathlib import Path

import pytest
from tests.codes import raises_code

from vesalius.cli import main
from vesalius.data.image_files import find_images
from vesalius.errors import SettingError, VesaliusError
from vesalius.jobs import processes as module
from vesalius.jobs.folder import write_predictions
from vesalius.jobs.processes import Processes, predictor_processes

from ..segmenters import Bright, draw_squares, fail_to_open, open_bright, open_cached


def assert_same(one: Path, two: Path) -> None:
    first, second = (sorted(path for path in out.rglob("*") if path.is_file()) for out in (one, two))
    assert [path.relative_to(one) for path in first] == [path.relative_to(two) for path in second]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_two_processes_write_the_same_files_as_one(tmp_path: Path) -> None:
    draw_squares(tmp_path / "in", 9)
    command = ["predict", "tiny", str(tmp_path / "in"), "--prompt", "vessel", "--batch-size", "1", "--save", "rle"]
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    assert main([*command, "--out", str(tmp_path / "two"), "--devices", "cpu,cpu"]) == 0
    assert_same(tmp_path / "one", tmp_path / "two")


def test_killed_process_stops_the_job_and_the_same_command_continues_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "BATCHES", 1)
    draw_squares(tmp_path / "in", 30)
    (tmp_path / "in" / "005.png").write_bytes(b"no image")
    write = partial(write_predictions, samples=find_images([tmp_path / "in"]), prompts=["vessel", "wire"])
    write(Bright(), out=tmp_path / "one")

    with Processes(open_bright, ["cpu", "cpu"]) as processes:
        children = [process.pid for process in processes.processes]
        assert len({*children, os.getpid()}) == 3

        def kill(done: int) -> None:
            if done == 7:
                os.kill(children[0], signal.SIGKILL)

        with raises_code(VesaliusError, "process_killed", "on cpu"):
            write(processes, out=tmp_path / "two", worker=processes.predict_and_write, on_progress=kill)
    assert not (tmp_path / "two" / "predictions.jsonl").exists()

    with caplog.at_level(logging.WARNING), Processes(open_bright, ["cpu", "cpu"]) as processes:
        summary = write(processes, out=tmp_path / "two", worker=processes.predict_and_write)
    assert "two: continues after" in caplog.text
    assert summary["coverage"] == {"ok": 58, "no_seg": 0, "failed": 2}
    assert "005.png" in summary["failures"][0]
    assert_same(tmp_path / "one", tmp_path / "two")
    assert json.loads((tmp_path / "two" / "run.json").read_text())["answers"] == {"verified": 58}


def test_missing_device_is_refused() -> None:
    missing = raises_code(SettingError, "no_device", "cuda:7")
    with missing, predictor_processes("tiny", ["cuda:7"], {}) as processes:
        _ = processes.description
    with raises_code(SettingError, "bad_value"):
        predictor_processes("tiny", ["cpu", ""], {})


def test_gpus_on_the_command_line_spread_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_squares(tmp_path / "in", 1)
    command = ["predict", "tiny", str(tmp_path / "in"), "--prompt", "x", "--out", str(tmp_path / "out")]
    assert main([*command, "--gpus", "2x24GiB"]) == 1
    assert "GPU 0" in capsys.readouterr().err
    assert main([*command, "--gpus", "2x24GiB", "--devices", "cpu,cpu"]) == 2
    assert not (tmp_path / "out").exists()


def test_processes_refuse_prompts_and_count_their_caches_together(tmp_path: Path) -> None:
    draw_squares(tmp_path / "in", 3)
    images = find_images([tmp_path / "in"])
    with Processes(open_cached, ["cpu", "cpu"]) as processes:
        write = partial(write_predictions, processes, images, worker=processes.predict_and_write)
        with raises_code(SettingError, "unknown_phrase", "liver"):
            write(["vessel", "liver"], tmp_path / "out")
        assert not (tmp_path / "out").exists()
        summary = write(["vessel"], tmp_path / "out")
    assert summary["cache"] == {"read": 0, "encoded": 3, "damaged": 0, "not_kept": 0}


def test_error_that_cannot_be_pickled_keeps_its_message() -> None:
    with Processes(fail_to_open, ["cpu"]) as processes, pytest.raises(RuntimeError, match="LocalError: a reason"):
        _ = processes.description
