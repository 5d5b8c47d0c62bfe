"""Write the LoRA of a training checkpoint as a standard PEFT adapter of a bundle's vision-language model."""

from __future__ import annotations

from pathlib import Path

from vesalius.conversion.lora import TensorWeights
from vesalius.conversion.training_checkpoint import TrainingCheckpoint
from vesalius.errors import CheckpointError
from vesalius.files import write_json
from vesalius.models.adapter import CONFIG, PREFIX, TENSORS
from vesalius.models.families.table import family_of
from vesalius.models.layout_mapping import Assembly, Rows, to_bundle
from vesalius.models.specs import ModelSpec
from vesalius.models.weights import AssembledWeights
from vesalius.tensorfiles import write_tensors


def adapter_weights(checkpoint: TrainingCheckpoint, spec: ModelSpec) -> AssembledWeights:
    """The LoRA of a training checkpoint under PEFT's names for the native model.

    If the official layout fuses query, key and value into one weight, each of them gets all of A and its rows of B.
    CheckpointError if the LoRA changes the segmenter or the projector, which adapters do not cover.
    """
    shapes = {name: tuple(lora.b.shape) for name, lora in checkpoint.lora.items()}
    factors = {
        f"{name}.{factor}": tensor
        for name, lora in checkpoint.lora.items()
        for factor, tensor in zip("AB", lora, strict=True)
    }
    assemblies = {}
    for name, assembly in to_bundle(spec, shapes)[0].items():
        module = PREFIX + _module(spec.family, name, checkpoint.path)
        source = assembly.rows[0].source
        a = checkpoint.lora[source].a
        b_rows = tuple(Rows(f"{rows.source}.B", rows.first, rows.count) for rows in assembly.rows)
        assemblies[f"{module}.lora_A.weight"] = Assembly(tuple(a.shape), (Rows(f"{source}.A", 0, len(a)),))
        assemblies[f"{module}.lora_B.weight"] = Assembly(assembly.shape, b_rows)
    return AssembledWeights(TensorWeights(factors), assemblies)


def _module(family: str, name: str, path: Path) -> str:
    """Module path in the native model of a weight of the bundle."""
    component, _, saved = name.partition(".")
    if component != "vlm":
        raise CheckpointError.at(
            path,
            f"has LoRA on {name}, but an adapter covers the vision-language model only; merge the LoRA instead",
            code="unsupported_adapter",
            field=name,
        )
    saved = family_of(family).module_name(saved)
    return saved.removesuffix(".weight")


def write_adapter(folder: Path, checkpoint: TrainingCheckpoint, spec: ModelSpec, alpha: float) -> None:
    """Write an adapter into the new `folder`; errors of `adapter_weights`; OSError is not converted."""
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
    write_tensors(folder / TENSORS, weights.tensors, weights.read)
    write_json(folder / CONFIG, config)


def _target(name: str) -> str:
    return name.removeprefix(PREFIX).rpartition(".lora_")[0]
