"""Replacement of a native model's modules by others with the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from transformers.initialization import no_init_weights

Module = TypeVar("Module", bound=nn.Module)


def replace_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Replace the submodule of `root` at `path` by `module`, keeping the training mode."""
    parent, _, name = path.rpartition(".")
    module.train(root.get_submodule(path).training)
    setattr(root.get_submodule(parent), name, module)


def rebuild(native: nn.Module, make: Callable[[], Module]) -> Module:
    """The module built by `make`, sharing the parameters and buffers of `native`, which must have the same names."""
    with torch.device("meta"), no_init_weights():
        module = make()
    module.load_state_dict(native.state_dict(keep_vars=True), assign=True)
    return module
