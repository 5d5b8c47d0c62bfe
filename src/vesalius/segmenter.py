"""`Segmenter`, the interface of all models that predict masks, and `ModelDescription`, their description in reports.

The text-prompted predictor, the baselines, stored predictions and models in other processes implement `Segmenter`, so
jobs and evaluation do not depend on the kind of model. This module imports no torch.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn

import numpy as np
from jaxtyping import UInt8

from vesalius.calls import checked_init
from vesalius.clicks import Click
from vesalius.errors import SettingError
from vesalius.language import note
from vesalius.phrases import describe_prompts
from vesalius.types import Item, Prediction, Sample
from vesalius.window import AUTO, Range, Window

log = logging.getLogger(__name__)

AnswerMode = Literal["verify", "generate", "force"]
"""How a text-prompted model answers. verify: draft the usual answer and accept it if greedy decoding agrees; generate:
decode token by token; force: use the answer of the template, so that each prompt gets a mask."""
Propagation = Literal["official", "sam2"]
"""How masks propagate through a clip. official: prompt on the first 5 frames, then Sa2VA's memory; sam2: prompt on key
frames, then SAM 2's memory."""

Purpose = Literal["predict", "train"]
"""Purpose of opening a model; training needs more memory than prediction."""

NO_MEMORY = "cannot propagate masks through a clip; predict its frames one by one, or use a text-prompted model"


@checked_init
@dataclass(frozen=True)
class ModelDescription:
    """Identity, settings and training images of a model, for reports and leak checks."""

    name: str
    kind: str
    """`textseg`, `unet`, `frangi`, `predictions`, or the name of a custom kind."""
    fingerprint: str | None = None
    """SHA-256 of the weights; None if it is unknown or there are no weights."""
    step: int | None = None
    """Training step of the weights; None if they were not trained by Vesalius."""
    phrases: tuple[str, ...] | None = None
    """Phrases that the model was trained on; None for an open vocabulary, or if they are unknown."""
    threshold: float | None = 0.5
    """Probability above which a pixel belongs to a mask; None for stored masks of unknown threshold."""
    threshold_origin: Mapping[str, Any] = field(default_factory=lambda: {"how": "default"})
    """How the threshold was chosen: `how`, and, if it was tuned, the data and the metric."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All other settings that change the masks."""
    batch_size: int = 1
    """Number of images per call of `predict`."""
    training_images: Collection[str] | None = None
    """SHA-256 of the pixels of each training image; None if it is unknown."""
    trained_on_unknown: bool = True
    """True if the weights were, or may have been, trained on images that `training_images` does not list."""
    training_perceptual_hashes: Sequence[str] = ()
    """Perceptual hash of each known training image."""
    training_texture_hashes: Sequence[str] = ()
    """Texture hash of each image in `training_perceptual_hashes`, in its order; "" where it is unknown. Empty: all are."""
    tuning_images: Collection[str] = ()
    """SHA-256 of the pixels of each image on which the threshold or test-time augmentation was tuned."""
    window: Window = AUTO
    """Window of images that have none of their own."""
    training_window: Window | None = None
    """Window of the training images; None if it is unknown."""

    @property
    def card(self) -> dict[str, Any]:
        """`name`, `kind`, `fingerprint` and `step`: the model's entry in reports."""
        return {"name": self.name, "kind": self.kind, "fingerprint": self.fingerprint, "step": self.step}

    def as_trained(self, sample: Sample) -> Sample:
        """The sample under the window of training, which the hashes of training images refer to."""
        return replace(sample, window=self.training_window or AUTO)

    @property
    def window_note(self) -> str:
        """A sentence if the window differs from that of training, else ""."""
        if self.training_window in (None, self.window):
            return ""
        return note(
            "The window ({one}) differs from that of training ({two}).", one=self.window, two=self.training_window
        )


@dataclass(frozen=True)
class Usage:
    """Counters of a model since it was opened."""

    batch_halved: int = 0
    """Number of times the batch size was halved because memory ran out."""
    cache: Mapping[str, int] = field(default_factory=dict)
    """Counts of images in the feature cache: `read`, `encoded`, `damaged`, `not_kept`; empty without a cache."""


@dataclass(frozen=True)
class FramePredictions:
    """The predictions for one frame of a clip."""

    index: int
    pixels: UInt8[np.ndarray, "h w 3"] | None
    """None if the frame could not be read."""
    predictions: list[Prediction]
    """One for each prompt; their `id` is the frame's id."""
    window: Range | None = None
    """Stored values that are black and white in `pixels`; None if they are gray levels already."""


class Described(ABC):
    """A model with a description, in this process or in others."""

    @property
    @abstractmethod
    def description(self) -> ModelDescription:
        """The current description of the model; the batch size may shrink during prediction."""

    @property
    def usage(self) -> Usage:
        """Counters since the model was opened."""
        return Usage()

    def note_prompts(self, prompts: Iterable[str]) -> None:
        """Log the notes of `check_prompts` as warnings; SettingError as there."""
        for each in self.check_prompts(prompts):
            log.warning("%s", each)

    def check_prompts(self, prompts: Iterable[str]) -> list[str]:
        """Notes for the user on prompts that are asked under another spelling or are unknown to the model.

        Raises one SettingError that lists all prompts that the model cannot answer; by default, it accepts all.
        """
        described = self.description
        return describe_prompts(prompts, described.phrases, described.name)


class Segmenter(Described):
    """A model that predicts masks. A new kind of model implements `description` and `predict`."""

    @abstractmethod
    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        """One prediction for each (item, prompt), in order; masks in the items are ignored."""

    def prepare(self, item: Item) -> Item:
        """The preprocessed item without masks; thread-safe. By default, the item is returned unchanged.

        SettingError if the model does not accept such an image.
        """
        return item

    def with_views(self, views: Sequence[str], prompts: Iterable[str]) -> tuple[Segmenter, tuple[str, ...]]:
        """A copy whose predictions have `LowRes.views`, and the views of test-time augmentation in canonical order.

        SettingError for a prompt or view that the model does not support; by default, always.
        """
        self._refuse("test-time augmentation is for text-prompted models")

    def refine(self, prediction: Prediction, points: Sequence[Click]) -> Prediction:
        """The prediction corrected by clicks; by default, SettingError (`not_supported`)."""
        self._refuse("clicks correct masks of a single text-prompted model")

    def check_video(
        self,
        n_frames: int,
        *,
        propagation: Propagation = "sam2",
        key_frames: Sequence[int] = (),
        reprompt_every: int | None = None,
    ) -> None:
        """Raise SettingError if the model cannot propagate masks through a clip of `n_frames` with these settings.

        By default, it always raises.
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
        """The predictions for each frame of a clip, with propagated masks; by default, SettingError."""
        self._refuse(NO_MEMORY)

    def _refuse(self, reason: str) -> NoReturn:
        raise SettingError(f"{self.description.name}: {reason}", code="not_supported")
