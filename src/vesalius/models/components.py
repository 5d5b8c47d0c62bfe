"""The files of one half of a bundle: written from memory, or taken over from a bundle where the half did not train."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel

from vesalius.models.quantization import QuantizedLinear
from vesalius.models.token_rows import PREFIX


def is_frozen(half: torch.nn.Module) -> bool:
    """Whether no weight of the half itself trains, whatever an adapter over it does."""
    return not any(
        parameter.requires_grad for name, parameter in half.named_parameters() if not is_of_adapter(name)
    )


def is_of_adapter(name: str) -> bool:
    """Whether a parameter of a half, by its name, is of the adapter that lies over it."""
    return ".lora_" in name or name.startswith(PREFIX)


def write_half(half: PreTrainedModel, folder: Path) -> None:
    """Write a half as transformers does, without the adapter over it; quantized matrices as the float32 they stand for.

    Those become the same bytes when they are quantized again.
    """
    half.save_pretrained(folder, state_dict=own_weights(half))


def own_weights(half: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Name -> each weight of a half, as if there were no adapter over it and nothing were quantized."""
    weights = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in half.state_dict().items()
        if not is_of_adapter(name)
    }
    for path, module in half.named_modules():
        if isinstance(module, QuantizedLinear):
            plain = path.removesuffix(".base_layer")
            weights[f"{plain}.weight"] = module.plain()
            del weights[f"{plain}.scales"]
    return weights


def take_over(source: Path, folder: Path) -> None:
    """Put the files of the folder `source` into `folder`, which is made.

    Where both are of bundles in one folder, as the checkpoints of a run are, the files are linked and take their room
    once; else they are copied, since a stranger may write into them.
    """
    folder.mkdir()
    beside = source.resolve().parents[1] == folder.resolve().parents[1]
    for file in sorted(source.iterdir()):
        put = _link if beside else shutil.copy2
        put(file, folder / file.name)


def _link(file: Path, place: Path) -> None:
    try:
        os.link(file, place)
    except OSError:  # a file system without links
        shutil.copy2(file, place)
