"""What the loop needs of a model, whatever its kind; and the text-prompted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch

from vesalius.inference.predictor import Predictor
from vesalius.masks import Size
from vesalius.models.batch import Batch
from vesalius.models.cards import Card
from vesalius.models.checkpoint import OpenedModel, write_bundle
from vesalius.segmenter import Segmenter
from vesalius.training.losses import LossSettings, measure
from vesalius.types import Item, Turn


class Movable(Protocol):
    """A batch: tensors that go to a device together."""

    def to(self, device: torch.device) -> Self:
        """The batch on a device."""


class Learner(Protocol):
    """A model that can be trained. The loop wraps `module` and calls it through `losses` alone."""

    @property
    def module(self) -> torch.nn.Module:
        """All parameters, in float32 unless a part is quantized."""

    @property
    def groups(self) -> Mapping[str, list[torch.nn.Parameter]]:
        """Name of a part -> its parameters that train; all others are frozen."""

    def check_phrase(self, phrase: str) -> None:
        """Raise SettingError for a phrase that cannot be asked about."""

    def check_turns(self, turns: Sequence[Turn], size: Size) -> None:
        """Raise SettingError for a conversation about an image of `size` (h, w) that cannot be learned."""

    def make_batch(self, items: Sequence[Item], draws: Sequence[int]) -> Movable:
        """The batch of augmented items with masks or turns; a draw for each (item, prompt) picks what is drawn.

        For any thread.
        """

    def losses(self, module: torch.nn.Module, batch: Any) -> Mapping[str, torch.Tensor]:
        """Scalars of one batch by name; `total` is made small, the others are reported."""

    def segmenter(self, card: Any, batch: int) -> Segmenter:
        """The model as it is now, with a card of its kind, ready to predict; it is in eval mode then."""

    def write(self, folder: Path, card: Any, before: Path | None) -> None:
        """Write it, with a card of its kind, as a folder that every verb takes as MODEL.

        `before` is the run's checkpoint before this one, from which files that cannot have changed are taken over.
        """


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

    def check_turns(self, turns: Sequence[Turn], size: Size) -> None:
        """As `Processor.check_turns`."""
        self.opened.processor.check_turns(turns, size)

    def make_batch(self, items: Sequence[Item], draws: Sequence[int]) -> Batch:
        """As `Processor.teach`: one row for each (item, prompt) or conversation; the draw picks the template."""
        return self.opened.processor.collate(items, draws)

    def losses(self, module: torch.nn.Module, batch: Batch) -> Mapping[str, torch.Tensor]:
        """As `training/losses.py` measures them."""
        losses = measure(module(batch), batch.masks, self.loss, batch.draws)
        return {name: value for name, value in vars(losses).items() if value is not None}

    def segmenter(self, card: Card, batch: int) -> Predictor:
        """A predictor that forces its answers: whether the model would say [SEG] is reported by itself."""
        opened = OpenedModel(self.opened.model.eval(), self.opened.processor, card)
        return Predictor(opened, answer="force", batch_size=batch)

    def write(self, folder: Path, card: Card, before: Path | None) -> None:
        """Write a bundle."""
        write_bundle(folder, self.opened, card, like=before or self.opened.folder)
