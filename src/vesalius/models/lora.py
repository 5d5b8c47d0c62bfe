"""LoRA on the layers of a vision-language model: settings, injection, merging (Hu et al. 2021, arXiv 2106.09685)."""

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
    """LoRA of one component: each linear layer becomes W + alpha / rank * B @ A with two small matrices A and B."""

    rank: int = Field(default=16, ge=1)
    """Rank of the two matrices."""
    alpha: float = Field(default_factory=lambda given: 2.0 * given["rank"], gt=0)
    """Default: twice the rank, as published."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout probability of the inputs of A in training."""
    targets: tuple[str, ...] | None = None
    """Last path components of the layers with LoRA, such as q_proj; None: all linear layers of attention and MLP."""


def find_targets(vlm: PreTrainedModel, part: str, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Paths of a component's linear layers; `names` restricts them by the last path component.

    SettingError for a name that no layer of the component has.
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
            f"LoRA on the {part}: no linear layer is called {unknown[0]!r}; known: {', '.join(sorted(known))}",
            code="unknown_layer",
            field="targets",
        )
    return tuple(path for path in paths if names is None or path.rpartition(".")[2] in names)


def _layers(vlm: PreTrainedModel, part: str) -> str:
    """Path prefix of a component's layers."""
    family = family_of(vlm.config.model_type)
    return {"language model": LANGUAGE_LAYERS, "vision encoder": family.vision_layers}[part]


def add_lora(vlm: PreTrainedModel, parts: Mapping[str, LoraSettings]) -> None:
    """Add LoRA to components of a model, with B = 0 and A from torch's global generator; freeze all other weights.

    An existing adapter is kept and only its dropout is set; SettingError if its layers, ranks or alphas differ.
    """
    wanted = {path: lora for part, lora in parts.items() for path in find_targets(vlm, part, lora.targets)}
    sizes = {path: (lora.rank, lora.alpha) for path, lora in wanted.items()}
    if not sizes_of(vlm):
        inject(vlm, sizes)
    elif sizes_of(vlm) != sizes:
        raise SettingError(
            "the model's adapter differs from trainable.lora in ranks, alphas or layers; use the same values, "
            "or merge the adapter first",
            code="adapter_mismatch",
            field="trainable.lora",
        )
    for path, layer in layers_of(vlm).items():
        dropout = wanted[path].dropout
        layer.lora_dropout["default"] = nn.Dropout(dropout) if dropout else nn.Identity()


@torch.no_grad()
def merge_adapter(vlm: PreTrainedModel) -> None:
    """Merge the adapter in float32, W + alpha / rank * B @ A, and dequantize all matrices; the outputs stay the same.

    A model without an adapter is only dequantized.
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
