"""The run folder: settings, log, checkpoints, and what must be known to go on."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vesalius.errors import OutputError, TrainingError
from vesalius.files import replacing, to_json, write_json, write_text
from vesalius.models.checkpoint import Card
from vesalius.training.learner import Learner

STATE = "train_state.pt"
CHECKPOINT = re.compile(r"step-\d{6,}")


@dataclass
class TrainState:
    """Where a run stands; with the weights and the optimiser, all that must be resumed."""

    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    batch_in_epoch: int = 0
    """Batches of this epoch that are used up."""
    trained_s: float = 0.0
    """Time spent in training steps."""
    best: float | None = None
    """Best value of the validation metric so far."""


def write_tensors(path: Path, value: Any) -> None:
    """torch.save, with OutputError where the disk is full: torch calls that a RuntimeError."""
    try:
        torch.save(value, path)
    except RuntimeError as error:
        raise OutputError(f"{path}: cannot be written ({' '.join(str(error).split())[:200]})") from error


class RunDir:
    """One run on disk. Every file is written whole or not at all; the log grows by a line a step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "log.jsonl"
        self.validation = path / "validation.jsonl"

    def create(self, settings_yaml: str, manifest: Mapping[str, Any]) -> None:
        """Make the folder; OutputError if a run or anything else is there already."""
        self.check_new()
        write_text(self.path / "config.yaml", settings_yaml)
        write_json(self.path / "manifest.json", manifest)

    def check_new(self) -> None:
        """Raise OutputError unless nothing, or an empty folder, is at the path."""
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path}: is a file; choose another `out`")
        if self.path.exists() and any(self.path.iterdir()):
            raise OutputError(
                f"{self.path}: is not empty; choose another `out`, or continue it with --resume {self.path}"
            )

    def append(self, file: Path, line: Mapping[str, Any]) -> None:
        """Add one line of JSON to a log."""
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.write(to_json(line) + "\n")
        except OSError as error:
            raise OutputError(f"{file}: cannot be written ({error.strerror})") from error

    def lines(self, file: Path) -> list[dict[str, Any]]:
        """The lines of a log; none where it does not exist. A last line that a crash cut short does not count."""
        if not file.exists():
            return []
        text = file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise TrainingError(f"{file}: holds a line that is not JSON; mend or remove it") from error

    def save(
        self,
        learner: Learner,
        card: Card,
        optimiser: torch.optim.Optimizer,
        state: TrainState,
        is_best: bool,
    ) -> Path:
        """Write a checkpoint, point `last` (and `best`) to it, and remove those that neither points to."""
        folder = self.path / "checkpoints" / f"step-{state.step:06d}"
        with replacing(folder) as aside:
            learner.write(aside, card)
            write_tensors(aside / STATE, {"state": asdict(state), "optimiser": optimiser.state_dict()})
        for name in ("last", "best") if is_best else ("last",):
            link = self.path / f".{name}.partial"
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(folder, self.path))
            link.replace(self.path / name)
        kept = {(self.path / name).resolve() for name in ("last", "best")}
        for other in folder.parent.glob("step-*"):  # whatever else lies there is somebody's
            if CHECKPOINT.fullmatch(other.name) and other.is_dir() and other.resolve() not in kept:
                shutil.rmtree(other)
        return folder

    def resume(self, optimiser: torch.optim.Optimizer) -> TrainState:
        """Load the last checkpoint's optimiser and state, and drop log lines of steps after it."""
        path = self.path / "last" / STATE
        try:
            saved = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:
            raise TrainingError(
                f"{path}: cannot be read ({error}); the run cannot be resumed from it"
            ) from error
        optimiser.load_state_dict(saved["optimiser"])
        state = TrainState(**saved["state"])
        for file in (self.log, self.validation):
            kept = [line for line in self.lines(file) if line["step"] <= state.step]
            write_text(file, "".join(to_json(line) + "\n" for line in kept))
        return state
