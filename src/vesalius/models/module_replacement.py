"""Replace a module of a native model by another one with the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def replace_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at a path below `root`, in training mode if its predecessor was."""
    parent, _, name = path.rpartition(".")
    module.train(root.get_submodule(path).training)
    setattr(root.get_submodule(parent), name, module)


def rebuild(native: nn.Module, make: Callable[[], Module]) -> Module:
    """The module that `make` builds, holding the very parameters and buffers of `native`, which have the same names."""
    with torch.device("meta"):
        module = make()
    module.load_state_dict(native.state_dict(keep_vars=True), assign=True)
    return module
