"""`Learner`, the interface between the training loop and a model, and its implementation for text-prompted models."""

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
from vesalius.training.losses import LossSettings, compute_losses
from vesalius.types import Item, Turn


class Movable(Protocol):
    """A batch of tensors that can move to a device."""

    def to(self, device: torch.device) -> Self:
        """A copy of the batch on a device."""


class Learner(Protocol):
    """A model that can be trained. The loop wraps `module` and calls it only through `losses`."""

    @property
    def module(self) -> torch.nn.Module:
        """The whole unwrapped model, in float32 except for quantized components."""

    @property
    def groups(self) -> Mapping[str, list[torch.nn.Parameter]]:
        """Component name -> its trainable parameters; all other parameters are frozen."""

    def check_phrase(self, phrase: str) -> None:
        """Raise SettingError if `phrase` is not a valid prompt."""

    def check_turns(self, turns: Sequence[Turn], size: Size) -> None:
        """Raise SettingError if the model cannot be trained on a conversation about an image of `size` (h, w)."""

    def make_batch(self, items: Sequence[Item], draws: Sequence[int]) -> Movable:
        """A batch of augmented items with masks or turns; one random integer per (item, prompt) selects template or crop.

        Thread-safe.
        """

    def losses(self, module: torch.nn.Module, batch: Any) -> Mapping[str, torch.Tensor]:
        """Name -> scalar loss of one batch; `total` is minimized, the others are only logged."""

    def segmenter(self, card: Any, batch_size: int, forced: bool = True) -> Segmenter:
        """A predictor with the current weights and `card`; switches the model to eval mode.

        `forced`: a text-prompted model's answer is fixed to [SEG]. The prediction reports in both cases whether the model
        itself would answer [SEG].
        """

    def write(self, folder: Path, card: Any, previous: Path | None) -> None:
        """Write the model and `card` as a bundle; files of frozen components are linked from checkpoint `previous`."""


@dataclass(frozen=True)
class TextSegLearner:
    """Learner of a text-prompted model."""

    opened: OpenedModel
    groups: Mapping[str, list[torch.nn.Parameter]]
    loss: LossSettings

    @property
    def module(self) -> torch.nn.Module:
        """The model without wrappers."""
        return self.opened.model

    def check_phrase(self, phrase: str) -> None:
        """Raise SettingError if `phrase` is not a valid prompt; see `Processor.check_phrase`."""
        self.opened.processor.check_phrase(phrase)

    def check_turns(self, turns: Sequence[Turn], size: Size) -> None:
        """Raise SettingError if the conversation cannot be tokenized for training; see `Processor.check_turns`."""
        self.opened.processor.check_turns(turns, size)

    def make_batch(self, items: Sequence[Item], draws: Sequence[int]) -> Batch:
        """A batch by `Processor.collate`: one row per (item, prompt) or conversation; the random integer selects the template."""
        return self.opened.processor.collate(items, draws)

    def losses(self, module: torch.nn.Module, batch: Batch) -> Mapping[str, torch.Tensor]:
        """The losses of `compute_losses` that are not None."""
        losses = compute_losses(module(batch), batch.masks, self.loss, batch.draws)
        return {name: value for name, value in vars(losses).items() if value is not None}

    def segmenter(self, card: Card, batch_size: int, forced: bool = True) -> Predictor:
        """A predictor with the current weights; its answers are forced, or verified against greedy decoding."""
        opened = OpenedModel(self.opened.model.eval(), self.opened.processor, card)
        return Predictor(opened, answer="force" if forced else "verify", batch_size=batch_size)

    def write(self, folder: Path, card: Card, previous: Path | None) -> None:
        """Write a bundle; files of frozen components are linked from `previous` or copied from the initial model."""
        write_bundle(folder, self.opened, card, like=previous or self.opened.folder)
