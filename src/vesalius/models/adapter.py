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
from vesalius.files import to_json
from vesalius.models.keymaps import SAVED_NAMES, Assembly, Rows, to_bundle
from vesalius.models.lora import TensorWeights
from vesalius.models.specs import ModelSpec
from vesalius.models.training_checkpoint import TrainingCheckpoint
from vesalius.models.weights import AssembledWeights, Weights
from vesalius.tensorfiles import write_file

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
HALVES = {"A": "lora_A", "B": "lora_B"}

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


def adapter_weights(checkpoint: TrainingCheckpoint, spec: ModelSpec) -> Weights:
    """The LoRA of a training checkpoint under PEFT's names for the native model.

    Where the official layout joins query, key and value in one weight, each gets its rows of B, and all of A.
    CheckpointError where LoRA changes the segmenter or the projector, over which there is no adapter.
    """
    shapes = {name: tuple(lora.b.shape) for name, lora in checkpoint.lora.items()}
    halves = {
        f"{name}.{half}": tensor
        for name, lora in checkpoint.lora.items()
        for half, tensor in zip(HALVES, lora, strict=True)
    }
    assemblies = {}
    for name, assembly in to_bundle(spec, shapes)[0].items():
        module = PREFIX + _module(spec.family, name, checkpoint.path)
        source = assembly.rows[0].source
        a = checkpoint.lora[source].a
        b_rows = tuple(Rows(f"{rows.source}.B", rows.first, rows.count) for rows in assembly.rows)
        assemblies[f"{module}.lora_A.weight"] = Assembly(tuple(a.shape), (Rows(f"{source}.A", 0, len(a)),))
        assemblies[f"{module}.lora_B.weight"] = Assembly(assembly.shape, b_rows)
    return AssembledWeights(TensorWeights(halves), assemblies)


def _module(family: str, name: str, path: Path) -> str:
    """Path in the native model of the layer that a weight of the bundle belongs to."""
    half, _, saved = name.partition(".")
    if half != "vlm":
        raise CheckpointError(
            f"{path}: has LoRA on {name}, and an adapter lies over the vision-language half only; merge it instead"
        )
    for inside, outside in SAVED_NAMES[family]:
        if saved.startswith(outside):
            saved = inside + saved.removeprefix(outside)
            break
    return saved.removesuffix(".weight")


def write_adapter(folder: Path, checkpoint: TrainingCheckpoint, spec: ModelSpec, alpha: float) -> None:
    """Write an adapter into `folder`, which is made. Errors as for `adapter_weights`; OSError passes through."""
    weights = adapter_weights(checkpoint, spec)
    config = {
        "peft_type": "LORA",
        "r": checkpoint.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "target_modules": sorted({_target(name) for name in weights.tensors}),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "task_type": None,
        "base_model_name_or_path": None,
    }
    folder.mkdir(parents=True)
    write_file(folder / TENSORS, weights.tensors, weights.read)
    (folder / CONFIG).write_text(to_json(config, indent=2) + "\n", encoding="utf-8")


def _target(name: str) -> str:
    return name.removeprefix(PREFIX).rpartition(".lora_")[0]


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
