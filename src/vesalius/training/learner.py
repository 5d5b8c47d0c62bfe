"""What the loop needs of a model, whatever its kind; and the text-prompted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, Self

import torch

from vesalius.inference.folder import Segmenter
from vesalius.inference.predictor import Predictor
from vesalius.models.checkpoint import Card, OpenedModel, write_bundle
from vesalius.models.processor import Batch
from vesalius.training.losses import LossSettings, measure
from vesalius.types import Item


class Movable(Protocol):
    """A batch: tensors that go to a device together."""

    def to(self, device: torch.device) -> Self:
        """The batch on a device."""


class Learner(Protocol):
    """A model that can be trained. The loop wraps `module` and calls it through `losses` alone."""

    @property
    def module(self) -> torch.nn.Module:
        """All parameters, in float32 unless a part is quantised."""

    @property
    def groups(self) -> Mapping[str, list[torch.nn.Parameter]]:
        """Name of a part -> its parameters that train; all others are frozen."""

    def check_phrase(self, phrase: str) -> None:
        """Raise SettingError for a phrase that cannot be asked about."""

    def make_batch(self, items: Sequence[Item], draws: Sequence[int]) -> Movable:
        """The batch of augmented items with masks; a draw for each (item, prompt) picks what is drawn. For any thread."""

    def losses(self, module: torch.nn.Module, batch: Any) -> Mapping[str, torch.Tensor]:
        """Scalars of one batch by name; `total` is made small, the others are reported."""

    def segmenter(self, card: Card, batch: int) -> Segmenter:
        """The model as it is now, ready to predict; it is in eval mode then."""

    def write(self, folder: Path, card: Card) -> None:
        """Write it as a folder that every verb takes as MODEL."""


@dataclass(frozen=True)
class TextSegLearner:
    """A text-prompted segmenter that trains."""

    opened: OpenedModel
    groups: Mapping[str, list[torch.nn.Parameter]]
    loss: LossSettings

    @property
    def module(self) -> torch.nn.Module:
        """The unwrapped model."""
        return self.opened.model

    def check_phrase(self, phrase: str) -> None:
        """As `Processor.check_phrase`."""
        self.opened.processor.check_phrase(phrase)

    def make_batch(self, items: Sequence[Item], draws: Sequence[int]) -> Batch:
        """One row for each (item, prompt), with the template's answer; the draw picks the template."""
        return self.opened.processor(items, answered=True, choice=draws)

    def losses(self, module: torch.nn.Module, batch: Batch) -> Mapping[str, torch.Tensor]:
        """As `training/losses.py` measures them."""
        losses = measure(module(batch), batch.masks, self.loss)
        return {field.name: getattr(losses, field.name) for field in fields(losses)}

    def segmenter(self, card: Card, batch: int) -> Predictor:
        """A predictor that forces its answers: whether the model would say [SEG] is reported by itself."""
        opened = OpenedModel(self.opened.model.eval(), self.opened.processor, card)
        return Predictor(opened, answer="force", batch=batch)

    def write(self, folder: Path, card: Card) -> None:
        """Write a bundle."""
        write_bundle(folder, self.opened, card)
