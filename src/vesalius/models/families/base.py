"""`Family`: the interface of a family of vision-language models. A new family is one subclass and one key table."""

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
    """A published model: the architecture fields of its official `config.json`, and its SAM 2 configuration."""

    config: Mapping[str, Any]
    sam: Callable[[], dict[str, Any]] = sam2_large
    max_tiles: int = 12


@dataclass(frozen=True)
class ImageFeatures:
    """Image features for the language model."""

    images: list[torch.Tensor]
    """Embeddings of the image tokens of each image, float (tokens, hidden)."""
    deep: list[list[torch.Tensor]] = field(default_factory=list)
    """DeepStack: for each of the first language-model layers, features of each image to add to the hidden states."""


class Family(ABC):
    """A family of vision-language models; stateless, with one instance per family in `FAMILIES`."""

    name: ClassVar[str]
    """Name of the family in model cards, and `model_type` of its native configuration."""
    model_class: ClassVar[Any]
    """The native transformers class."""
    image_marks: ClassVar[tuple[str, str, str]]
    """Text before the image tokens, the image token itself, and text after the image tokens."""
    frame_separator: ClassVar[str] = ""
    """Text between the frames of a video."""
    vision_modules: ClassVar[tuple[str, ...]]
    """Module paths of the vision encoder and of a separate multi-modal projector in the native model."""
    vision_layers: ClassVar[str]
    """Path prefix of the vision encoder's layers, the candidate targets of LoRA."""
    saved_prefixes: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Renamings by `save_pretrained`: (prefix in the module, prefix in the file)."""
    presets: ClassVar[Mapping[str, KnownModel]]
    seg_before_norm: ClassVar[bool] = False
    """Whether the hidden state of [SEG] is taken before the final norm."""
    tiled: ClassVar[bool] = False
    """Whether an image is cut into tiles."""
    system_prompt: ClassVar[str] = ""
    """Text that the official `predict_forward`, but not the training, puts before the first question."""
    image_tag: ClassVar[bool] = False
    """Whether the text given to `predict_forward` must contain `<image>` once; otherwise the image comes first."""

    @abstractmethod
    def recognizes(self, config: Mapping[str, Any]) -> bool:
        """Whether an official `config.json` describes a model of this family."""

    @abstractmethod
    def read_config(self, config: Mapping[str, Any], source: str) -> dict[str, Any]:
        """The native configuration for an official `config.json` that contains `image_token_id`.

        KeyError for a missing field; CheckpointError, starting with `source`, for an unsupported value.
        """

    def make_spec(self, config: Mapping[str, Any], sam: dict[str, Any], source: str) -> ModelSpec:
        """The spec from an official `config.json` and a SAM 2 configuration; errors as in `read_config`."""
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
        """One image as input of the vision encoder."""

    @abstractmethod
    def read_frames(self, frames: Sequence[Image.Image], spec: ModelSpec) -> Pixels:
        """Video frames as input of the vision encoder."""

    @abstractmethod
    def largest_image(self, spec: ModelSpec) -> Size:
        """(h, w) of an image with the largest possible number of tokens."""

    @abstractmethod
    def image_features(self, vlm: PreTrainedModel, batch: Batch) -> ImageFeatures:
        """Features of all images of a batch."""

    def positions(self, vlm: PreTrainedModel, batch: Batch, is_image: torch.Tensor) -> torch.Tensor:
        """Position ids of the tokens for RoPE; `is_image`, bool (b, t), marks image tokens."""
        return self.text_positions(batch.attention_mask)

    def text_positions(self, attention: torch.Tensor) -> torch.Tensor:
        """Position ids of rows without images, int64 (b, t)."""
        return count_positions(attention)

    def region_cells(self, spec: ModelSpec) -> int | None:
        """Number of cells per tile on which `mask_prompts` are marked; None if the family does not support them."""
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
    """Index of each token within its row, int64 (b, t), not counting left padding."""
    return (attention.cumsum(dim=1) - 1).clamp(min=0)


def read_rope(text: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` of a language model; transformers 4 writes `rope_scaling` and `rope_theta` instead."""
    scaling = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    theta = scaling.pop("rope_theta", None) or text.get("rope_theta")
    if theta is None:
        raise KeyError("rope_theta")
    kind = scaling.pop("rope_type", None) or scaling.get("type") or "default"
    scaling.pop("type", None)
    if kind == "su":  # older name of longrope
        kind = "longrope"
    return {"rope_type": kind, "rope_theta": float(theta), **scaling}


def pick(config: Mapping[str, Any], names: str) -> dict[str, Any]:
    """The fields of a configuration that are listed in `names`, a space-separated string."""
    return {name: config[name] for name in names.split() if name in config}
