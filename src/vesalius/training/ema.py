"""A running mean of the weights, which predicts more evenly than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch


class WeightAverage:
    """Exponential moving average of parameters that train, updated after each optimizer step.

    The n-th update keeps min(`decay`, (1 + n) / (10 + n)) of the average, so that the first weights are soon forgotten.
    Source: Polyak & Juditsky 1992; the rising decay as in TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], decay: float) -> None:
        self._parameters = list(parameters)
        self._decay = decay
        self._updates = 0
        self._applied = False
        # the average; while it is applied, the weights in whose place it is
        self._aside = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self._updates += 1
        kept = min(self._decay, (1 + self._updates) / (10 + self._updates))
        for average, parameter in zip(self._aside, self._parameters, strict=True):
            average.lerp_(parameter.detach(), 1 - kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the model has the average as its weights; afterwards its own again, to the bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for aside, parameter in zip(self._aside, self._parameters, strict=True):
            weights = parameter.detach().clone()
            parameter.copy_(aside)
            aside.copy_(weights)
        self._applied = not self._applied

    def state_dict(self) -> dict[str, Any]:
        """Weights, average and count of updates, whichever of the two is applied: a bundle holds only one of them."""
        held = [parameter.detach() for parameter in self._parameters]
        weights, average = (self._aside, held) if self._applied else (held, self._aside)
        return {"updates": self._updates, "weights": list(weights), "average": list(average)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`: the weights go into the model."""
        self._updates = state["updates"]
        for name, targets in (("weights", self._parameters), ("average", self._aside)):
            for target, value in zip(targets, state[name], strict=True):
                target.copy_(value)
