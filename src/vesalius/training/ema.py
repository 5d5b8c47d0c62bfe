"""Exponential moving average (EMA) of the weights; it often generalizes better than the weights of the last step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vesalius.errors import OutputError, TrainingError

AVERAGE = "average.pt"
"""File in a checkpoint of a run with `optim.ema_decay`: the raw weights and their average."""


class WeightAverage:
    """Exponential moving average of trained parameters, updated after each optimizer step.

    The decay at update n is min(`decay`, (1 + n) / (10 + n)), so that the initial weights lose influence quickly.
    Sources: Polyak & Juditsky 1992; the decay schedule of TensorFlow's ExponentialMovingAverage. torch's AveragedModel
    is not used because it also copies frozen parameters.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], decay: float) -> None:
        self._parameters = list(parameters)
        self._decay = decay
        self._updates = 0
        self._applied = False
        # holds the average; while the average is applied, holds the raw weights instead
        self._stored = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        for average, parameter in zip(self._stored, self._parameters, strict=True):
            average.lerp_(parameter.detach(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Load the averaged weights into the model for the block; the raw weights are restored bit for bit afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for stored, parameter in zip(self._stored, self._parameters, strict=True):
            weights = parameter.detach().clone()
            parameter.copy_(stored)
            stored.copy_(weights)
        self._applied = not self._applied

    def state_dict(self) -> dict[str, Any]:
        """Raw weights, average and number of updates; also correct while the average is applied."""
        in_model = [parameter.detach() for parameter in self._parameters]
        weights, average = (self._stored, in_model) if self._applied else (in_model, self._stored)
        return {"updates": self._updates, "weights": list(weights), "average": list(average)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`; the raw weights go into the model."""
        self._updates = state["updates"]
        for name, targets in (("weights", self._parameters), ("average", self._stored)):
            for target, value in zip(targets, state[name], strict=True):
                target.copy_(value)

    def save(self, checkpoint: Path) -> None:
        """Write `average.pt` into a checkpoint. Raises OutputError if writing fails."""
        path = checkpoint / AVERAGE
        try:
            torch.save(self.state_dict(), path)
        except RuntimeError as error:  # torch's error for a full disk
            message = f"cannot be written ({str(error)[:200]})"
            raise OutputError.at(path, message, code="write_failed") from error

    def load(self, checkpoint: Path) -> None:
        """Restore the average and the model's raw weights from a checkpoint. Raises TrainingError if the file is damaged."""
        path = checkpoint / AVERAGE
        try:
            self.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        except Exception as error:  # torch raises almost any exception for a damaged file
            message = f"cannot be read ({' '.join(str(error).split())[:200]})"
            raise TrainingError.at(path, message, code="damaged_checkpoint") from error
