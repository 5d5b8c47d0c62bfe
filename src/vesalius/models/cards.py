"""`vesalius.json`: what a bundle says of its model, of either kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vesalius.config import Settings, make_settings
from vesalius.errors import CheckpointError, SettingError
from vesalius.models.specs import ModelSpec, UNetSpec

CARD = "vesalius.json"
ADAPTER = "adapter"
"""Folder of a bundle with a LoRA adapter over its `vlm/`."""
SOURCE = "source"
"""Folder of a bundle with the small files of the official folder it was converted from."""


class ThresholdOrigin(Settings):
    """Where the threshold of a bundle comes from."""

    how: str = "default"
    data: str | None = None
    data_fingerprint: str | None = None
    metric: str | None = None
    value: float | None = None
    """Mean of the metric on those data at this threshold."""
    n_samples: int | None = None


class TtaGain(Settings):
    """A gain of test-time augmentation that was measured, on the images that the threshold was found on."""

    views: tuple[str, ...] = Field(min_length=1)
    """Beside the plain one."""
    threshold: float = Field(gt=0, lt=1)
    """The best with these views."""
    metric: str
    value: float
    """Mean of the metric on those data, with these views at this threshold."""
    gain: float = Field(gt=0)
    """That less the mean of the plain view at its own best threshold."""
    interval: tuple[float, float]
    """Of the gain, by the cluster bootstrap; all of it is above 0."""
    level: float = Field(gt=0, lt=1)
    """Of the interval: 0.95, corrected for the choices of views that were tried together (Bonferroni)."""
    data: str
    data_fingerprint: str
    n_samples: int
    n_groups: int


class ModelCard(Settings):
    """What is said of a model of any kind."""

    kind: str
    threshold: float = Field(default=0.5, gt=0, lt=1)
    threshold_origin: ThresholdOrigin = ThresholdOrigin()
    step: int | None = None
    """Training step of these weights; None where they were not trained here."""
    lineage: dict[str, Any] = Field(default_factory=dict)
    """What made the weights: starting model, data fingerprint, settings."""
    training_images: tuple[str, ...] | None = ()
    """SHA-256 of the pixels of each image that the weights were trained on; None where nobody knows, as of official
    models."""
    trained_on_unknown: bool = False
    """Whether the weights were trained on other images, too, of which nobody knows: those of the official model with which
    fine-tuning began."""
    training_perceptual_hashes: tuple[str, ...] = ()
    """Perceptual hash of each of them, by which near copies are found."""
    tuning_images: tuple[str, ...] = ()
    """SHA-256 of the pixels of each image that the threshold was found on, and the gain of `tta` measured."""
    tta: TtaGain | None = None
    """What allows test-time augmentation; None where no gain was measured."""
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def saw_unknown_images(self) -> bool:
        """Whether the weights were trained on images that `training_images` does not name."""
        return self.training_images is None or self.trained_on_unknown


class Card(ModelCard):
    """Of a text-prompted model: all that the two halves' own files do not say."""

    kind: Literal["textseg"] = "textseg"
    spec: ModelSpec
    adapter: bool = False
    """Whether a LoRA lies beside the weights, in `adapter/`; without it they are another model."""
    quantized: Literal["4bit"] | None = None
    """What the matrices of the vision-language half were when the rest was trained over them, and are when it opens."""


class UNetCard(ModelCard):
    """Of a U-Net."""

    kind: Literal["unet"] = "unet"
    spec: UNetSpec


KINDS: dict[str, type[Card] | type[UNetCard]] = {"textseg": Card, "unet": UNetCard}


def read_any_card(folder: Path) -> Card | UNetCard:
    """The card of a bundle of either kind; CheckpointError for what is missing, damaged or of an unknown kind."""
    path = folder / CARD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); is {folder} a bundle?") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is not the JSON of a model card") from error
    kind = values.get("kind", "textseg") if isinstance(values, dict) else "textseg"
    if kind not in KINDS:
        raise CheckpointError(f"{path}: kind: is {kind!r}; known here: {', '.join(KINDS)}")
    try:
        return make_settings(KINDS[kind], values, str(path))
    except SettingError as error:
        raise CheckpointError(str(error)) from error


def read_card(folder: Path) -> Card:
    """The card of a text-prompted model; CheckpointError for a U-Net, and as for `read_any_card`."""
    card = read_any_card(folder)
    if not isinstance(card, Card):
        raise CheckpointError(
            f"{folder}: is a U-Net, which has no language and no SAM 2; name a text-prompted model"
        )
    return card
