"""FSDP2: shard a model's parameters over processes, and gather them temporarily."""

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


def layer_classes(module: torch.nn.Module) -> list[str]:
    """Class names of the model's transformer layers, from the `_no_split_modules` of transformers."""
    named = {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    return sorted(named & {type(part).__name__ for part in module.modules()})


def shard(module: torch.nn.Module) -> None:
    """Shard every parameter in place (FSDP2): one group per transformer layer, and one for all other parameters."""
    layers = layer_classes(module)
    for part in reversed(list(module.modules())[1:]):  # inner modules first
        if type(part).__name__ in layers:
            fully_shard(part)
    fully_shard(module)


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether any parameter is sharded."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """The shard of a tensor in this process; the whole tensor if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def name_groups(module: torch.nn.Module, groups: Mapping[str, list[torch.nn.Parameter]]) -> dict[str, list[str]]:
    """Group name -> parameter names, which stay valid when sharding replaces the parameters."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {group: [names[id(p)] for p in parameters] for group, parameters in groups.items()}


def update_groups(
    module: torch.nn.Module, groups: Mapping[str, list[torch.nn.Parameter]], names: Mapping[str, list[str]]
) -> None:
    """Replace the parameters of each group in place by the module's parameters with the names in `names`."""
    current = {name.replace("_orig_mod.", ""): parameter for name, parameter in module.named_parameters()}
    for group, wanted in names.items():
        groups[group][:] = [current[name] for name in wanted]


@contextmanager
def unsharded(module: torch.nn.Module) -> Iterator[None]:
    """Context with the root module's parameters gathered, so that methods other than `forward` work. A collective."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


@contextmanager
def full_weights(module: torch.nn.Module, file: Path, is_main: bool) -> Iterator[None]:
    """Context in which the module has unsharded weights in the main process, from the temporary `file`. A collective.

    Each tensor is gathered and written before the next, so that every process needs memory for one tensor only. An
    unsharded module stays unchanged.
    """
    sharded = {name: p for name, p in module.named_parameters() if isinstance(p, DTensor)}
    if not sharded:
        yield
        return
    write_full(file, sharded, is_main)
    if not is_main:
        yield
        return
    try:
        with safe_open(file, framework="pt") as tensors:  # memory-mapped
            for name, parameter in sharded.items():
                _replace(module, name, torch.nn.Parameter(tensors.get_tensor(name), parameter.requires_grad))
        yield
    finally:
        for name, parameter in sharded.items():
            _replace(module, name, parameter)
        file.unlink(missing_ok=True)


def write_full(file: Path, tensors: Mapping[str, torch.Tensor], is_main: bool) -> None:
    """Gather tensors one by one and write them to a new safetensors file in the main process. A collective.

    Every process needs memory for one tensor only. Raises OSError if writing fails.
    """
    types = {name: TensorType(DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}

    def read(name: str) -> Iterator[Block]:
        block = _gather(tensors[name]).detach().cpu().contiguous()
        yield block.flatten().view(torch.uint8).numpy().data

    if is_main:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(file, types, read)
        return
    for name in sorted(types, key=lambda name: -ITEM_BYTES[types[name].dtype]):  # the order of write_tensors
        _gather(tensors[name])


def _gather(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _replace(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
    owner, _, last = name.rpartition(".")
    module.get_submodule(owner)._parameters[last] = parameter
