"""The training context: one object with everything that stays fixed during a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vesalius.lineage import fingerprint_samples
from vesalius.models.cards import ModelCard
from vesalius.training.distributed import Process
from vesalius.training.early_stopping import ValidationLine
from vesalius.training.ema import WeightAverage
from vesalius.training.learner import Learner
from vesalius.training.loader import Loader
from vesalius.training.model_card import write_model_card
from vesalius.training.run_folder import RunFolder, TrainState
from vesalius.training.settings import RunSettings
from vesalius.training.trackers import Trackers
from vesalius.types import Sample


def ignore(_: object) -> None:
    """Discard a message; the default receiver."""


@dataclass(frozen=True)
class Monitoring:
    """Receivers of a run's messages: notes, lines of both logs, and experiment trackers."""

    on_note: Callable[[str], None] = ignore
    on_step: Callable[[dict[str, Any]], None] = ignore
    on_validation: Callable[[dict[str, Any]], None] = ignore
    trackers: Trackers = field(default_factory=Trackers)


@dataclass(frozen=True)
class TrainingContext:
    """Settings, folder, model, data and monitoring of one run. Values that change during the run are in `TrainState`."""

    settings: RunSettings
    folder: RunFolder
    process: Process
    learner: Learner
    card: ModelCard
    manifest: dict[str, Any]
    """Contents of `manifest.json`: ids and hashes of the samples, versions, commit."""
    model: torch.nn.Module
    """The learner's module wrapped for training (DDP, FSDP2); training steps call this wrapper."""
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    """Exponential moving average of the trained weights; None without `optim.ema_decay`."""
    loader: Loader
    validation_samples: Sequence[Sample]
    monitoring: Monitoring

    @cached_property
    def validation_fingerprint(self) -> str:
        """SHA-256 over the validation samples; validations are compared only if it agrees."""
        return fingerprint_samples(list(self.validation_samples))

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole run; None if the run is limited by time."""
        settings = self.settings
        if settings.epochs is not None:
            return settings.epochs * self.loader.steps_in_epoch()
        return settings.steps

    def progress(self, state: TrainState) -> float:
        """Completed fraction of the run, in [0, 1] or slightly above."""
        if self.settings.minutes is not None:
            return state.training_s / (60 * self.settings.minutes)
        return state.step / (self.total_steps or 1)

    def averaged(self) -> AbstractContextManager[None]:
        """Load the averaged weights into the model for the duration of a `with` block; validation and saving use them."""
        return nullcontext() if self.average is None else self.average.applied()

    def write_card(self, checkpoint: Path, step: int, validation: ValidationLine | None = None) -> None:
        """Write the model card of the weights at `step` into a checkpoint, with the scores of `validation` if given."""
        samples = self.loader.samples
        phrases = list(dict.fromkeys(prompt for sample in samples for prompt in sample.prompts))
        card = self.card.changed(step=step)
        write_model_card(checkpoint, card, self.settings, self.manifest, len(samples), phrases, validation)
