"""A module whose parameters lie in shards, a part of each in every process (FSDP2), and how it is whole again for a moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from vesalius.tensorfiles import ITEM_BYTES, Block, TensorType, write_tensors

DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bool: "BOOL",
}


def blocks_of(module: torch.nn.Module) -> list[str]:
    """Names of the classes of a model's layers that transformers calls indivisible, as far as it has such layers."""
    named = {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    return sorted(named & {type(part).__name__ for part in module.modules()})


def shard(module: torch.nn.Module) -> None:
    """Cut every parameter into shards, in place: layer by layer of its transformers, and the rest together."""
    blocks = blocks_of(module)
    for part in reversed(list(module.modules())[1:]):  # inner ones first
        if type(part).__name__ in blocks:
            fully_shard(part)
    fully_shard(module)


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether any parameter lies in shards."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def own_shard(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor: all of one that is not in shards."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def name_groups(
    module: torch.nn.Module, groups: Mapping[str, list[torch.nn.Parameter]]
) -> dict[str, list[str]]:
    """Name of a group -> the names of its parameters, which outlive the tensors."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {group: [names[id(p)] for p in parameters] for group, parameters in groups.items()}


def follow(
    module: torch.nn.Module,
    groups: Mapping[str, list[torch.nn.Parameter]],
    named: Mapping[str, list[str]],
) -> None:
    """Put the parameters that took the place of others into the groups, by their names."""
    found = {name.replace("_orig_mod.", ""): parameter for name, parameter in module.named_parameters()}
    for group, names in named.items():
        groups[group][:] = [found[name] for name in names]


@contextmanager
def readable(module: torch.nn.Module) -> Iterator[None]:
    """The module with what its root holds in whole, so that its methods work, not `forward` alone. A collective."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


@contextmanager
def whole(module: torch.nn.Module, file: Path, is_main: bool) -> Iterator[None]:
    """The module with whole parameters in the main process, read from `file`, which is written first and removed.

    A collective of which no process needs more memory than for one tensor: each is gathered, written and let go of
    before the next. A module that is not sharded is left alone.
    """
    sharded = {name: p for name, p in module.named_parameters() if isinstance(p, DTensor)}
    if not sharded:
        yield
        return
    write_whole(file, sharded, is_main)
    if not is_main:
        yield
        return
    try:
        with safe_open(file, framework="pt") as tensors:  # mapped, not read
            for name, parameter in sharded.items():
                _put(module, name, torch.nn.Parameter(tensors.get_tensor(name), parameter.requires_grad))
        yield
    finally:
        for name, parameter in sharded.items():
            _put(module, name, parameter)
        file.unlink(missing_ok=True)


def write_whole(file: Path, tensors: Mapping[str, torch.Tensor], is_main: bool) -> None:
    """Write tensors to a new safetensors file, in the main process; those in shards are gathered one after the other.

    A collective, of which no process needs more memory than for one tensor. OSError passes through.
    """
    types = {name: TensorType(DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}

    def read(name: str) -> Iterator[Block]:
        block = _gathered(tensors[name]).detach().cpu().contiguous()
        yield block.flatten().view(torch.uint8).numpy().data

    if is_main:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(file, types, read)
        return
    for name in sorted(types, key=lambda name: -ITEM_BYTES[types[name].dtype]):  # as write_tensors asks
        _gathered(tensors[name])


def _gathered(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _put(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
    owner, _, last = name.rpartition(".")
    module.get_submodule(owner)._parameters[last] = parameter
