"""The proof after the first steps that what is set to train does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from vesalius.errors import TrainingError
from vesalius.training.sharding import own_shard

CHECKED_VALUES = 4096
"""Values of each parameter that are compared before and after."""
CHECKED_STEPS = 3
"""After that many optimizer steps with masks every trainable group must have moved."""


@dataclass
class MovementCheck:
    """Remembers trainable parameters as they were, and says which group did not change."""

    groups: Mapping[str, list[torch.nn.Parameter]]
    anywhere: Callable[[bool], bool] = bool
    """Whether something is so in any process: of a model in shards each has a part."""

    steps: int = 0
    """Steps so far in which there was a mask to learn: without one nothing reaches most of a model."""

    def __post_init__(self) -> None:
        self._before = {name: [_part(p) for p in parameters] for name, parameters in self.groups.items()}
        self._had_gradient: set[str] = set()

    def note_gradients(self, has_masks: bool) -> None:
        """To be called in each step before the weights move; `has_masks` of any process."""
        if self.steps >= CHECKED_STEPS or not has_masks:
            return
        self.steps += 1
        for name, parameters in self.groups.items():
            if any(p.grad is not None and bool(own_shard(p.grad).any()) for p in parameters):
                self._had_gradient.add(name)

    def verify_when_due(self) -> bool:
        """As `verify`, once, when there were enough steps; whether that is done. A collective."""
        if self.steps == CHECKED_STEPS and self._before:
            self.verify()
            self._before = {}
        return not self._before

    def verify_at_end(self) -> None:
        """As `verify`, where the run ended before; TrainingError where no step had a mask. A collective."""
        if not self.steps:
            raise TrainingError("nothing that was trained on has a mask, so that no mask was learned")
        if self._before:
            self.verify()

    def verify(self) -> None:
        """TrainingError naming every group that never had a gradient, or never moved."""
        for name, parameters in self.groups.items():
            if not self.anywhere(name in self._had_gradient):
                raise TrainingError(
                    f"the {name} is set to train but had no gradient in the first steps: "
                    "nothing of the loss reaches it; check the weights in `loss`"
                )
            moved = (
                not torch.equal(a, _part(p)) for a, p in zip(self._before[name], parameters, strict=True)
            )
            if not self.anywhere(any(moved)):
                raise TrainingError(
                    f"the {name} is set to train but did not move in the first steps: "
                    "the learning rate is too small for its precision; raise optim.lr or use precision: fp32"
                )


def _part(parameter: torch.nn.Parameter) -> torch.Tensor:
    return own_shard(parameter.detach()).flatten()[:CHECKED_VALUES].clone()
