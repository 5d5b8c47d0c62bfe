"""Distributed training with Accelerate (DDP or FSDP2); losses equal those of one process on the global batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, broadcast_object_list, gather_object
from torch.distributed import ProcessGroup, group

from vesalius.errors import SettingError, TrainingError
from vesalius.training.learner import Learner
from vesalius.training.settings import conflict
from vesalius.training.sharding import layer_classes, name_groups, shard, update_groups

T = TypeVar("T")

_left_groups: list[ProcessGroup | None] = []
"""References to closed process groups, which prevent a deadlock: if DDP drops the last reference, it holds the GIL while
waiting for threads of the group that may need the GIL (seen with torch 2.13)."""

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)


@dataclass(frozen=True)
class Process:
    """One of the processes of a distributed run. All processes must call collectives in the same order."""

    accelerator: Accelerator
    device: torch.device
    rank: int
    """Index of this process, from 0."""
    world_size: int
    """Number of processes."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def prepare(
        self, learner: Learner, make_optimizer: Callable[[], torch.optim.Optimizer]
    ) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """Wrap the module for training and make its optimizer.

        `learner.groups` is updated in place to the wrapped parameters, which the optimizer changes.
        """
        module, names = learner.module, name_groups(learner.module, learner.groups)
        if self.shards_on_cpu:
            shard(module)
            update_groups(module, learner.groups, names)
            return module, self.accelerator.prepare_optimizer(make_optimizer())
        if self.accelerator.distributed_type == DistributedType.FSDP:
            module._no_split_modules = layer_classes(module)  # type: ignore[assignment]  # read by Accelerate
        else:
            module.to(self.device)
        optimizer = make_optimizer()
        model, optimizer = self.accelerator.prepare(module, optimizer)
        update_groups(self.accelerator.unwrap_model(model), learner.groups, names)
        return model, optimizer

    @property
    def shards(self) -> bool:
        """Whether each process holds only a shard of the model, so that the model may exceed one device's memory."""
        return self.shards_on_cpu or self.accelerator.distributed_type == DistributedType.FSDP

    @property
    def shards_on_cpu(self) -> bool:
        """Whether the launcher requested FSDP on CPUs. Accelerate would silently use DDP, so Vesalius shards the model itself."""
        return self.accelerator.distributed_type == DistributedType.MULTI_CPU and env_flag("ACCELERATE_USE_FSDP")

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradient of the loss summed over processes; within `no_sync`, of this process's loss only."""
        self.accelerator.backward(loss * self.world_size)  # DDP and FSDP average gradients over processes

    def no_sync(self, model: torch.nn.Module, is_last: bool) -> AbstractContextManager[None]:
        """Context that skips the gradient all-reduce for every microbatch of a step but the last."""
        return nullcontext() if is_last else self.accelerator.no_sync(model)

    def clip_grad_norm(self, parameters: list[torch.nn.Parameter], max_norm: float) -> float:
        """Clip the gradient to `max_norm` and return its norm before clipping. A collective."""
        return float(self.accelerator.clip_grad_norm_(parameters, max_norm))

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in order of rank. A collective."""
        return gather_object([value]) if self.world_size > 1 else [value]

    def broadcast(self, value: T) -> T:
        """The main process's value. A collective."""
        return broadcast_object_list([value])[0] if self.world_size > 1 else value

    def in_any_process(self, value: bool) -> bool:
        """True if `value` is true in at least one process. A collective."""
        return any(self.gather(value))

    def barrier(self) -> None:
        """Wait until all processes have called `barrier`."""
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group at the end of a run."""
        if self.world_size > 1:
            _left_groups.append(group.WORLD)
            self.accelerator.end_training()


def env_flag(name: str) -> bool:
    """Whether the environment variable `name` is set to 1, true or yes."""
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


def join_processes(precision: str) -> Process:
    """Join the process group of torchrun or accelerate launch; without a launcher, a group of one process.

    Raises SettingError if the launch configuration contradicts the recipe, TrainingError if some processes do not join.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    mixed = "bf16" if precision == "bf16" else "no"
    _check_launch_configuration(precision, mixed)
    if started == 1:  # global state: an earlier run in the same process may have used another precision
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=mixed,
        # without cpu=True several CPU processes would each train alone
        cpu=True if started > 1 and not torch.cuda.is_available() else None,
        # a batch without masks does not use the mask decoder
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.num_processes != started:
        raise TrainingError(
            f"{started} processes were started and {accelerator.num_processes} joined; start them with torchrun or "
            "accelerate launch",
            code="missing_process",
        )
    if accelerator.distributed_type not in SUPPORTED:
        raise TrainingError(
            f"{accelerator.distributed_type.value} is not supported, only DDP and FSDP2; use a launch configuration of "
            "recipes/accelerate",
            code="unsupported_launch",
        )
    size = accelerator.num_processes
    process = Process(accelerator, accelerator.device, accelerator.process_index, size)
    if process.shards_on_cpu and precision != "fp32":
        raise conflict("precision", f"{precision} is not supported for FSDP on CPUs; write precision: fp32")
    return process


def _check_launch_configuration(precision: str, mixed: str) -> None:
    if (launched := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) not in ("no", mixed):
        raise conflict(
            "precision",
            f"is {precision}, but accelerate launch asks for mixed precision {launched}; write mixed_precision: 'no' in "
            "the launch configuration",
        )
    if (count := os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) != "1":
        raise conflict(
            "optim.gradient_accumulation_steps",
            f"accelerate launch asks for {count}; write {count} in the recipe, and 1 in the launch configuration",
        )
    if env_flag("ACCELERATE_USE_DEEPSPEED"):
        raise SettingError(
            "accelerate launch asks for DeepSpeed, which is not supported; recipes/accelerate/fsdp2.yaml shards like "
            "ZeRO-3, and fsdp2-offload.yaml keeps the shards in CPU memory",
            code="unsupported_launch",
        )
