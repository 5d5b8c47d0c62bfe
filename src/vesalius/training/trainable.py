"""What trains: one setting, and the proof after the first steps that it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vesalius.errors import TrainingError
from vesalius.models.parts import PARTS, WHAT_TRAINS
from vesalius.models.textseg import TextSegModel

GROUPS = {name: PARTS[name] for name in WHAT_TRAINS["full"]}
"""Name of a group -> how the names of its parameters begin."""

# No mask of Sa2VA's passes through these: the object score is not used, and of four maps the first, which
# stands for unambiguous clicks, is never chosen.
WITHOUT_GRADIENT = ("sam.mask_decoder.pred_obj_score_head.", "sam.mask_decoder.output_hypernetworks_mlps.0.")
CHECKED_VALUES = 4096
"""Values of each parameter that are compared before and after."""


def set_trainable(model: TextSegModel, what: str) -> dict[str, list[torch.nn.Parameter]]:
    """Freeze all but what trains, and return the trainable parameters by group."""
    chosen: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        group = _group_of(name)
        trains = group in WHAT_TRAINS[what] and not name.startswith(WITHOUT_GRADIENT)
        parameter.requires_grad_(trains)
        if trains and group:
            chosen.setdefault(group, []).append(parameter)
    return chosen


def _group_of(name: str) -> str | None:
    return next((group for group, starts in GROUPS.items() if name.startswith(starts)), None)


@dataclass
class MovementCheck:
    """Remembers trainable parameters as they were, and says which group did not change."""

    groups: Mapping[str, list[torch.nn.Parameter]]

    def __post_init__(self) -> None:
        self._before = {name: [_part(p) for p in parameters] for name, parameters in self.groups.items()}
        self._had_gradient: set[str] = set()

    def note_gradients(self) -> None:
        """To be called after each backward pass, before the gradients are cleared."""
        for name, parameters in self.groups.items():
            if any(p.grad is not None and bool(p.grad.any()) for p in parameters):
                self._had_gradient.add(name)

    def verify(self) -> None:
        """TrainingError naming every group that never had a gradient, or never moved."""
        for name, parameters in self.groups.items():
            if name not in self._had_gradient:
                raise TrainingError(
                    f"the {name} is set to train but had no gradient in the first steps: "
                    "nothing of the loss reaches it; check the weights in `loss`"
                )
            moved = (
                not torch.equal(a, _part(p)) for a, p in zip(self._before[name], parameters, strict=True)
            )
            if not any(moved):
                raise TrainingError(
                    f"the {name} is set to train but did not move in the first steps: "
                    "the learning rate is too small for its precision; raise optim.lr or use precision: fp32"
                )


def _part(parameter: torch.nn.Parameter) -> torch.Tensor:
    return parameter.detach().flatten()[:CHECKED_VALUES].clone()
