"""The processes that train one model together: Accelerate's, led so that their losses are those of one process."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    broadcast_object_list,
    gather_object,
)
from torch.distributed import ProcessGroup, group

from vesalius.errors import SettingError, TrainingError
from vesalius.training.learner import Learner
from vesalius.training.sharding import blocks_of, follow, name_groups, shard

T = TypeVar("T")

_left: list[ProcessGroup | None] = []
"""Groups that were left. DDP would let go of the last reference with Python locked and wait for the group's threads,
which may wait for Python to let go of a tensor (seen with torch 2.13); Python itself lets go without being locked."""

WAYS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)


@dataclass(frozen=True)
class Engine:
    """One of the processes that train together. Collectives are called by all of them, in the same order."""

    accelerator: Accelerator

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.accelerator.device

    @property
    def rank(self) -> int:
        """This one's number, from 0."""
        return self.accelerator.process_index

    @property
    def ranks(self) -> int:
        """How many there are."""
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this one writes the run folder."""
        return self.accelerator.is_main_process

    def prepare(
        self, learner: Learner, make_optimizer: Callable[[], torch.optim.Optimizer]
    ) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """The wrapped module, to be called, and its optimizer. The learner's groups hold what the optimizer moves."""
        module, named = learner.module, name_groups(learner.module, learner.groups)
        if self.shards_itself:
            shard(module)
            follow(module, learner.groups, named)
            return module, self.accelerator.prepare_optimizer(make_optimizer())
        if self.accelerator.distributed_type == DistributedType.FSDP:
            module._no_split_modules = blocks_of(module)  # type: ignore[assignment]  # asked for by Accelerate
        else:
            module.to(self.device)
        optimizer = make_optimizer()
        model, optimizer = self.accelerator.prepare(module, optimizer)
        follow(self.accelerator.unwrap_model(model), learner.groups, named)
        return model, optimizer

    @property
    def shards(self) -> bool:
        """Whether each process holds a part of the model, which need not fit whole on its device."""
        return self.shards_itself or self.accelerator.distributed_type == DistributedType.FSDP

    @property
    def shards_itself(self) -> bool:
        """Accelerate has no FSDP on a CPU, and makes DDP of it without a word."""
        return self.accelerator.distributed_type == DistributedType.MULTI_CPU and asked("ACCELERATE_USE_FSDP")

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of the sum of all processes' losses; of this one's alone within `alone`."""
        self.accelerator.backward(loss * self.ranks)  # they take the mean of their gradients

    def alone(self, model: torch.nn.Module, last: bool) -> AbstractContextManager[None]:
        """Within it gradients are kept to this process, unless this is the last batch of a step."""
        return nullcontext() if last else self.accelerator.no_sync(model)

    def clip(self, parameters: list[torch.nn.Parameter], largest: float) -> float:
        """Shrink the whole gradient to that norm where it is larger; returns the norm that it had. A collective."""
        return float(self.accelerator.clip_grad_norm_(parameters, largest))

    def gather(self, value: T) -> list[T]:
        """The value of each process, in order. A collective."""
        return gather_object([value]) if self.ranks > 1 else [value]

    def agree(self, value: T) -> T:
        """The main process's value. A collective."""
        return broadcast_object_list([value])[0] if self.ranks > 1 else value

    def anywhere(self, here: bool) -> bool:
        """Whether it is so in any process. A collective."""
        return any(self.gather(here))

    def wait(self) -> None:
        """Go on when all are here."""
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Take leave of the others, at the end of a run."""
        if self.ranks > 1:
            _left.append(group.WORLD)
            self.accelerator.end_training()


def asked(name: str) -> bool:
    """Whether a launcher set this variable to true."""
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


def start_engine(precision: str) -> Engine:
    """Join the processes that torchrun or accelerate launch started; alone where neither did.

    SettingError where a launcher's configuration contradicts the recipe, which decides.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    mixed = "bf16" if precision == "bf16" else "no"
    if (launched := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) not in ("no", mixed):
        raise SettingError(
            f"accelerate launch asks for mixed precision {launched}, the recipe for precision {precision}, which "
            "decides; write mixed_precision: 'no' in the launch configuration"
        )
    if (held := os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) != "1":
        raise SettingError(
            f"accelerate launch asks for {held} gradient accumulation steps; write optim.gradient_accumulation_steps: {held} in the "
            "recipe and 1 in the launch configuration"
        )
    if asked("ACCELERATE_USE_DEEPSPEED"):
        raise SettingError(
            "accelerate launch asks for DeepSpeed, by which Vesalius does not train; recipes/accelerate/fsdp2.yaml "
            "shards as ZeRO-3 does, and fsdp2-offload.yaml keeps the shards in the CPU's memory"
        )
    if started == 1:  # an earlier run of this program may have had another precision
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=mixed,
        cpu=True if started > 1 and not torch.cuda.is_available() else None,  # else each would train alone
        # a batch without masks leaves a part of the model out
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.num_processes != started:
        raise TrainingError(
            f"{started} processes were started and {accelerator.num_processes} joined; start them with torchrun or "
            "accelerate launch"
        )
    if accelerator.distributed_type not in WAYS:
        raise TrainingError(
            f"{accelerator.distributed_type.value}: several processes train by DDP or FSDP2 here; take a launch "
            "configuration of recipes/accelerate"
        )
    engine = Engine(accelerator)
    if engine.shards_itself and precision != "fp32":
        raise SettingError(f"precision {precision} cannot train in shards on a CPU; write precision: fp32")
    return engine
