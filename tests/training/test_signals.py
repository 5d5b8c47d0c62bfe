"""Robust runs: kills at many moments, signals, full disks, damaged checkpoints, two jobs in one folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.codes import raises_code
from tests.training.run_files import lines, small_and_quick

from vesalius.cli import main
from vesalius.config import make_settings
from vesalius.errors import InterruptionError, OutputError, TrainingError
from vesalius.files import hold_folder
from vesalius.lineage import fingerprint_weights
from vesalius.synth import write_dataset
from vesalius.training import loop, validation
from vesalius.training.learner import TextSegLearner
from vesalius.training.run import resume, train
from vesalius.training.settings import RunSettings

EVERY_STEP = 1e-9
RECIPE: dict[str, Any] = {
    "model": "tiny",
    "init": "random",
    "trainable": "decoder",
    "steps": 6,
    "batch_size": 1,
    "num_workers": 2,
    "optim": {"lr": 1e-3, "warmup_ratio": 0.2, "gradient_accumulation_steps": 2},
    "augment": {"flip": 0.5, "gamma": 0.2},
    "validate": {"every_epochs": 1, "limit": 1, "figures": 0},
    "trackers": [],
}
"""Recipe for five samples: an epoch has two steps of two batches and one step of one batch."""

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder, 5, seed=7, size=64)
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of the small model."""
    with small_and_quick():
        return train(settings(data, tmp_path_factory.mktemp("whole") / "run"))


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy of the uninterrupted run."""
    return Path(shutil.copytree(whole, tmp_path / "run", symlinks=True))


@pytest.fixture(scope="module")
def whole_tiny(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of the shipped `tiny`, to compare with runs from the command line."""
    return train(settings(data, tmp_path_factory.mktemp("tiny") / "run"))


def settings(data: Path, out: Path, **changes: Any) -> RunSettings:
    values = {**RECIPE, "data": {"train": data, "val": data}, "out": out, **changes}
    return make_settings(RunSettings, values, "test")


def assert_same(run: Path, whole: Path) -> None:
    """Assert bit-identical losses, gradients, scores and weights, and no leftover partial files."""
    for name, ignored in (("log.jsonl", {"images_per_s", "peak_bytes"}), ("validation.jsonl", set())):
        kept = [
            [{key: line[key] for key in line.keys() - ignored} for line in lines(each, name)] for each in (run, whole)
        ]
        assert kept[0] == kept[1]
    for name in ("last", "best"):
        assert (run / name).readlink() == (whole / name).readlink()
        assert fingerprint_weights(run / name) == fingerprint_weights(whole / name)
    assert not [path for folder in (run, run / "checkpoints") for path in folder.glob(".*")]


KILLED = """
import os, signal, sys
from vesalius.training import {module}
whole, calls = {module}.{name}, 0
def kill(*args, **kwargs):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args, **kwargs)
{module}.{name} = kill
from vesalius.cli import main
sys.exit(main(sys.argv[1:]))
"""


def kill_at(module: str, name: str, call: int, command: list[str]) -> None:
    """Run a command that kills itself with SIGKILL when the function is called for the `call`-th time."""
    code = KILLED.format(module=module, name=name, call=call)
    done = subprocess.run(
        [sys.executable, "-c", code, *command], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def write_recipe(data: Path, path: Path, out: Path, **changes: Any) -> Path:
    path.write_text(settings(data, out, **changes).to_yaml())
    return path


@pytest.mark.slow
def test_a_run_killed_in_a_step_a_save_and_a_validation_ends_bit_identical(
    data: Path, whole_tiny: Path, tmp_path: Path
) -> None:
    """One run is killed at three different points and resumed after each kill."""
    run = tmp_path / "run"
    recipe = write_recipe(data, tmp_path / "recipe.yaml", run, save_every_minutes=EVERY_STEP)
    kill_at("loop", "backward", 4, ["train", str(recipe)])  # second batch of the second step
    assert (run / "last").readlink().name == "step-000001"
    assert len(lines(run)) == 1
    # in the second save (the first has two calls): all files are written, but not yet renamed
    kill_at("run_folder", "_sync_to_disk", 3, ["train", "--resume", str(run)])
    assert (run / "last").readlink().name == "step-000002"
    assert list((run / "checkpoints").glob(".step-000003.*.partial"))
    # the validation after the last step of the first epoch
    kill_at("validation", "score_samples", 1, ["train", "--resume", str(run)])
    assert (run / "last").readlink().name == "step-000003"
    assert main(["train", "--resume", str(run)]) == 0
    assert_same(run, whole_tiny)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_bit_identical(data: Path, whole_tiny: Path, tmp_path: Path) -> None:
    """The process is killed from outside after arbitrary delays."""
    run = tmp_path / "run"
    recipe = write_recipe(data, tmp_path / "recipe.yaml", run, save_every_minutes=EVERY_STEP)
    killed = 0
    for pause in (0.05, 0.4, 0.1, 0.7, 0.25, 1.1, 0.0, 0.55):
        arguments = ["--resume", str(run)] if (run / "last").exists() else [str(recipe)]
        command = [sys.executable, "-m", "vesalius", "train", *arguments]
        before = len(lines(run)) if (run / "log.jsonl").exists() else 0
        with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL) as job:
            while job.poll() is None:
                grown = (run / "log.jsonl").exists() and len(lines(run)) != before
                if grown and (run / "last").exists():
                    time.sleep(pause)
                    job.kill()
                    break
                time.sleep(0.005)
            killed += job.wait() == -signal.SIGKILL
    assert killed >= 3
    assert main(["train", "--resume", str(run)]) == 0
    assert_same(run, whole_tiny)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_the_step_saves_it_and_the_resumed_run_is_bit_identical(
    data: Path, whole: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resumed run saves after every step, also within an epoch, with bit-identical results."""
    run = tmp_path / "run"
    backward, calls = loop.backward, 0

    def interrupted(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:  # the first of two batches of the second step
            os.kill(os.getpid(), number)
        return backward(*args, **more)

    before = signal.getsignal(number)
    monkeypatch.setattr(loop, "backward", interrupted)
    with raises_code(InterruptionError, "interrupted", number.name, "after step 2", str(run)) as caught:
        train(settings(data, run))
    assert caught.value.exit_code == 128 + number  # type: ignore[attr-defined]
    assert signal.getsignal(number) is before
    assert (run / "last").readlink().name == "step-000002"
    assert_same(resume(settings(data, run, save_every_minutes=EVERY_STEP)), whole)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_signal_during_validation_ends_the_run_at_once(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(validation, "score_samples", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with raises_code(InterruptionError, "interrupted", "after step 3"):
            train(settings(data, run))
    assert not (run / "validation.jsonl").exists()
    assert_same(resume(settings(data, run)), whole)


@pytest.mark.usefixtures("small")
def test_a_second_signal_ends_the_run_without_waiting_for_the_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward = loop.backward

    def interrupted(*args: Any, **more: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return backward(*args, **more)

    monkeypatch.setattr(loop, "backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(settings(data, tmp_path / "run"))
    assert not (tmp_path / "run" / "last").exists()


@pytest.mark.slow
def test_an_interrupted_command_exits_with_the_number_of_the_signal(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(data, tmp_path / "recipe.yaml", tmp_path / "run")
    backward = loop.backward
    before = signal.getsignal(signal.SIGTERM)

    def interrupted(*args: Any, **more: Any) -> Any:
        if not (tmp_path / "sent").exists():
            (tmp_path / "sent").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return backward(*args, **more)

    monkeypatch.setattr(loop, "backward", interrupted)
    try:
        assert main(["train", str(recipe)]) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "vesalius: " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_dropout_depends_only_on_seed_and_step(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers of a step do not depend on earlier draws or on resumption."""
    seen: list[float] = []
    backward = loop.backward

    def drawing(*args: Any, **more: Any) -> Any:
        seen.append(torch.rand(()).item())
        return backward(*args, **more)

    monkeypatch.setattr(loop, "backward", drawing)
    train(settings(data, tmp_path / "one", steps=3))
    first, seen = seen, []
    train(settings(data, tmp_path / "two", steps=2))
    torch.rand(100)
    resume(settings(data, tmp_path / "two", steps=3))
    assert seen == first
    assert len(set(seen)) == len(seen)


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[None]:
    """Mount a tmpfs at `path`; the test is skipped if mounting fails."""
    path.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("only root can make a full disk: mount -t tmpfs failed")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.usefixtures("small")
def test_a_full_disk_keeps_the_last_checkpoint_and_more_room_lets_the_run_end(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    disk, run = tmp_path / "disk", tmp_path / "disk" / "run"
    size = sum(path.stat().st_size for path in (whole / "last").rglob("*") if path.is_file())
    with small_disk(disk, int(1.4 * size / 2**20) + 1):  # checkpoints share the files of frozen components
        with pytest.raises(OutputError, match=r"step-000002.*cannot be written"):
            train(settings(data, run, save_every_minutes=EVERY_STEP))
        assert (run / "last").readlink().name == "step-000001"
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000001"]
        subprocess.run(["mount", "-o", f"remount,size={size * 5}", str(disk)], check=True)
        assert_same(resume(settings(data, run)), whole)


@pytest.mark.usefixtures("small")
def test_a_loss_that_is_not_finite_leaves_the_weights_alone_and_lists_the_images(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    compute, calls = TextSegLearner.losses, 0

    def spoiled(self: TextSegLearner, module: torch.nn.Module, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        losses = compute(self, module, batch)
        return {**losses, "total": losses["total"] * float("nan")} if calls == 3 else losses

    monkeypatch.setattr(TextSegLearner, "losses", spoiled)
    with raises_code(TrainingError, "not_finite_loss", "nan at step 2", "synth_0000"):
        train(settings(data, run, save_every_minutes=EVERY_STEP))
    failure = json.loads((run / "failure.json").read_text())
    assert failure["step"] == 2 and failure["grad_norm"] == "nan"
    first, second = failure["batches"]
    assert first["losses"]["total"] == "nan" and float(second["losses"]["total"]) > 0
    assert first["ids"] != second["ids"]
    assert (run / "last").readlink().name == "step-000001"


@pytest.mark.usefixtures("small")
def test_a_second_job_and_changed_settings_are_refused_and_possible_changes_noted(data: Path, finished: Path) -> None:
    with ExitStack() as held:
        hold_folder(finished, "training run", held)
        with raises_code(OutputError, "folder_in_use"):
            resume(settings(data, finished, steps=7))
    optim = {"lr": 2e-3, "warmup_ratio": 0.2, "gradient_accumulation_steps": 1}
    named = "optim.lr (it was 0.001), optim.gradient_accumulation_steps (it was 2), seed (it was 0)"
    with raises_code(TrainingError, "changed_setting", named):
        resume(settings(data, finished, optim=optim, seed=3))
    with raises_code(TrainingError, "changed_setting", "had 1 images", "have 2"):
        resume(settings(data, finished, steps=7, batch_size=2))
    notes: list[str] = []
    resume(settings(data, finished, steps=7, num_workers=0), on_note=notes.append)
    changes = [note for note in notes if note.startswith("changed: ")]
    assert changes == ["changed: steps: 7; it was 6", "changed: num_workers: 0; it was 2"]
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert (config["steps"], config["num_workers"]) == (7, 0)
    assert [line["step"] for line in lines(finished)] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.usefixtures("small")
def test_a_damaged_checkpoint_is_named_with_the_command_that_selects_the_best(data: Path, finished: Path) -> None:
    best = finished / "checkpoints" / "step-000003"
    shutil.rmtree(best, ignore_errors=True)
    shutil.copytree(finished / "last", best)
    (finished / "best").unlink()
    (finished / "best").symlink_to("checkpoints/step-000003")
    fallback = f"point `last` to it: ln -sfn checkpoints/step-000003 {finished}/last"
    state = finished / "last" / "optimizer.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with raises_code(TrainingError, "damaged_checkpoint", "optimizer.safetensors", fallback):
        resume(settings(data, finished, steps=7))
    (finished / "last" / "sam" / "model.safetensors").unlink()
    with pytest.raises(TrainingError, match=rf"/sam: cannot be opened .*{fallback}") as caught:
        resume(settings(data, finished, steps=7))
    subprocess.run(str(caught.value).partition("to it: ")[2].split(), check=True)
    resume(settings(data, finished, steps=7))
    assert lines(finished)[-1]["step"] == 7
