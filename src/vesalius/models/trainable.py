"""The setting `trainable`: freeze a model, and add LoRA, token rows, quantization and gradient checkpointing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Literal, Self

import torch
from pydantic import model_validator
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from vesalius.config import Settings
from vesalius.errors import TrainingError
from vesalius.models.adapter import layers_of
from vesalius.models.lora import LoraSettings, add_lora
from vesalius.models.parameter_groups import PARTS, TRAINABLE_PARTS
from vesalius.models.quantization import kind_of, quantize
from vesalius.models.textseg import TextSegModel
from vesalius.models.token_rows import PREFIX as ROWS
from vesalius.models.token_rows import TokenRows, find_rows
from vesalius.models.vlm import vision_encoder_of

Preset = Literal["projector", "decoder", "lora", "tokens", "vision", "full"]
Checkpointed = Literal["language model", "vision encoder", "SAM encoder"]

GROUPS = {name: PARTS[name] for name in TRAINABLE_PARTS["full"]}
"""Group name -> prefixes of its parameter names; LoRA belongs to the group of the component it adapts."""
NEW_TOKENS = "new tokens"
"""Group of the embedding and head rows of the tokens that Sa2VA adds."""

LORA_PARTS: dict[Preset, tuple[str, ...]] = {
    "lora": ("language",),
    "tokens": ("language",),
    "vision": ("language", "vision"),
}
"""Preset -> its keys of `lora`; the other presets train no LoRA."""
CHECKPOINTABLE: dict[Preset, tuple[Checkpointed, ...]] = {
    "projector": (),
    "decoder": (),
    "lora": ("language model",),
    "tokens": ("language model",),
    "vision": ("language model", "vision encoder"),
    "full": ("language model", "vision encoder", "SAM encoder"),
}
"""Preset -> components that store activations for the backward pass, so that checkpointing saves memory."""

# Parameters without influence on Sa2VA's masks: the object score is unused, the first of four maps (for unambiguous clicks)
# is never chosen, and a key bias adds the same value to all logits of a softmax.
WITHOUT_GRADIENT = (
    "sam.mask_decoder.pred_obj_score_head.",
    "sam.mask_decoder.output_hypernetworks_mlps.0.",
    "attn_token_to_image.k_proj.bias",
)


class LoraParts(Settings):
    """LoRA sizes per component."""

    language: LoraSettings | None = None
    """LoRA on the layers of the language model."""
    vision: LoraSettings | None = None
    """LoRA on the layers of the vision encoder of the vision-language model, not on its multi-modal projector."""


class TrainableSettings(Settings):
    """Trainable parameters, by preset. In a recipe, `trainable: PRESET` selects the preset's defaults."""

    preset: Preset
    """Each preset also trains everything of the previous presets; `full` trains weights instead of LoRA.

    `projector`: the [SEG] projector. `decoder`: also SAM's mask decoder. `lora`: also LoRA on the language model.
    `tokens`: also the rows of the added tokens in embeddings and head. `vision`: also LoRA on the vision encoder.
    `full`: all weights that process images or text.
    """
    lora: LoraParts = LoraParts()
    """LoRA sizes, for the components that the preset adapts."""
    quantization: Literal["4bit"] | None = None
    """QLoRA: the frozen matrices of the vision-language model in 4 bits; needs the extra `quantization`."""
    gradient_checkpointing: tuple[Checkpointed, ...] = ()
    """Components whose layers are recomputed in the backward pass instead of storing activations."""
    save: Literal["merged", "adapter"] | None = None
    """How LoRA and token rows are saved at the end: merged into the weights, or as an adapter. None: merged, or an adapter
    for 4-bit weights. Merging into 4-bit weights saves dequantized weights at full size."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {"preset": given}
        # for other values the field reports its own error
        if not isinstance(given, dict) or given.get("preset") not in [*LORA_PARTS]:
            return given
        lora = given.get("lora")
        if isinstance(lora, LoraParts):
            lora = dict(lora)
        if not isinstance(lora, dict | None):
            return given
        default = dict.fromkeys(LORA_PARTS[given["preset"]], LoraSettings())
        written = {**default, **{part: each for part, each in (lora or {}).items() if each is not None}}
        return {
            **given,
            "lora": written,
            "save": given.get("save") or ("adapter" if given.get("quantization") else "merged"),
        }

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        has = [part for part, lora in self.lora if lora is not None]
        if surplus := [part for part in has if part not in LORA_PARTS.get(self.preset, ())]:
            raise ValueError(
                f"preset {self.preset} trains no LoRA on {surplus[0]}; remove lora.{surplus[0]}, "
                f"or use a preset that does: {', '.join(preset for preset in LORA_PARTS if surplus[0] in LORA_PARTS[preset])}"
            )
        if self.save is not None and not has:
            raise ValueError(f"preset {self.preset} has no adapter to save or merge; remove save")
        if self.quantization and self.preset == "full":
            raise ValueError("4-bit weights cannot train; use preset vision, which trains LoRA on them")
        if idle := [part for part in self.gradient_checkpointing if part not in CHECKPOINTABLE[self.preset]]:
            raise ValueError(
                f"gradient_checkpointing of the {idle[0]} saves no memory with preset {self.preset}, which stores no activations there"
            )
        return self

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the trained parameter groups."""
        if self.preset == "full":
            return TRAINABLE_PARTS["full"]
        names = {"language": "language model", "vision": "vision encoder"}
        parts = [names[part] for part in LORA_PARTS.get(self.preset, ())]
        rows = (NEW_TOKENS,) if self.trains_rows else ()
        return (*TRAINABLE_PARTS["projector" if self.preset == "projector" else "decoder"], *parts, *rows)

    @property
    def trains_rows(self) -> bool:
        """Whether the rows of added tokens train."""
        return self.preset in ("tokens", "vision")


def set_trainable(
    model: TextSegModel, what: TrainableSettings | Preset, new_tokens: Sequence[int] = (), seed: int = 0
) -> dict[str, list[torch.nn.Parameter]]:
    """Apply the setting to a model: freeze all other parameters and return the trained ones by group.

    Quantizes the vision-language model and adds LoRA (initialized with `seed`) and rows for `new_tokens`, unless they are
    there already. Call it before the model moves to its device. TrainingError if the model's adapter or quantization
    contradicts the setting, SettingError for LoRA on layers that do not exist.
    """
    settings = TrainableSettings.model_validate(what)
    _add_adapters(model.vlm, settings, new_tokens, seed)
    chosen: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        group = _group_of(name, settings)
        parameter.requires_grad_(group is not None)
        if group is not None:
            chosen.setdefault(group, []).append(parameter)
    _checkpoint(model, settings.gradient_checkpointing)
    return chosen


def _add_adapters(vlm: PreTrainedModel, settings: TrainableSettings, new_tokens: Sequence[int], seed: int) -> None:
    """Quantize the vision-language model and add LoRA and token rows, unless they are there already."""
    if settings.quantization and kind_of(vlm) is None:
        quantize(vlm, settings.quantization)
    if kind_of(vlm) != settings.quantization:
        raise _mismatch(
            f"its weights are {kind_of(vlm) or 'not quantized'}, not {settings.quantization}", "quantization"
        )
    lora = {"language model": settings.lora.language, "vision encoder": settings.lora.vision}
    wanted = {part: each for part, each in lora.items() if each is not None}
    if not wanted and layers_of(vlm):
        raise _mismatch(
            f"it has a LoRA adapter, which preset {settings.preset} does not train; merge it first", "preset"
        )
    if wanted:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            add_lora(vlm, wanted)
    rows = find_rows(vlm)
    if settings.trains_rows and not new_tokens:
        raise _mismatch(f"its tokenizer has none of the tokens that preset {settings.preset} trains", "preset")
    if rows is not None and rows.ids.tolist() != (list(new_tokens) if settings.trains_rows else None):
        raise _mismatch("its adapter has rows of other tokens; merge it first", "preset")
    if settings.trains_rows and rows is None:
        TokenRows(vlm, new_tokens).attach_to(vlm)


def _mismatch(reason: str, field: str) -> TrainingError:
    message = f"the model does not fit the setting trainable: {reason}"
    return TrainingError(message, code="adapter_mismatch", field=f"trainable.{field}")


def _group_of(name: str, settings: TrainableSettings) -> str | None:
    """The group of a trained parameter; None for a frozen one."""
    if name.startswith(f"vlm.{ROWS}"):
        return NEW_TOKENS
    group = next((group for group, starts in GROUPS.items() if name.startswith(starts)), None)
    if group not in settings.groups or any(part in name for part in WITHOUT_GRADIENT):
        return None
    by_lora = name.startswith("vlm.") and settings.preset != "full"
    return group if not by_lora or ".lora_" in name else None


def _checkpoint(model: TextSegModel, parts: Collection[str]) -> None:
    """Switch gradient checkpointing on for the layers of these components, and off for others."""
    modules = {
        "language model": model.vlm.model.language_model,
        "vision encoder": vision_encoder_of(model.vlm),
        "SAM encoder": model.sam.vision_encoder,
    }
    for part, module in modules.items():
        for layer in module.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.gradient_checkpointing = part in parts
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
