"""`Segmenter`: the interface of every model that gives masks, and `ModelDescription`: what reports say of it.

The text-prompted predictor, the baselines, stored predictions and models in other processes all implement it, so jobs
and evaluation know no kind of model. This file imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import numpy as np
from jaxtyping import UInt8

from vesalius.errors import SettingError
from vesalius.types import Item, Prediction

AnswerMode = Literal["verify", "generate", "force"]
"""How a text-prompted model answers: verify drafts the usual answer and accepts it if greedy decoding agrees; generate
decodes token by token; force sets the template's answer, so that every prompt gets a mask."""
Propagation = Literal["official", "sam2"]
"""How masks propagate through a clip: official prompts on the first 5 frames, then uses Sa2VA's memory; sam2 prompts
on key frames, then uses SAM 2's memory."""

Purpose = Literal["predict", "train"]
"""What a model is opened for; training needs more memory."""

NO_MEMORY = "has no memory of a clip; predict its frames one by one, or with a text-prompted model"


@dataclass(frozen=True)
class ModelDescription:
    """What reports say of a model, and what evaluation must know of its training data."""

    name: str
    kind: str
    """`textseg`, `unet`, `frangi`, `predictions`, or a name for a model of your own."""
    fingerprint: str | None = None
    """SHA-256 of the weights; None for a model without weights, or if it is unknown."""
    step: int | None = None
    """Training step of the weights; None if they were not trained by Vesalius."""
    threshold: float | None = 0.5
    """Probability above which a pixel belongs to a mask; None for stored masks of unknown threshold."""
    threshold_origin: Mapping[str, Any] = field(default_factory=lambda: {"how": "default"})
    """How the threshold was chosen: `how`, and the data and metric of a tuned one."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All other settings that change the masks."""
    batch_size: int = 1
    """Images in one call of `predict`."""
    training_images: Collection[str] | None = None
    """SHA-256 of the pixels of each training image; None if it is not known."""
    trained_on_unknown: bool = True
    """True if the weights were, or may have been, trained on images that `training_images` does not list."""
    training_perceptual_hashes: Collection[str] = ()
    """Perceptual hash of each known training image."""
    tuning_images: Collection[str] = ()
    """SHA-256 of the pixels of each image that the threshold, or the views of test-time augmentation, were tuned on."""

    @property
    def card(self) -> dict[str, Any]:
        """`name`, `kind`, `fingerprint` and `step`: the model's entry in reports."""
        return {"name": self.name, "kind": self.kind, "fingerprint": self.fingerprint, "step": self.step}


@dataclass(frozen=True)
class Usage:
    """Counters of a model's work since it was opened."""

    batch_halved: int = 0
    """How often the batch size was halved because memory ran out."""
    cache: Mapping[str, int] = field(default_factory=dict)
    """Images `read`, `encoded`, `damaged` and `not_kept` by the feature cache; empty without a cache."""


@dataclass(frozen=True)
class FramePredictions:
    """The predictions for one frame of a clip."""

    index: int
    pixels: UInt8[np.ndarray, "h w 3"] | None
    """None if the frame could not be read."""
    predictions: list[Prediction]
    """One for each prompt; their id is the frame's."""


class Described(ABC):
    """A model that describes itself, here or in other processes."""

    @property
    @abstractmethod
    def description(self) -> ModelDescription:
        """The model's description as it is now: the batch size may shrink while it works."""

    @property
    def usage(self) -> Usage:
        """Counters of the work since the model was opened."""
        return Usage()

    def check_prompts(self, prompts: Iterable[str]) -> None:
        """Raise one SettingError that names all prompts which the model cannot answer; by default none."""
        return


class Segmenter(Described):
    """A model that gives masks. A new kind of model implements `description` and `predict`."""

    @abstractmethod
    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        """One prediction for each (item, prompt), in order; masks in the items are ignored."""

    def prepare(self, item: Item) -> Item:
        """The item with its preprocessing done, without masks; safe in any thread. By default unchanged.

        SettingError if the model does not accept such an image.
        """
        return item

    def with_views(self, views: Sequence[str], prompts: Iterable[str]) -> tuple[Segmenter, tuple[str, ...]]:
        """A copy with `LowRes.views` in its predictions, and its views of test-time augmentation in order.

        SettingError for prompts and views that it does not allow; by default for all.
        """
        self._refuse("test-time augmentation is for text-prompted models")

    def check_video(
        self,
        n_frames: int,
        *,
        propagation: Propagation = "sam2",
        key_frames: Sequence[int] = (),
        reprompt_every: int | None = None,
    ) -> None:
        """Raise SettingError if masks cannot be propagated through a clip of `n_frames` with these settings.

        By default always.
        """
        self._refuse(NO_MEMORY)

    def predict_video(
        self,
        clip: Any,
        prompts: Sequence[str],
        *,
        propagation: Propagation = "sam2",
        key_frames: Sequence[int] = (),
        reprompt_every: int | None = None,
    ) -> Iterator[FramePredictions]:
        """The predictions for each frame of a clip, with propagated masks; refused by default."""
        self._refuse(NO_MEMORY)

    def _refuse(self, reason: str) -> NoReturn:
        raise SettingError(f"{self.description.name}: {reason}", code="not_supported")
