"""Files of a bundle's component: written from memory, or linked from another bundle if the component is frozen."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from vesalius.errors import OutputError
from vesalius.models.quantization import QuantizedLinear
from vesalius.models.token_rows import PREFIX


def is_frozen(component: torch.nn.Module) -> bool:
    """Whether none of the component's own weights is trainable; its adapter does not count."""
    return not any(
        parameter.requires_grad for name, parameter in component.named_parameters() if not is_adapter_parameter(name)
    )


def is_adapter_parameter(name: str) -> bool:
    """Whether a parameter name belongs to the adapter of a component."""
    return ".lora_" in name or name.startswith(PREFIX)


def write_component(component: PreTrainedModel, folder: Path) -> None:
    """Write a component by `save_pretrained`, without its adapter and dequantized to float32.

    Quantizing the written matrices again gives the same bytes. OutputError if writing fails, for example on a full disk.
    """
    try:
        component.save_pretrained(folder, state_dict=own_weights(component))
    except SafetensorError as error:
        raise OutputError.at(folder, f"cannot be written ({error})", code="write_failed") from error


def own_weights(component: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a component by name, dequantized and without its adapter."""
    weights = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in component.state_dict().items()
        if not is_adapter_parameter(name)
    }
    for path, module in component.named_modules():
        if isinstance(module, QuantizedLinear):
            plain = path.removesuffix(".base_layer")
            weights[f"{plain}.weight"] = module.plain()
            del weights[f"{plain}.scales"]
    return weights


def link_or_copy(source: Path, folder: Path) -> None:
    """Link or copy the files of `source` into the new folder `folder`.

    Bundles in one parent folder, such as the checkpoints of a run, share files by hard links. Other files are copied,
    since a linked file would change together with its original.
    """
    folder.mkdir()
    beside = source.resolve().parents[1] == folder.resolve().parents[1]
    for file in sorted(source.iterdir()):
        put = _link if beside else shutil.copy2
        put(file, folder / file.name)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # file system without hard links
        shutil.copy2(file, target)
