"""PEFT adapters on a bundle's vision-language model: plain LoRA, and trained rows of the embeddings and the head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from vesalius.errors import CheckpointError
from vesalius.files import write_json
from vesalius.models.config_files import read_json
from vesalius.models.quantization import no_kernels_fetched
from vesalius.models.tensor_differences import list_differences
from vesalius.models.token_rows import TokenRows, find_rows
from vesalius.models.weights import read_tensors, write_tensors

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
EMBEDDINGS = "model.language_model.embed_tokens"
HEAD = "lm_head"
ROWS = ".token_adapter.trainable_tokens_delta"
"""Suffix of PEFT's name for trained rows of a matrix; despite "delta" the tensor replaces the rows."""

WITHOUT_EFFECT = set(
    "auto_mapping base_model_name_or_path inference_mode init_lora_weights lora_dropout megatron_core peft_version "
    "qalora_group_size revision task_type".split()
)
"""Fields of an adapter configuration that do not change its outputs."""


def apply_adapter(vlm: PreTrainedModel, folder: Path) -> None:
    """Load an adapter into a native model and freeze the model's own weights; module paths do not change.

    CheckpointError if the adapter is damaged, is not plain LoRA, or does not fit exactly; the model is then unusable.
    """
    with no_kernels_fetched():
        from peft import LoraConfig  # slow to import, and few bundles have an adapter

    config = _read_config(folder / CONFIG, LoraConfig().to_dict())
    tensors = read_tensors(folder / TENSORS)
    tokens = config.pop("trainable_token_indices", None)
    try:
        _inject(vlm, config)
        if tokens is not None:
            TokenRows(vlm, tokens[EMBEDDINGS]).attach_to(vlm)
    except Exception as error:  # PEFT raises many exception types for missing modules and bad values
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError.at(
            folder, f"the adapter does not fit the model ({reason})", code="adapter_mismatch"
        ) from error
    parameters = _parameters(vlm)
    shapes, expected = _shapes(tensors), _shapes(parameters)
    if wrong := list_differences(shapes, expected):
        raise CheckpointError.at(folder, f"the adapter does not fit the model: {wrong}", code="adapter_mismatch")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def write_adapter(vlm: PreTrainedModel, folder: Path) -> None:
    """Write the adapter of a native model into the new folder `folder`, as PEFT does."""
    folder.mkdir(parents=True)
    tensors = {name: parameter.detach().contiguous() for name, parameter in _parameters(vlm).items()}
    write_tensors(tensors, folder / TENSORS)
    config = {**_config_of(sizes_of(vlm)), "bias": "none", "inference_mode": True}
    if (rows := find_rows(vlm)) is not None:
        names = (EMBEDDINGS,) if rows.head is None else (EMBEDDINGS, HEAD)
        config["trainable_token_indices"] = dict.fromkeys(names, rows.ids.tolist())
    write_json(folder / CONFIG, config)


def layers_of(vlm: PreTrainedModel) -> dict[str, Any]:
    """The LoRA layers of a native model by path; empty without an adapter."""
    return {path: module for path, module in vlm.named_modules() if hasattr(module, "lora_A")}


def sizes_of(vlm: PreTrainedModel) -> dict[str, tuple[int, float]]:
    """Rank and alpha of each LoRA layer by path."""
    return {path: (each.r["default"], each.lora_alpha["default"]) for path, each in layers_of(vlm).items()}


def inject(vlm: PreTrainedModel, sizes: Mapping[str, tuple[int, float]]) -> None:
    """Add LoRA with B = 0 to the layers in `sizes` (path -> rank, alpha), and freeze all other weights."""
    _inject(vlm, {name: value for name, value in _config_of(sizes).items() if name != "peft_type"})


def _inject(vlm: PreTrainedModel, config: Mapping[str, Any]) -> None:
    with no_kernels_fetched():
        from peft import LoraConfig, inject_adapter_in_model

        inject_adapter_in_model(LoraConfig(**config), vlm)


def _config_of(sizes: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """PEFT's LoRA configuration: the most common rank and alpha as defaults, all others as patterns by layer."""
    rank, alpha = Counter(sizes.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(sizes),
        "rank_pattern": {path: r for path, (r, _) in sizes.items() if r != rank},
        "alpha_pattern": {path: a for path, (_, a) in sizes.items() if a != alpha},
    }


def _parameters(vlm: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """The adapter parameters of a native model by PEFT's name."""
    found = {
        PREFIX + name.replace(".default.", "."): parameter
        for name, parameter in vlm.named_parameters()
        if ".lora_" in name
    }
    if (rows := find_rows(vlm)) is not None:
        found[PREFIX + EMBEDDINGS + ROWS] = rows.embedding
        if rows.head is not None:
            found[PREFIX + HEAD + ROWS] = rows.head
    return found


def _read_config(path: Path, neutral: dict[str, Any]) -> dict[str, Any]:
    """The supported fields of a LoRA configuration; CheckpointError lists all others that would change the outputs."""
    config = read_json(path, "invalid_adapter")
    if not isinstance(config, dict):
        config = {}
    wanted = ("r", "lora_alpha", "target_modules")
    missing = [name for name in wanted if name not in config]
    if missing or config.get("peft_type") != "LORA":
        raise CheckpointError.at(path, f"is not a LoRA configuration with {', '.join(wanted)}", code="invalid_adapter")
    tokens = config.get("trainable_token_indices")
    if tokens is not None and not _are_rows(tokens):
        raise CheckpointError.at(
            path,
            f"trainable_token_indices must list equal token ids for {EMBEDDINGS} and, if present, {HEAD}",
            code="invalid_adapter",
            field="trainable_token_indices",
        )
    taken = (*wanted, "rank_pattern", "alpha_pattern", "trainable_token_indices")
    others = {name: value for name, value in config.items() if name not in {*taken, *WITHOUT_EFFECT, "peft_type"}}
    special = sorted(name for name, value in others.items() if value and value != neutral.get(name))
    if special:
        raise CheckpointError.at(
            path, f"only plain LoRA is supported, without {', '.join(special)}", code="invalid_adapter"
        )
    return {name: config[name] for name in taken if name in wanted or config.get(name)}


def _are_rows(tokens: Any) -> bool:
    """Whether `tokens` maps the names that `write_adapter` uses to equal lists of token ids."""
    if not isinstance(tokens, dict) or set(tokens) not in ({EMBEDDINGS}, {EMBEDDINGS, HEAD}):
        return False
    ids = tokens[EMBEDDINGS]
    return isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids) and tokens.get(HEAD, ids) == ids


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
