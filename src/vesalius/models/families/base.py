"""`Family`: all that differs between families of vision-language models. A new family is one subclass and one key table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers import PreTrainedModel

from vesalius.masks import Size
from vesalius.models.batch import Batch
from vesalius.models.keymaps import KeyRule
from vesalius.models.pixels import Pixels
from vesalius.models.prompts import PromptTemplate
from vesalius.models.sam_config import sam2_large
from vesalius.models.specs import ModelSpec


@dataclass(frozen=True)
class KnownModel:
    """A known model: the fields of its official `config.json` that decide its shape, and its segmenter."""

    config: Mapping[str, Any]
    sam: Callable[[], dict[str, Any]] = sam2_large
    max_tiles: int = 12


@dataclass(frozen=True)
class ImageFeatures:
    """Image features for the language model."""

    images: list[torch.Tensor]
    """For each image float (tokens, hidden): the embeddings of its image tokens."""
    deep: list[list[torch.Tensor]] = field(default_factory=list)
    """For some first layers of the language model: features of each image that are added to the hidden states."""


class Family(ABC):
    """A family of vision-language models. Instances hold no state; `FAMILIES` has one of each."""

    name: ClassVar[str]
    """The family in a model card, and `model_type` of the native configuration."""
    model_class: ClassVar[Any]
    """The native transformers class."""
    image_marks: ClassVar[tuple[str, str, str]]
    """Text before the tokens of an image, the image token, and text after."""
    frame_separator: ClassVar[str] = ""
    """Text between the frames of a video."""
    vision_modules: ClassVar[tuple[str, ...]]
    """Paths in the native model of the vision encoder, and of a projector beside it."""
    vision_layers: ClassVar[str]
    """Prefix of the paths of the vision encoder's layers, the possible targets of LoRA."""
    saved_prefixes: ClassVar[tuple[tuple[str, str], ...]] = ()
    """(prefix in the module, prefix in the file) of names that `save_pretrained` changes."""
    presets: ClassVar[Mapping[str, KnownModel]]
    seg_before_norm: ClassVar[bool] = False
    """Whether the hidden state of [SEG] is taken before the last norm."""
    tiled: ClassVar[bool] = False
    """Whether an image is cut into tiles."""
    system_prompt: ClassVar[str] = ""
    """Text that the official `predict_forward` puts before the first question; training does not."""
    image_tag: ClassVar[bool] = False
    """Whether an official text must contain `<image>` once; otherwise the image comes first."""

    @abstractmethod
    def recognizes(self, config: Mapping[str, Any]) -> bool:
        """Whether an official `config.json` is of this family."""

    @abstractmethod
    def read_config(self, config: Mapping[str, Any], source: str) -> dict[str, Any]:
        """The native configuration of an official `config.json` with `image_token_id`.

        KeyError for a missing field; CheckpointError, beginning with `source`, for an unsupported value.
        """

    def make_spec(self, config: Mapping[str, Any], sam: dict[str, Any], source: str) -> ModelSpec:
        """The spec of an official `config.json` and of the configuration of its segmenter; errors as `read_config`."""
        return ModelSpec(
            name="Sa2VA of an unpublished size",
            family=self.name,
            vlm=self.read_config(config, source),
            sam=sam,
            seg_before_norm=self.seg_before_norm,
            prompt=PromptTemplate(chat=config["template"]),
        )

    @abstractmethod
    def rules(self, spec: ModelSpec) -> Sequence[KeyRule]:
        """The key table of the vision-language model."""

    @abstractmethod
    def read_image(self, image: Image.Image, spec: ModelSpec) -> Pixels:
        """One image as the vision encoder takes it."""

    @abstractmethod
    def read_frames(self, frames: Sequence[Image.Image], spec: ModelSpec) -> Pixels:
        """Frames of a video as the vision encoder takes them."""

    @abstractmethod
    def largest_image(self, spec: ModelSpec) -> Size:
        """(h, w) of an image with the largest possible number of tokens."""

    @abstractmethod
    def image_features(self, vlm: PreTrainedModel, batch: Batch) -> ImageFeatures:
        """Features of all images of a batch."""

    def positions(self, vlm: PreTrainedModel, batch: Batch, is_image: torch.Tensor) -> torch.Tensor:
        """Position of each token for the rotary embedding; `is_image` bool (b, t) marks image tokens."""
        return self.text_positions(batch.attention_mask)

    def text_positions(self, attention: torch.Tensor) -> torch.Tensor:
        """The same for rows without images, int64 (b, t)."""
        return count_positions(attention)

    def region_cells(self, spec: ModelSpec) -> int | None:
        """Number of cells of a tile that regions of a text are marked on; None if the family knows no regions."""
        return None

    def saved_name(self, module_name: str) -> str:
        """Name in `vlm/*.safetensors` of a tensor of the native module."""
        return _with_prefix(module_name, self.saved_prefixes)

    def module_name(self, saved_name: str) -> str:
        """Name in the native module of a tensor in `vlm/*.safetensors`."""
        return _with_prefix(saved_name, [(saved, inside) for inside, saved in self.saved_prefixes])

    def vision_encoder(self, vlm: PreTrainedModel) -> torch.nn.Module:
        """The vision encoder of the native model."""
        return vlm.get_submodule(self.vision_modules[0])


def _with_prefix(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    for old, new in pairs:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def count_positions(attention: torch.Tensor) -> torch.Tensor:
    """Index of each token in its own row, int64 (b, t), not counting padding on the left."""
    return (attention.cumsum(dim=1) - 1).clamp(min=0)


def read_rope(text: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` of a language model; transformers 4 writes `rope_scaling` and `rope_theta` instead."""
    scaling = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    theta = scaling.pop("rope_theta", None) or text.get("rope_theta")
    if theta is None:
        raise KeyError("rope_theta")
    kind = scaling.pop("rope_type", None) or scaling.get("type") or "default"
    scaling.pop("type", None)
    if kind == "su":  # the older name of the same method
        kind = "longrope"
    return {"rope_type": kind, "rope_theta": float(theta), **scaling}


def pick(config: Mapping[str, Any], names: str) -> dict[str, Any]:
    """The named fields that a configuration has; `names` is separated by spaces."""
    return {name: config[name] for name in names.split() if name in config}
