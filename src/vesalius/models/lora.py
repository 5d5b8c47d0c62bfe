"""LoRA over the layers of a vision-language half, to be trained or merged (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from vesalius.config import Settings
from vesalius.errors import SettingError
from vesalius.models.adapter import inject, layers_of, sizes_of
from vesalius.models.families.table import family_of
from vesalius.models.module_replacement import replace_module
from vesalius.models.quantization import QuantizedLinear, as_linear, dequantize
from vesalius.models.token_rows import find_rows

LANGUAGE_LAYERS = "model.language_model.layers."


class LoraSettings(Settings):
    """Two small matrices beside each large one of a part, W + alpha / rank times B @ A."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default_factory=lambda given: 2.0 * given["rank"], gt=0)
    """Left out: twice the rank, as published."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of the inputs of A that are left out in training."""
    targets: tuple[str, ...] | None = None
    """Last names of the linear layers that get one, such as q_proj; None: all of attention and MLP."""


def find_targets(vlm: PreTrainedModel, part: str, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Paths of the linear layers of a part that LoRA lies over, those of the last `names` only.

    SettingError for a name that the part does not have.
    """
    start = _layers(vlm, part)
    paths = [
        path.removesuffix(".base_layer")
        for path, module in vlm.named_modules()
        if path.startswith(start) and isinstance(module, nn.Linear) and ".lora_" not in path
    ]
    known = {path.rpartition(".")[2] for path in paths}
    if unknown := [name for name in names or () if name not in known]:
        raise SettingError(
            f"LoRA over the {part}: no linear layer is called {unknown[0]!r}; known: {', '.join(sorted(known))}"
        )
    return tuple(path for path in paths if names is None or path.rpartition(".")[2] in names)


def _layers(vlm: PreTrainedModel, part: str) -> str:
    """How the paths of the layers of a part begin."""
    family = family_of(vlm.config.model_type)
    return {"language model": LANGUAGE_LAYERS, "vision encoder": family.vision_layers}[part]


def add_lora(vlm: PreTrainedModel, parts: Mapping[str, LoraSettings]) -> None:
    """Lay LoRA over parts of a half, B at zero and A drawn from torch's global generator; all else is frozen.

    A half that has one already keeps it, and only its dropout is set; SettingError where that one is another.
    """
    wanted = {path: lora for part, lora in parts.items() for path in find_targets(vlm, part, lora.targets)}
    sizes = {path: (lora.rank, lora.alpha) for path, lora in wanted.items()}
    if not sizes_of(vlm):
        inject(vlm, sizes)
    elif sizes_of(vlm) != sizes:
        raise SettingError(
            "the adapter of the model has other ranks, alphas or layers than trainable asks for; "
            "ask for the same, or merge it first"
        )
    for path, layer in layers_of(vlm).items():
        dropout = wanted[path].dropout
        layer.lora_dropout["default"] = nn.Dropout(dropout) if dropout else nn.Identity()


@torch.no_grad()
def merge_adapter(vlm: PreTrainedModel) -> None:
    """Turn a half with an adapter into a plain one that computes the same: W + alpha / rank times B @ A, in float32.

    Quantized matrices become the numbers that they stand for. A half without an adapter only becomes plain.
    """
    for path, layer in layers_of(vlm).items():
        base = layer.get_base_layer()
        weight = base.plain() if isinstance(base, QuantizedLinear) else base.weight
        merged = weight.float() + layer.get_delta_weight("default").float()
        replace_module(vlm, path, as_linear(merged.to(weight.dtype), base.bias))
    dequantize(vlm)
    if (rows := find_rows(vlm)) is not None:
        rows.merge_into(vlm)
    if hasattr(vlm, "peft_config"):
        del vlm.peft_config
