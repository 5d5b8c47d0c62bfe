"""What trains: one setting, and a model made into what it says."""

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
"""Name of a group -> how the names of its parameters begin; LoRA belongs to the part over which it lies."""
NEW_TOKENS = "new tokens"
"""The group of the rows of the tokens that Sa2VA adds, in the embeddings and in the head."""

LORA_PARTS: dict[Preset, tuple[str, ...]] = {
    "lora": ("language",),
    "tokens": ("language",),
    "vision": ("language", "vision"),
}
"""Preset -> the keys of `lora` that it needs; the others train no LoRA."""
CHECKPOINTABLE: dict[Preset, tuple[Checkpointed, ...]] = {
    "projector": (),
    "decoder": (),
    "lora": ("language model",),
    "tokens": ("language model",),
    "vision": ("language model", "vision encoder"),
    "full": ("language model", "vision encoder", "SAM encoder"),
}
"""Preset -> the parts that keep activations for the backward pass; a frozen part with nothing below it keeps none."""

# No mask of Sa2VA's passes through these: the object score is not used, of four maps the first, which stands for
# unambiguous clicks, is never chosen, and a bias of keys adds the same to all logits of a softmax.
WITHOUT_GRADIENT = (
    "sam.mask_decoder.pred_obj_score_head.",
    "sam.mask_decoder.output_hypernetworks_mlps.0.",
    "attn_token_to_image.k_proj.bias",
)


class LoraParts(Settings):
    """LoRA of each part that has one."""

    language: LoraSettings | None = None
    """Over the layers of the language model."""
    vision: LoraSettings | None = None
    """Over the layers of the image encoder of the vision-language half; never over what leads from it to words."""


class TrainableSettings(Settings):
    """What trains, from little to all; in a recipe the name of a level alone stands for its defaults."""

    preset: Preset
    """Each trains what those before it do, but that `full` has the weights themselves in the place of LoRA.

    `projector`: the [SEG] projector. `decoder`: also SAM's mask decoder. `lora`: also LoRA over the language model.
    `tokens`: also the rows of the added tokens in embeddings and head. `vision`: also LoRA over the image encoder.
    `full`: the weights of all that images pass through.
    """
    lora: LoraParts = LoraParts()
    """Its sizes, of the parts that the level has LoRA over."""
    quantization: Literal["4bit"] | None = None
    """QLoRA: the frozen matrices of the vision-language half in 4 bits; needs the extra `quantized`."""
    gradient_checkpointing: tuple[Checkpointed, ...] = ()
    """Parts whose layers are computed again in the backward pass, instead of keeping what they made."""
    save: Literal["merged", "adapter"] | None = None
    """What becomes of LoRA and rows when the run has ended: part of the weights, or an adapter beside them. None: merged,
    over 4 bits an adapter; over 4 bits, merged weights are those that the 4 bits stand for, at their full size."""

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {"preset": given}
        # whatever else is no level is refused with the field's own words
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
            "save": given.get("save") or _default_save(given.get("quantization")),
        }

    @model_validator(mode="after")
    def _possible(self) -> Self:
        has = [part for part, lora in self.lora if lora is not None]
        if surplus := [part for part in has if part not in LORA_PARTS.get(self.preset, ())]:
            raise ValueError(
                f"the preset {self.preset} trains no LoRA over {surplus[0]}; leave lora.{surplus[0]} out, "
                f"or take a preset that does: {', '.join(preset for preset in LORA_PARTS if surplus[0] in LORA_PARTS[preset])}"
            )
        if self.save is not None and not has:
            raise ValueError(f"the preset {self.preset} has no adapter to keep or to merge; leave save out")
        if self.quantization and self.preset == "full":
            raise ValueError(
                "weights of 4 bits cannot train; take the preset vision, which has LoRA over them"
            )
        if idle := [part for part in self.gradient_checkpointing if part not in CHECKPOINTABLE[self.preset]]:
            raise ValueError(
                f"gradient_checkpointing of the {idle[0]} saves nothing with the preset {self.preset}, where it keeps no activations"
            )
        return self

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of parameters that train."""
        if self.preset == "full":
            return TRAINABLE_PARTS["full"]
        names = {"language": "language model", "vision": "vision encoder"}
        parts = [names[part] for part in LORA_PARTS.get(self.preset, ())]
        rows = (NEW_TOKENS,) if self.trains_rows else ()
        return (*TRAINABLE_PARTS["projector" if self.preset == "projector" else "decoder"], *parts, *rows)

    @property
    def trains_rows(self) -> bool:
        """Whether rows of the vocabulary train by themselves."""
        return self.preset in ("tokens", "vision")


def _default_save(quantization: str | None) -> str:
    return "merged" if quantization is None else "adapter"


def set_trainable(
    model: TextSegModel, what: TrainableSettings | Preset, new_tokens: Sequence[int] = (), seed: int = 0
) -> dict[str, list[torch.nn.Parameter]]:
    """Make a model into what the setting says, freeze all but what trains, and return its parameters by group.

    The vision-language half is quantized, and LoRA, drawn with `seed`, and rows of the tokens `new_tokens` are laid
    over it, where they are not there yet. Before the model goes to its device. TrainingError where the model has what
    the setting does not; SettingError for LoRA over layers that it does not have.
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


def _add_adapters(
    vlm: PreTrainedModel, settings: TrainableSettings, new_tokens: Sequence[int], seed: int
) -> None:
    """Quantize a half and lay LoRA and rows over it, as the setting says; what is there already stays."""
    if settings.quantization and kind_of(vlm) is None:
        quantize(vlm, settings.quantization)
    if kind_of(vlm) != settings.quantization:
        raise TrainingError(
            f"the weights are of {kind_of(vlm)}, and trainable.quantization is {settings.quantization}"
        )
    lora = {"language model": settings.lora.language, "vision encoder": settings.lora.vision}
    wanted = {part: each for part, each in lora.items() if each is not None}
    if not wanted and layers_of(vlm):
        raise TrainingError(
            f"the model keeps a LoRA as an adapter, and with the preset {settings.preset} none trains; merge it"
        )
    if wanted:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            add_lora(vlm, wanted)
    rows = find_rows(vlm)
    if settings.trains_rows and not new_tokens:
        raise TrainingError("the model's tokenizer has none of the tokens whose rows are to train")
    if rows is not None and rows.ids.tolist() != (list(new_tokens) if settings.trains_rows else None):
        raise TrainingError(
            "the model's adapter has rows of other tokens than trainable asks for; merge it first"
        )
    if settings.trains_rows and rows is None:
        TokenRows(vlm, new_tokens).attach_to(vlm)


def _group_of(name: str, settings: TrainableSettings) -> str | None:
    """The group of a parameter that trains; None of one that is frozen."""
    if name.startswith(f"vlm.{ROWS}"):
        return NEW_TOKENS
    group = next((group for group, starts in GROUPS.items() if name.startswith(starts)), None)
    if group not in settings.groups or any(part in name for part in WITHOUT_GRADIENT):
        return None
    by_lora = name.startswith("vlm.") and settings.preset != "full"
    return group if not by_lora or ".lora_" in name else None


def _checkpoint(model: TextSegModel, parts: Collection[str]) -> None:
    """Let the layers of these parts, and of no others, be computed again in the backward pass."""
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
