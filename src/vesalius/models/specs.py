"""`ModelSpec` and `UNetSpec`: the configurations of text-prompted models and of U-Nets. Imports no torch.

A spec is stored in the card of each bundle.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from vesalius.config import Settings
from vesalius.models.prompts import PromptTemplate

TensorShape = tuple[int, ...]

SEG = "[SEG]"
IMAGE_TOKEN = "<IMG_CONTEXT>"
ADDED_TOKENS = ("<img>", "</img>", IMAGE_TOKEN, SEG, "<p>", "</p>", "<vp>", "</vp>")


class ModelSpec(Settings):
    """Configuration of a text-prompted model; `vlm` and `sam` have the content of transformers' `config.json`."""

    name: str
    family: str
    """Name of the family of vision-language models, a key of `FAMILIES`."""
    vlm: dict[str, Any]
    sam: dict[str, Any]
    tile_size: int = 448
    max_tiles: int = 12
    """Maximum number of tiles per image, for families that tile; a thumbnail is added to more than one tile."""
    seg_before_norm: bool = False
    """Whether the hidden state of [SEG] is taken before the final norm."""
    prompt: PromptTemplate = Field(default_factory=PromptTemplate)

    @property
    def sam_size(self) -> int:
        """Side of the segmenter's square input, in pixels."""
        return self.sam["image_size"]

    @property
    def text(self) -> dict[str, Any]:
        """The configuration of the language model."""
        return self.vlm["text_config"]

    @property
    def context(self) -> int:
        """Maximum number of tokens of a prompt with its answer; dynamic RoPE scaling extends the trained context."""
        rope = self.text["rope_parameters"]
        stretch = rope.get("factor", 1) if rope["rope_type"] == "dynamic" else 1
        return int(stretch * self.text["max_position_embeddings"])


class UNetShape(Settings):
    """Size of a U-Net; by default nnU-Net's with half the channels, suited to two CPU cores."""

    widths: tuple[Annotated[int, Field(ge=2)], ...] = Field(default=(16, 32, 64, 128, 128), min_length=3)
    """Channels per level, from full resolution down; each level halves height and width."""
    patch: int = Field(default=256, ge=16)
    """Side in pixels of training crops and of prediction windows."""

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        least = 2 * 2 ** (len(self.widths) - 1)
        if self.patch % (least // 2) or self.patch < least:
            raise ValueError(
                f"a patch of {self.patch} cannot be halved {len(self.widths) - 1} times; use a multiple of "
                f"{least // 2} of at least {least}, or fewer widths"
            )
        return self


class UNetSpec(UNetShape):
    """Size of a U-Net, and the phrase of each output channel."""

    phrases: tuple[str, ...] = Field(min_length=1)
