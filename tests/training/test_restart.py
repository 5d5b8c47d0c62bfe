"""A run that was killed before its first checkpoint, begun again by the same command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.codes import raises_code
from tests.training.run_files import MakeSettings, StopAfter, lines, losses

from vesalius.errors import OutputError, TrainingError
from vesalius.files import hold_folder
from vesalius.training.run import resume, train

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture
def killed(plain_settings: MakeSettings, tmp_path: Path) -> Path:
    """The folder of a run that ended after its first step."""
    with pytest.raises(KeyboardInterrupt):
        train(plain_settings(tmp_path / "run"), on_step=StopAfter(0))
    assert not (tmp_path / "run" / "last").exists()
    return tmp_path / "run"


def test_the_same_command_begins_anew(plain_settings: MakeSettings, killed: Path, finished_run: Path) -> None:
    (killed / "mine.txt").write_text("kept")
    partial = killed / "checkpoints" / ".step-000002.77.partial"
    partial.mkdir(parents=True)
    with raises_code(TrainingError, "no_checkpoint", "with the command that began it"):
        resume(plain_settings(killed))
    notes: list[str] = []
    run = train(plain_settings(killed), on_note=notes.append)
    assert f"{killed}: was begun and ended before its first checkpoint; starting it anew" in notes
    assert losses(run) == losses(finished_run)
    assert (run / "mine.txt").read_text() == "kept" and not partial.exists()
    with raises_code(OutputError, "output_exists", f"--resume {run}"):
        train(plain_settings(run))


def test_other_settings_are_refused_by_name(plain_settings: MakeSettings, killed: Path) -> None:
    log = (killed / "log.jsonl").read_bytes()
    with raises_code(TrainingError, "changed_setting", "seed: 5 (it was 0)"):
        train(plain_settings(killed, seed=5))
    with raises_code(TrainingError, "changed_setting", "overfit: 2 (it was None)"):
        train(plain_settings(killed), overfit=2)
    assert (killed / "log.jsonl").read_bytes() == log


def test_a_start_without_a_manifest_begins_anew(plain_settings: MakeSettings, killed: Path) -> None:
    (killed / "manifest.json").unlink()
    assert len(lines(train(plain_settings(killed)))) == 2


def test_a_start_of_another_process_is_refused(plain_settings: MakeSettings, killed: Path) -> None:
    with ExitStack() as held:
        hold_folder(killed, "training run", held)
        with raises_code(OutputError, "folder_in_use"):
            train(plain_settings(killed))


@pytest.mark.slow
def test_a_process_killed_in_its_first_steps_is_begun_anew(
    plain_settings: MakeSettings, small_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    asked = plain_settings(out, model=str(small_bundle), init="pretrained", steps=30)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(asked.to_yaml())
    command = [sys.executable, "-m", "vesalius", "train", str(recipe)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while not (out / "log.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (out / "last").exists()
    refused = subprocess.run([*command, "--set", "steps=2", "--json"], capture_output=True, check=False)
    assert refused.returncode == 1
    assert json.loads(refused.stdout.splitlines()[-1])["error"]["code"] == "changed_setting"
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "starting it anew" in again.stdout
    assert [line["step"] for line in lines(out)] == list(range(1, 31))
