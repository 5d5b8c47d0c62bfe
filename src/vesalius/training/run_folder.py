"""The run folder: settings, log, checkpoints, and what must be known to go on."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vesalius.errors import CheckpointError, OutputError, TrainingError
from vesalius.files import check_new, hold_folder, prepare_folder, replacing, to_json, write_json, write_text
from vesalius.models.cards import ADAPTER, ModelCard
from vesalius.models.checkpoint import merged, open_model, write_bundle
from vesalius.training.distributed import Engine
from vesalius.training.learner import Learner
from vesalius.training.optimizer_state import write_optimizer
from vesalius.training.sharding import whole

STATE = "train_state.json"
MERGED = "-merged"
CHECKPOINT = re.compile(rf"step-\d{{6,}}({MERGED})*")


@dataclass
class TrainState:
    """Where a run stands; with the weights and the optimizer, all that must be resumed."""

    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    batch_in_epoch: int = 0
    """Batches of this epoch that are used up."""
    trained_s: float = 0.0
    """Time spent in training steps."""
    validated: int = 0
    """Step that was validated last."""
    moved: bool = False
    """Whether all that trains was seen to move; a run that was interrupted before is checked when it goes on."""
    images_a_batch: int = 0
    """Of all processes together."""


class RunFolder:
    """One run on disk. Every file is written whole or not at all; the log grows by a line a step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "log.jsonl"
        self.validation = path / "validation.jsonl"

    def create(self, settings_yaml: str, manifest: Mapping[str, Any], held: ExitStack) -> None:
        """Make the folder and hold it as `hold` does; OutputError if a run or anything else is there already."""
        self.check_new()
        prepare_folder(self.path)
        self.hold(held)
        self.check_new()  # another may have been faster
        write_text(self.path / "config.yaml", settings_yaml)
        write_json(self.path / "manifest.json", manifest)

    def check_new(self) -> None:
        """Raise OutputError unless nothing, or an empty folder, is at the path."""
        begun = (self.path / "last").exists()
        check_new(self.path, "choose another `out`" + f", or continue it with --resume {self.path}" * begun)

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
        try:
            text = file.read_text(encoding="utf-8")
            lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
            if not all(isinstance(line["step"], int) for line in lines):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(
                f"{file}: holds a line that is no JSON with a step; mend or remove the line"
            ) from error
        return lines

    def hold(self, held: ExitStack) -> None:
        """Hold an existing run folder until `held` is closed; OutputError where another process trains in it."""
        hold_folder(self.path, "training run", held)

    def save(
        self,
        engine: Engine,
        learner: Learner,
        card: ModelCard,
        optimizer: torch.optim.Optimizer,
        state: TrainState,
        also: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        """Write a checkpoint, point `last` to it, and remove those to which neither `last` nor `best` points.

        `also` writes what else is to be in it, in the main process.
        It takes its name when all of it is on the disk: until then `last` is the one before. A collective.
        """
        folder = self.path / "checkpoints" / f"step-{state.step:06d}"
        with replacing(folder) if engine.is_main else nullcontext(folder) as made:
            aside = engine.agree(made)
            with whole(learner.module, aside.with_name(f".weights{aside.name}"), engine.is_main):
                if engine.is_main:
                    last = self.path / "last"
                    learner.write(aside, card, last.resolve() if last.exists() else None)
                    also(aside)
            engine.wait()
            write_optimizer(aside, learner.module, optimizer, engine.is_main)
            if engine.is_main:
                write_json(aside / STATE, asdict(state))
                _push_to_disk(*aside.rglob("*"), aside)
            engine.wait()
        if engine.is_main:
            self._point("last", folder)

    def mark_validated(self, state: TrainState, is_best: bool) -> None:
        """Note in the last checkpoint that it was validated, and point `best` to it where it is."""
        if is_best:
            self._point("best", (self.path / "last").resolve())
        write_json(self.path / "last" / STATE, asdict(state))

    def merge_best(self, describe: Callable[[Path], None]) -> None:
        """Let `best` be a bundle in which an adapter is part of the weights; `describe` writes its model card."""
        best = (self.path / "best").resolve()
        if not (best / ADAPTER).is_dir():
            return
        folder = best.with_name(f"{best.name}{MERGED}")
        with replacing(folder) as aside:
            opened = merged(open_model(best))
            write_bundle(aside, opened, opened.card)
            describe(aside)
            _push_to_disk(*aside.rglob("*"), aside)
        self._point("best", folder)

    def _point(self, name: str, folder: Path) -> None:
        """Let a link point to a checkpoint, and remove those that no link points to."""
        try:
            link = self.path / f".{name}.partial"
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(folder.resolve(), self.path.resolve()))
            link.replace(self.path / name)
            _push_to_disk(folder.parent, self.path)
        except OSError as error:
            raise OutputError(f"{self.path / name}: cannot be written ({error.strerror})") from error
        kept = {(self.path / each).resolve() for each in ("last", "best")}
        for other in folder.parent.glob("step-*"):  # whatever else lies there is somebody's
            if CHECKPOINT.fullmatch(other.name) and other.is_dir() and other.resolve() not in kept:
                shutil.rmtree(other, ignore_errors=True)

    def last(self) -> Path:
        """The checkpoint to continue from; TrainingError where there is none."""
        last = self.path / "last"
        if not last.exists():
            raise TrainingError(f"{self.path}: has no checkpoint to resume from{self._way_out()}")
        for link in (last, self.path / "best"):
            if link.exists() and not link.is_symlink():
                raise TrainingError(
                    f"{link}: is a folder where a run has a link, as a copy that follows links makes it; copy the run "
                    "with cp -a or rsync -a"
                )
        return last

    @contextmanager
    def reading_last(self) -> Iterator[None]:
        """Where the last checkpoint turns out to be damaged within it, the error tells what else there is."""
        try:
            yield
        except (CheckpointError, TrainingError) as error:
            raise TrainingError(f"{error}{self._way_out()}") from error

    def _way_out(self) -> str:
        best, last = (self.path / name for name in ("best", "last"))
        if not (best / STATE).exists() or best.resolve() == last.resolve():
            return ""
        return (
            "; a half that does not train is one file in all checkpoints, to be copied from the model with which the run began; "
            f"to go on from {best.resolve().name}, the best so far, point `last` to it: "
            f"ln -sfn {os.path.relpath(best.resolve(), self.path.resolve())} {last}"
        )

    def read_state(self) -> TrainState:
        """Where the last checkpoint stands; TrainingError where that cannot be read."""
        path = self.path / "last" / STATE
        try:
            return TrainState(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise TrainingError(
                f"{path}: cannot be read ({error}); the run cannot be resumed from it"
            ) from error

    def rewind(self, state: TrainState) -> None:
        """Drop the log's lines of steps after the last checkpoint, and what a killed process left half written."""
        for file, step in ((self.log, state.step), (self.validation, state.validated)):
            if not file.exists():  # a run without validations has none
                continue
            kept = [line for line in self.lines(file) if line["step"] <= step]
            write_text(file, "".join(to_json(line) + "\n" for line in kept))
        (self.path / "failure.json").unlink(missing_ok=True)
        for folder in (self.path, self.path / "checkpoints"):
            for debris in (*folder.glob(".*.partial"), *folder.glob(".*.old")):
                if debris.is_dir() and not debris.is_symlink():
                    shutil.rmtree(debris, ignore_errors=True)
                else:
                    debris.unlink(missing_ok=True)


def _push_to_disk(*paths: Path) -> None:
    """Wait until files, and the names in folders, are where a power cut leaves them."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
