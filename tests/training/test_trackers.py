"""Experiment trackers: TensorBoard files, failures and missing trackers."""

from pathlib import Path

import pytest
from PIL import Image
from tests.codes import raises_code

from vesalius.errors import InterruptionError, MissingExtraError, SettingError
from vesalius.training import trackers
from vesalius.training.trackers import Trackers, open_trackers

pytest.importorskip("tensorboard")


def read_back(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "trackers" / "tensorboard")).Reload()
    tags = events.Tags()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    return found | {tag: [(e.step, e.width) for e in events.Images(tag)] for tag in tags["images"]}


def test_tensorboard_is_written_by_default_and_reads_back(tmp_path: Path) -> None:
    opened = open_trackers(None, tmp_path, {"optim": {"lr": 1e-4}})
    opened.log_step({"step": 1, "loss": 0.5, "lr": 1e-4})
    opened.log_step({"step": 2, "loss": 0.25, "lr": 1e-4})
    opened.log_validation({"step": 2, "dice": 0.75, "hd95_mm": None, "fingerprint": "ab"})
    opened.log_figures(Image.new("RGB", (64, 32)), step=2)
    opened.close()
    found = read_back(tmp_path)
    assert found["train/loss"] == [(1, 0.5), (2, 0.25)]
    assert found["validation/dice"] == [(2, 0.75)]
    assert found["validation"] == [(2, 64)]
    assert not any("fingerprint" in name or "hd95" in name for name in found)


def test_a_resumed_run_hides_values_after_its_checkpoint(tmp_path: Path) -> None:
    first = open_trackers(None, tmp_path, {})
    for step in (1, 2, 3):
        first.log_step({"step": step, "loss": float(step)})
    first.close()
    resumed = open_trackers(None, tmp_path, {}, step=2)
    resumed.log_step({"step": 3, "loss": 9.0})
    resumed.close()
    assert read_back(tmp_path)["train/loss"] == [(1, 1.0), (2, 2.0), (3, 9.0)]


def test_missing_tensorboard_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_installed", lambda name: False)
    notes: list[str] = []
    opened = open_trackers(None, tmp_path, {}, on_note=notes.append)
    assert 'pip install "vesalius[tensorboard]"' in notes[0]
    opened.log_step({"step": 1, "loss": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_trackers_that_are_unknown_or_not_installed_are_refused(tmp_path: Path) -> None:
    with raises_code(SettingError, "bad_value", "tensorbord", "aim, "):
        open_trackers(["tensorbord"], tmp_path, {})
    with raises_code(MissingExtraError, "missing_extra", "pip install aim"):
        open_trackers(["aim"], tmp_path, {})
    open_trackers([], tmp_path, {})
    assert list(tmp_path.iterdir()) == []


class Broken:
    name = "broken"

    def log(self, values: dict[str, float], step: int) -> None:
        raise OSError(28, "No space left on device")


class Working(Broken):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.steps.append(step)


def test_a_failing_tracker_is_switched_off_and_others_continue() -> None:
    notes: list[str] = []
    working = Working()
    both = Trackers([Broken(), working], notes.append)  # type: ignore[list-item]
    for step in (1, 2):
        both.log_step({"step": step, "loss": 0.5})
    assert working.steps == [1, 2]
    assert notes == [
        "broken failed and is switched off ([Errno 28] No space left on device); the run continues without it"
    ]


def test_a_signal_is_not_treated_as_a_failure() -> None:
    class Stopped(Broken):
        def log(self, values: dict[str, float], step: int) -> None:
            raise InterruptionError("stopped by SIGTERM", 15)

    with pytest.raises(InterruptionError):
        Trackers([Stopped()]).log_step({"step": 1, "loss": 0.5})  # type: ignore[list-item]
