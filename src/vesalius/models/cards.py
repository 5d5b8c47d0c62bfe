"""Model cards: the file `vesalius.json` of a bundle. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from vesalius.config import Settings, make_settings
from vesalius.errors import CheckpointError, SettingError
from vesalius.models.config_files import read_json
from vesalius.models.specs import ModelSpec, UNetSpec
from vesalius.window import Window

CARD = "vesalius.json"
RANDOM_START = "random weights"
"""Beginning of the entry `start` in the lineage of a model that was trained from random weights."""
ADAPTER = "adapter"
"""Subfolder of a bundle with the LoRA adapter of its `vlm/`."""
SOURCE = "source"
"""Subfolder of a bundle with the non-weight files of the official model it was converted from."""


class ThresholdOrigin(Settings):
    """How the threshold of a bundle was chosen."""

    how: str = "default"
    data: str | None = None
    data_fingerprint: str | None = None
    metric: str | None = None
    value: float | None = None
    """Mean metric on the data at the chosen threshold."""
    n_samples: int | None = None


class TtaGain(Settings):
    """A significant gain of test-time augmentation (TTA), measured on the images used to tune the threshold."""

    views: tuple[str, ...] = Field(min_length=1)
    """Names of the augmented views, which are used in addition to the original image."""
    threshold: float = Field(gt=0, lt=1)
    """Best threshold with these views."""
    metric: str
    value: float
    """Mean metric on the data with these views at `threshold`."""
    gain: float = Field(gt=0)
    """`value` minus the mean metric without TTA at its own best threshold."""
    interval: tuple[float, float]
    """Confidence interval of the gain by cluster bootstrap; its lower limit is above 0."""
    level: float = Field(gt=0, lt=1)
    """Confidence level of `interval`: 0.95 with Bonferroni correction for the number of view sets tried."""
    data: str
    data_fingerprint: str
    n_samples: int
    n_groups: int


class ModelCard(Settings):
    """Fields common to the cards of all models."""

    kind: str
    threshold: float = Field(default=0.5, gt=0, lt=1)
    threshold_origin: ThresholdOrigin = ThresholdOrigin()
    window: Window | None = None
    """Window of the training images; None if it is unknown, as for official models."""
    phrases: tuple[str, ...] | None = None
    """Phrases of the last training run, for a model trained from random weights or from a model with such a list; None
    for an open vocabulary, as of official models and of models fine-tuned from them. Phrases of earlier runs are not
    listed, because fine-tuning can erase them."""
    step: int | None = None
    """Training step of these weights; None if they were not trained with Vesalius."""
    lineage: dict[str, Any] = Field(default_factory=dict)
    """Provenance of the weights: initial model, data fingerprint, settings."""
    training_images: tuple[str, ...] | None = ()
    """SHA-256 of the pixels of each training image; None if they are unknown, as for official models."""
    trained_on_unknown: bool = False
    """Whether the weights were also trained on unknown images, such as those of the official model before fine-tuning."""
    training_perceptual_hashes: tuple[str, ...] = ()
    """Perceptual hash of each training image, to detect near copies."""
    training_texture_hashes: tuple[str, ...] = ()
    """Texture hash of each image in `training_perceptual_hashes`, in its order, to confirm near copies; "" where it is
    unknown. Empty: all are unknown."""
    tuning_images: tuple[str, ...] = ()
    """SHA-256 of the pixels of each image used to tune the threshold and to measure the gain `tta`."""
    tta: TtaGain | None = None
    """Gain that enables test-time augmentation; None if no significant gain was measured."""
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def has_random_memory(self) -> bool:
        """Whether SAM 2's memory has random weights: the first model of the ancestry had, and training uses no memory."""
        return self._started_random

    @property
    def has_random_points(self) -> bool:
        """Whether SAM 2's point and mask prompts have random weights: as for the memory, training uses none."""
        return self._started_random

    @property
    def _started_random(self) -> bool:
        known: Any = self.lineage
        while isinstance(known, dict) and "start_lineage" in known:
            known = known["start_lineage"]
        return isinstance(known, dict) and str(known.get("start", "")).startswith(RANDOM_START)

    @property
    def near_hashes(self) -> tuple[tuple[str, str], ...]:
        """(perceptual, texture) hash of each training image; the texture hash is "" where it is unknown."""
        texture = self.training_texture_hashes or ("",) * len(self.training_perceptual_hashes)
        return tuple(zip(self.training_perceptual_hashes, texture, strict=True))

    @property
    def saw_unknown_images(self) -> bool:
        """Whether the weights were trained on images that `training_images` does not list."""
        return self.training_images is None or self.trained_on_unknown


def near_fields(hashes: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The fields of a card for (perceptual, texture) hashes, each once and sorted."""
    pairs = sorted(set(hashes))
    return {
        "training_perceptual_hashes": tuple(perceptual for perceptual, _ in pairs),
        "training_texture_hashes": tuple(texture for _, texture in pairs),
    }


class Card(ModelCard):
    """The card of a text-prompted model: everything that the files of its components do not contain."""

    kind: Literal["textseg"] = "textseg"
    spec: ModelSpec
    adapter: bool = False
    """Whether the model has a LoRA adapter in `adapter/`."""
    quantized: Literal["4bit"] | None = None
    """Quantization of the vision-language model during training; opening the bundle applies it again."""


class UNetCard(ModelCard):
    """The card of a U-Net."""

    kind: Literal["unet"] = "unet"
    spec: UNetSpec

    @model_validator(mode="before")
    @classmethod
    def _phrases_of_channels(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The known phrases are those of the output channels."""
        spec = values.get("spec")
        return {**values, "phrases": spec.phrases if isinstance(spec, UNetSpec) else dict(spec or {}).get("phrases")}


KINDS: dict[str, type[Card] | type[UNetCard]] = {"textseg": Card, "unet": UNetCard}


def read_any_card(folder: Path) -> Card | UNetCard:
    """The card of a bundle of any kind; CheckpointError if it is missing, damaged or of an unknown kind."""
    path = folder / CARD
    values = read_json(path, "invalid_card")
    kind = values.get("kind", "textseg") if isinstance(values, dict) else "textseg"
    if kind not in KINDS:
        raise CheckpointError.at(
            path, f"kind must be one of {', '.join(KINDS)}; got {kind!r}", code="invalid_card", field="kind"
        )
    try:
        return make_settings(KINDS[kind], values, str(path))
    except SettingError as error:
        raise CheckpointError(str(error), code="invalid_card", path=path, field=error.field) from error


def read_card(folder: Path) -> Card:
    """The card of a text-prompted model; CheckpointError for a U-Net, or as in `read_any_card`."""
    return check_text_prompted(read_any_card(folder), folder)


def check_text_prompted(card: Card | UNetCard, folder: Path) -> Card:
    """`card`, if it is that of a text-prompted model; else CheckpointError."""
    if not isinstance(card, Card):
        raise CheckpointError.at(
            folder, "is a U-Net, which takes no text prompts; use a text-prompted model", code="wrong_model_kind"
        )
    return card
