"""The run folder: settings, logs, and checkpoints, linked as `last` and `best`, with the state to resume from."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from vesalius.errors import CheckpointError, OutputError, TrainingError
from vesalius.files import hold_folder, replacing, write_json
from vesalius.journal import Entry, Journal
from vesalius.models.cards import ADAPTER, ModelCard
from vesalius.models.checkpoint import merged, open_model, write_bundle
from vesalius.training.distributed import Process
from vesalius.training.learner import Learner
from vesalius.training.optimizer_state import write_optimizer
from vesalius.training.runs import CONFIG, read_log
from vesalius.training.sharding import full_weights

STATE = "train_state.json"
MERGED = "-merged"
CHECKPOINT = re.compile(rf"step-\d{{6,}}({MERGED})*")
NOT_STORED = ("saved_step", "saved_at", "stopped_early")


@dataclass
class TrainState:
    """Progress of a run, without weights and optimizer; stored in each checkpoint."""

    step: int = 0
    """Number of completed optimizer steps."""
    epoch: int = 0
    batch_in_epoch: int = 0
    """Number of batches already used in this epoch."""
    training_s: float = 0.0
    """Seconds spent in training steps, without validation and saving."""
    validated_step: int = 0
    """Step of the last validation."""
    gradients_checked: bool = False
    """Whether the gradient check has passed; otherwise a resumed run repeats it."""
    global_batch_size: int = 0
    """Images per batch over all processes."""
    saved_step: int = 0
    """Step of the last checkpoint; not stored in the checkpoint."""
    saved_at: float = field(default_factory=monotonic)
    """Time of the last checkpoint, in seconds of the monotonic clock; not stored in the checkpoint."""
    stopped_early: bool = False
    """Whether early stopping has ended the run; derived from the validations, not stored in the checkpoint."""

    def as_json(self) -> dict[str, Any]:
        """The fields stored in a checkpoint."""
        return {name: value for name, value in vars(self).items() if name not in NOT_STORED}


class RunFolder:
    """One run on disk. Files are written atomically; logs grow by one line per step or validation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "log.jsonl"
        self.validation = path / "validation.jsonl"

    def append(self, file: Path, line: Mapping[str, Any]) -> None:
        """Append one line of JSON to a log."""
        with Journal(file) as journal:
            journal.append(line)

    def lines(self, file: Path) -> list[dict[str, Any]]:
        """The complete lines of a log, without a last line cut by a crash; [] if the file is missing."""
        return [entry.value for entry in self._entries(file)]

    def _entries(self, file: Path) -> list[Entry]:
        try:
            return read_log(file)
        except (OSError, ValueError) as error:
            message = f"has a line that is not JSON with a step ({error}); correct or remove the line"
            raise TrainingError.at(file, message, code="damaged_log") from error

    def hold(self, held: ExitStack) -> None:
        """Lock an existing run folder until `held` closes. Raises OutputError if another process trains in it."""
        hold_folder(self.path, "training run", held)

    def save(
        self,
        process: Process,
        learner: Learner,
        card: ModelCard,
        optimizer: torch.optim.Optimizer,
        state: TrainState,
        write_extras: Callable[[Path], None] = lambda checkpoint: None,
    ) -> None:
        """Write a checkpoint, link it as `last`, and remove checkpoints that are neither last nor best. A collective.

        The main process calls `write_extras` to add files. The checkpoint is renamed to its final name and linked only
        when it is completely on disk.
        """
        folder = self.path / "checkpoints" / f"step-{state.step:06d}"
        with replacing(folder) if process.is_main else nullcontext(folder) as made:
            temporary = process.broadcast(made)
            weights_file = temporary.with_name(f".weights{temporary.name}")
            with full_weights(learner.module, weights_file, process.is_main):
                if process.is_main:
                    last = self.path / "last"
                    learner.write(temporary, card, last.resolve() if last.exists() else None)
                    write_extras(temporary)
            process.barrier()
            write_optimizer(temporary, learner.module, optimizer, process.is_main)
            if process.is_main:
                write_json(temporary / STATE, state.as_json())
                _sync_to_disk(*temporary.rglob("*"), temporary)
            process.barrier()
        if process.is_main:
            self._link("last", folder)

    def mark_validated(self, state: TrainState, is_best: bool) -> None:
        """Mark the last checkpoint as validated, and link it as `best` if it is the best."""
        if is_best:
            self._link("best", (self.path / "last").resolve())
        write_json(self.path / "last" / STATE, state.as_json())

    def merge_best(self, write_card: Callable[[Path], None]) -> None:
        """Replace `best` by a bundle with the adapter merged into the weights; `write_card` writes the new model card."""
        best = (self.path / "best").resolve()
        if not (best / ADAPTER).is_dir():
            return
        folder = best.with_name(f"{best.name}{MERGED}")
        with replacing(folder) as temporary:
            opened = merged(open_model(best))
            write_bundle(temporary, opened, opened.card)
            write_card(temporary)
            _sync_to_disk(*temporary.rglob("*"), temporary)
        self._link("best", folder)

    def _link(self, name: str, folder: Path) -> None:
        """Link a checkpoint as `name`, and remove checkpoints without a link."""
        try:
            link = self.path / f".{name}.partial"
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(folder.resolve(), self.path.resolve()))
            link.replace(self.path / name)
            _sync_to_disk(folder.parent, self.path)
        except OSError as error:
            message = f"cannot be written ({error.strerror})"
            raise OutputError.at(self.path / name, message, code="write_failed") from error
        kept = {(self.path / each).resolve() for each in ("last", "best")}
        for other in folder.parent.glob("step-*"):  # other files in the folder may belong to the user
            if CHECKPOINT.fullmatch(other.name) and other.is_dir() and other.resolve() not in kept:
                shutil.rmtree(other, ignore_errors=True)

    def last(self) -> Path:
        """The checkpoint to resume from. Raises TrainingError if it is missing, or if links were copied as folders."""
        last = self.path / "last"
        if not last.exists():
            begun = "; start it anew with the command that began it" * (self.path / CONFIG).is_file()
            message = f"has no checkpoint to resume from{begun}{self._fallback()}"
            raise TrainingError.at(self.path, message, code="no_checkpoint")
        for link in (last, self.path / "best"):
            if link.exists() and not link.is_symlink():
                message = "is a folder, not a link: copy the run again with cp -a or rsync -a, which keep links"
                raise TrainingError.at(link, message, code="damaged_checkpoint")
        return last

    @contextmanager
    def reading_last(self) -> Iterator[None]:
        """Context that adds the command to fall back to `best` to errors about a damaged last checkpoint."""
        try:
            yield
        except (CheckpointError, TrainingError) as error:
            message = f"{error}{self._fallback()}"
            raise TrainingError(message, code=error.code, path=error.path, field=error.field) from error

    def _fallback(self) -> str:
        best, last = (self.path / name for name in ("best", "last"))
        if not (best / STATE).exists() or best.resolve() == last.resolve():
            return ""
        return (
            "; frozen components are one file shared by all checkpoints, and can be copied again from the initial model; "
            f"to continue from {best.resolve().name}, the best so far, point `last` to it: "
            f"ln -sfn {os.path.relpath(best.resolve(), self.path.resolve())} {last}"
        )

    def read_state(self) -> TrainState:
        """The training state of the last checkpoint. Raises TrainingError if it cannot be read."""
        path = self.path / "last" / STATE
        try:
            state = TrainState(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            message = f"cannot be read ({error}), so the run cannot be resumed from it"
            raise TrainingError.at(path, message, code="damaged_checkpoint") from error
        state.saved_step = state.step
        return state

    def rewind(self, state: TrainState) -> None:
        """Remove log lines after the last checkpoint, and partial files of a killed process."""
        for file, step in ((self.log, state.step), (self.validation, state.validated_step)):
            if file.exists():  # a run without validations has no validation.jsonl
                ends = [entry.end for entry in self._entries(file) if entry.value["step"] <= step]
                with Journal(file, keep=max(ends, default=0)):
                    pass
        (self.path / "failure.json").unlink(missing_ok=True)
        for folder in (self.path, self.path / "checkpoints"):
            for partial in (*folder.glob(".*.partial"), *folder.glob(".*.old")):
                if partial.is_dir() and not partial.is_symlink():
                    shutil.rmtree(partial, ignore_errors=True)
                else:
                    partial.unlink(missing_ok=True)


def _sync_to_disk(*paths: Path) -> None:
    """Flush files and directory entries to disk (fsync), so that they survive a power failure."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
