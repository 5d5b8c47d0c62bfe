"""Sanity checks at the start of a run: baseline score before training, gradient check after three steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vesalius.data.dataset import load_items
from vesalius.errors import TrainingError
from vesalius.training.learner import Learner
from vesalius.training.sharding import local_shard
from vesalius.training.validation import average, score_samples
from vesalius.types import Sample

BASELINE_SAMPLES = 8
"""Number of training images for the baseline score; each is prompted with its first phrase."""
POOR_DICE = 0.1
"""Dice below which masks are unrelated to the phrase: empty masks have 0, and full masks about 0.05 if vessels cover 3 %
of the image."""
CHECKED_VALUES = 4096
"""Number of values of each parameter that are compared before and after the first steps."""
CHECKED_STEPS = 3
"""Number of optimizer steps with masks after which every trainable group must have changed."""


@dataclass(frozen=True)
class BaselineScore:
    """Score of the initial model on a few training images."""

    prompts: int
    seg_answers: int
    """Number of prompts that the model answers with [SEG] without forcing."""
    dice: float | None
    """Mean Dice with forced answers; None if Dice is undefined for all prompts."""
    untrained_projector: bool
    """Whether the projector's weights still look like PyTorch's random initialization."""

    def __str__(self) -> str:
        dice = "undefined" if self.dice is None else f"{self.dice:.3f}"
        summary = (
            f"before training: answers {self.seg_answers} of {self.prompts} prompts with [SEG]; mean Dice {dice} "
            "with forced answers"
        )
        if self.untrained_projector:
            return f"{summary}: its projector is not trained to segment yet"
        if self.dice is not None and self.dice < POOR_DICE:
            return f"{summary}: it cannot segment these images yet"
        if self.seg_answers < self.prompts:
            return f"{summary}: it can segment but must learn when to answer [SEG]: keep loss.text above 0, and monitor seg_rate"
        return summary


def measure_baseline(
    learner: Learner, card: Any, samples: Sequence[Sample], batch_size: int, refitted: bool = False
) -> BaselineScore:
    """Score up to 8 evenly spaced samples, each with its first phrase. `refitted`: the projector was reinitialized."""
    indices = np.linspace(0, len(samples) - 1, min(BASELINE_SAMPLES, len(samples))).round().astype(int)
    chosen = [samples[i] for i in indices.tolist()]
    asked = [replace(s, prompts=s.prompts[:1], masks=(s.masks or ())[:1]) for s in chosen]
    dice = average(score_samples(learner.segmenter(card, batch_size), asked))["dice"]
    assert not isinstance(dice, str)
    # forced answers only show whether the model prefers the template's answer, so answers are decoded as well
    free = learner.segmenter(card, batch_size, forced=False)
    predictions = free.predict(list(load_items(asked)))
    seg_answers = sum(prediction.says_seg for prediction in predictions)
    return BaselineScore(len(asked), seg_answers, dice, refitted or has_untrained_projector(learner.module))


def has_untrained_projector(model: torch.nn.Module) -> bool:
    """Whether all weight matrices of `model.projector` look like PyTorch's default initialization.

    The default is uniform in [-b, b] with b = 1 / sqrt(in_features): standard deviation b / sqrt(3), no value above b.
    False for a model without a projector.
    """
    projector = getattr(model, "projector", None)
    if projector is None:
        return False
    found = []
    for layer in projector.modules():
        if isinstance(layer, torch.nn.Linear):
            weight = layer.weight.detach().float()
            bound = layer.in_features**-0.5
            uniform = abs(weight.std().item() / bound * 3**0.5 - 1) < 0.02
            found.append(uniform and weight.abs().max().item() <= bound * 1.01)
    return bool(found) and all(found)


@dataclass
class GradientCheck:
    """Check after 3 optimizer steps that every trainable group received gradients and changed."""

    groups: Mapping[str, list[torch.nn.Parameter]]
    in_any_process: Callable[[bool], bool] = bool
    """Collective that returns true if its argument is true in at least one process; FSDP2 processes hold different shards."""

    steps: int = 0
    """Number of steps with at least one mask so far; without masks most of the model receives no gradient."""

    def __post_init__(self) -> None:
        self._before = {name: [_sample_of(p) for p in parameters] for name, parameters in self.groups.items()}
        self._had_gradient: set[str] = set()

    def note_gradients(self, has_masks: bool) -> None:
        """Record the groups with a nonzero gradient; call it in each step before the optimizer step.

        `has_masks`: whether the step has a mask in any process.
        """
        if self.steps >= CHECKED_STEPS or not has_masks:
            return
        self.steps += 1
        for name, parameters in self.groups.items():
            if any(p.grad is not None and bool(local_shard(p.grad).any()) for p in parameters):
                self._had_gradient.add(name)

    def verify_when_due(self) -> bool:
        """Run `verify` once after 3 steps; returns whether it has passed. A collective."""
        if self.steps == CHECKED_STEPS and self._before:
            self.verify()
            self._before = {}
        return not self._before

    def verify_at_end(self) -> None:
        """Run `verify` if the run had fewer than 3 steps. Raises TrainingError if no step had a mask. A collective."""
        if not self.steps:
            raise TrainingError(
                "no step had a training sample with a mask, so the model cannot learn masks", code="nothing_to_learn"
            )
        if self._before:
            self.verify()

    def verify(self) -> None:
        """Raise TrainingError for the first group that received no gradient or did not change. A collective."""
        for name, parameters in self.groups.items():
            if not self.in_any_process(name in self._had_gradient):
                raise TrainingError(
                    f"{name} is trainable but received no gradient in the first steps: no loss term reaches it; check "
                    "the weights in `loss`",
                    code="no_gradient",
                    field="loss",
                )
            changed = (not torch.equal(a, _sample_of(p)) for a, p in zip(self._before[name], parameters, strict=True))
            if not self.in_any_process(any(changed)):
                raise TrainingError(
                    f"{name} is trainable but did not change in the first steps: the learning rate is too small "
                    "for its precision; raise optim.lr or use precision: fp32",
                    code="unchanged_weights",
                    field="optim.lr",
                )


def _sample_of(parameter: torch.nn.Parameter) -> torch.Tensor:
    return local_shard(parameter.detach()).flatten()[:CHECKED_VALUES].clone()
