"""What the optimizer remembers, on disk: whole tensors by the names of their parameters, however these lie in memory.

A run may therefore go on in another way than it began: in shards, in other shards, or whole. A safetensors file holds
no code; torch's own format for what lies in shards is opened with pickle, which executes what a file says.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor, distribute_tensor

from vesalius.errors import CheckpointError, OutputError, TrainingError
from vesalius.tensorfiles import read_header
from vesalius.training.sharding import write_whole

OPTIMIZER = "optimizer.safetensors"
"""Its name in a checkpoint. A tensor in it is called as its parameter, a colon, and what it is: `...weight:exp_avg`."""
REMEMBERED = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW remembers of each parameter that ever had a gradient."""


def write_optimizer(
    folder: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer, is_main: bool
) -> None:
    """Write what is remembered of the module's parameters: the main process, tensor by tensor. A collective.

    OutputError where the disk says no.
    """
    state = optimizer.state
    tensors = {
        f"{name}:{key}": value
        for name, parameter in module.named_parameters()
        for key, value in state.get(parameter, {}).items()
    }
    path = folder / OPTIMIZER
    try:
        write_whole(path, tensors, is_main)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def read_optimizer(folder: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer remember what `write_optimizer` wrote; each process reads it all and keeps its own part.

    TrainingError where the file is damaged or is not about these parameters.
    """
    path = folder / OPTIMIZER
    parameters = dict(module.named_parameters())
    moved = {id(p): n for n, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, torch.Tensor]] = {}
    try:
        places = read_header(path)
        with safe_open(path, framework="pt") as tensors:
            for name, place in places.items():
                of, _, key = name.rpartition(":")
                parameter = parameters.get(of)
                number = moved.get(id(parameter))
                if parameter is None or number is None or place.shape != _shapes(parameter).get(key):
                    raise TrainingError(f"{path}: cannot be read ({name} is not of what trains here)")
                state.setdefault(number, {})[key] = _lie_as(tensors.get_tensor(name), parameter)
    except (CheckpointError, OSError, SafetensorError) as error:
        reason = str(error).removeprefix(f"{path}: ").removeprefix("cannot be read (").removesuffix(")")
        raise TrainingError(f"{path}: cannot be read ({reason})") from error
    if not state or any(len(remembered) != len(REMEMBERED) for remembered in state.values()):
        raise TrainingError(f"{path}: cannot be read (it lacks some of what AdamW remembers of a parameter)")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _shapes(parameter: torch.nn.Parameter) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what AdamW remembers of a parameter: a count of steps, and two averages."""
    return {name: () if name == "step" else tuple(parameter.shape) for name in REMEMBERED}


def _lie_as(tensor: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """A copy of a tensor, in shards where its parameter lies in shards; a count of steps stays whole."""
    if isinstance(parameter, DTensor) and tensor.ndim:
        # each process has the whole of it, so nothing has to be sent
        here = tensor.to(parameter.to_local().device)
        return distribute_tensor(here, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return tensor.clone()
