"""Optimizer state as one unsharded safetensors file, keyed by parameter name.

A run can therefore be resumed with a different number of shards, or unsharded. torch's format for sharded state is not
used because it contains pickle, which can execute code from the file.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor, distribute_tensor

from vesalius.errors import CheckpointError, OutputError, TrainingError
from vesalius.tensorfiles import read_header
from vesalius.training.sharding import write_full

OPTIMIZER = "optimizer.safetensors"
"""File name in a checkpoint; tensors are named `PARAMETER:STATE`, such as `...weight:exp_avg`."""
STATE_NAMES = ("step", "exp_avg", "exp_avg_sq")
"""Keys of AdamW's state for each parameter that has received a gradient."""


def write_optimizer(folder: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer, is_main: bool) -> None:
    """Gather the optimizer state tensor by tensor and write it in the main process. A collective.

    Raises OutputError if writing fails.
    """
    tensors = {
        f"{name}:{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    path = folder / OPTIMIZER
    try:
        write_full(path, tensors, is_main)
    except OSError as error:
        message = f"cannot be written ({error.strerror or error})"
        raise OutputError.at(path, message, code="write_failed") from error


def read_optimizer(folder: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore the optimizer state; each process reads the whole file and keeps its own shards.

    Raises TrainingError if the file is damaged or does not match the trainable parameters.
    """
    path = folder / OPTIMIZER
    parameters = dict(module.named_parameters())
    indices = {id(p): n for n, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, torch.Tensor]] = {}
    try:
        locations = read_header(path)
        with safe_open(path, framework="pt") as tensors:
            for name, location in locations.items():
                owner, _, key = name.rpartition(":")
                parameter = parameters.get(owner)
                index = indices.get(id(parameter))
                if parameter is None or index is None or location.shape != _shapes(parameter).get(key):
                    raise _unreadable(path, f"{name} belongs to no trained parameter of this model")
                state.setdefault(index, {})[key] = _shard_like(tensors.get_tensor(name), parameter)
    except (CheckpointError, OSError, SafetensorError) as error:
        reason = str(error).removeprefix(f"{path}: ").removeprefix("cannot be read (").removesuffix(")")
        raise _unreadable(path, reason) from error
    if not state or any(len(values) != len(STATE_NAMES) for values in state.values()):
        raise _unreadable(path, f"not every parameter has {', '.join(STATE_NAMES)}")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _unreadable(path: Path, reason: str) -> TrainingError:
    return TrainingError.at(path, f"cannot be read ({reason})", code="damaged_checkpoint")


def _shapes(parameter: torch.nn.Parameter) -> dict[str, tuple[int, ...]]:
    """Name -> shape of AdamW's state for a parameter: a scalar step count and two moments."""
    return {name: () if name == "step" else tuple(parameter.shape) for name in STATE_NAMES}


def _shard_like(tensor: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """A copy of a state tensor, sharded like its parameter; the scalar step count is replicated."""
    if isinstance(parameter, DTensor) and tensor.ndim:
        # each process has the whole tensor, so no communication is needed
        local = tensor.to(parameter.to_local().device)
        return distribute_tensor(local, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return tensor.clone()
