"""A LoRA that is kept and not merged: a standard PEFT adapter over the vision-language half of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from vesalius.errors import CheckpointError

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."

NO_MATTER = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "init_lora_weights",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}
"""Fields of an adapter's configuration that do not change what it computes."""


def apply_adapter(vlm: PreTrainedModel, folder: Path) -> None:
    """Put an adapter into a native model, whose own weights are frozen by it; paths of modules stay.

    CheckpointError where the adapter is damaged, computes something else than LoRA, or does not fit exactly; the
    model is of no use then.
    """
    from peft import LoraConfig, inject_adapter_in_model  # slow to import, and few bundles have an adapter

    config = _read_config(folder / CONFIG, LoraConfig().to_dict())
    try:
        tensors = safetensors.torch.load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / TENSORS}: cannot be opened ({error})") from error
    try:
        inject_adapter_in_model(LoraConfig(**config), vlm)
    except Exception as error:  # names of modules that are not there, and numbers that are none
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: does not fit the model ({reason})") from error
    parameters = {
        PREFIX + name.replace(".default.", "."): parameter
        for name, parameter in vlm.named_parameters()
        if ".lora_" in name
    }
    _check_fit(folder, parameters, tensors)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _read_config(path: Path, neutral: dict[str, Any]) -> dict[str, Any]:
    """Rank, alpha and target of a LoRA; whatever else would change the result is refused by name."""
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: is not the JSON of an adapter") from error
    wanted = ("r", "lora_alpha", "target_modules")
    missing = [name for name in wanted if name not in config]
    if missing or config.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: is not a LoRA with {', '.join(wanted)}")
    others = {name: value for name, value in config.items() if name not in {*wanted, *NO_MATTER, "peft_type"}}
    special = sorted(name for name, value in others.items() if value and value != neutral.get(name))
    if special:
        raise CheckpointError(f"{path}: {', '.join(special)} is not supported, only plain LoRA is")
    return {name: config[name] for name in wanted}


def _check_fit(folder: Path, model: dict[str, torch.nn.Parameter], file: dict[str, torch.Tensor]) -> None:
    problems = [
        f"{name}: {_shape(file, name)} in the file, {_shape(model, name)} in the model"
        for name in sorted(model.keys() | file.keys())
        if _shape(file, name) != _shape(model, name)
    ]
    if problems:
        listed = "\n  ".join(problems[:10])
        raise CheckpointError(f"{folder}: {len(problems)} tensors do not fit the model\n  {listed}")


def _shape(tensors: dict[str, Any], name: str) -> tuple[int, ...] | str:
    return tuple(tensors[name].shape) if name in tensors else "absent"
