"""`LoadedSegmenter`: base class of the text-prompted predictor and the baselines."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vesalius.cleaning import Cleaning
from vesalius.data.images import as_pixels
from vesalius.errors import SettingError
from vesalius.models.cards import ModelCard, TtaGain
from vesalius.segmenter import ModelDescription, Segmenter
from vesalius.types import Item, Prediction

Picture = str | Path | Image.Image | np.ndarray
"""One image: a path, a PIL image, or a uint8 array (h, w, 3) or (h, w)."""


class LoadedSegmenter(Segmenter):
    """A segmenter with a model card, a threshold and a name."""

    def __init__(
        self,
        card: ModelCard,
        *,
        threshold: float | None = None,
        cleaning: Cleaning | None = None,
        batch_size: int = 4,
        name: str = "",
        fingerprint: str | None = None,
        gain: TtaGain | None = None,
    ) -> None:
        """`threshold` defaults to the card's, or with test-time augmentation to the one tuned for it (`gain`).

        SettingError for a threshold outside (0, 1), and for a batch size below 1.
        """
        if batch_size < 1:
            raise SettingError(f"batch_size must be at least 1; got {batch_size}", code="bad_value", field="batch_size")
        if threshold is not None and not 0 < threshold < 1:
            raise SettingError(
                f"the threshold must lie between 0 and 1; got {threshold}", code="bad_value", field="threshold"
            )
        self.model_card = card
        self.gain = gain
        """Measured gain of test-time augmentation; None if it is off."""
        self._tuned_threshold = card.threshold if gain is None else gain.threshold
        self.threshold = self._tuned_threshold if threshold is None else threshold
        self.cleaning = None if cleaning == Cleaning() else cleaning
        self.batch_size = batch_size
        self.name = name or card.kind
        self.fingerprint = fingerprint

    @property
    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """All settings that change the masks, except threshold and cleaning."""

    @property
    def description(self) -> ModelDescription:
        """The card's facts with the settings in use.

        Tuning images are listed only if the tuned threshold or test-time augmentation is in use.
        """
        card = self.model_card
        if self.threshold != self._tuned_threshold:
            origin: dict[str, Any] = {"how": "given"}
        elif self.gain is not None:
            origin = {"how": "tuned", **self.gain.model_dump(mode="json", exclude={"threshold"})}
        else:
            origin = card.threshold_origin.model_dump(exclude_none=True)
        tuned = self.gain is not None or self.threshold == card.threshold
        cleaning = {} if self.cleaning is None else {"cleaning": self.cleaning.model_dump()}
        return ModelDescription(
            name=self.name,
            kind=card.kind,
            fingerprint=self.fingerprint,
            step=card.step,
            threshold=self.threshold,
            threshold_origin=origin,
            settings=cleaning | self._settings,
            batch_size=self.batch_size,
            training_images=card.training_images,
            trained_on_unknown=card.saw_unknown_images,
            training_perceptual_hashes=card.training_perceptual_hashes,
            tuning_images=card.tuning_images if tuned else (),
        )

    def __call__(self, image: Picture, prompt: str) -> Prediction:
        """The prediction for one prompt on one image."""
        name = Path(image).stem if isinstance(image, str | Path) else "image"
        return self.predict([Item(name, as_pixels(image)[None], (prompt,))])[0]


def device_settings(model: torch.nn.Module) -> dict[str, str]:
    """`device` and `dtype` of a model's parameters."""
    parameter = next(model.parameters())
    return {"device": str(parameter.device), "dtype": str(parameter.dtype).removeprefix("torch.")}
