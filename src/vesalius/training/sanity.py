"""Sanity checks around the first steps: baseline score before training, gradient check after three steps."""

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
"""Training images of the baseline score, each with its first phrase."""
POOR_DICE = 0.1
"""Below this Dice the masks are unrelated to the phrase: empty masks have 0, and masks of the whole image about 0.05 if
vessels cover 3 % of it."""
CHECKED_VALUES = 4096
"""Values of each parameter that are compared before and after."""
CHECKED_STEPS = 3
"""Number of optimizer steps with masks after which every trainable group must have changed."""


@dataclass(frozen=True)
class BaselineScore:
    """Performance of the starting model on training images."""

    questions: int
    seg_answers: int
    """Questions that the model answers with [SEG] by itself."""
    dice: float | None
    """Mean Dice with the answer forced; None if it is defined for no question."""
    untrained_projector: bool
    """The projector's weights are distributed like PyTorch's random initialization."""

    def __str__(self) -> str:
        dice = "undefined" if self.dice is None else f"{self.dice:.3f}"
        summary = (
            f"before training: answers {self.seg_answers} of {self.questions} questions with [SEG]; mean Dice {dice} "
            "with forced answers"
        )
        if self.untrained_projector:
            return f"{summary}: its projector has random weights and was never trained to segment"
        if self.dice is not None and self.dice < POOR_DICE:
            return f"{summary}: it cannot segment these images yet"
        if self.seg_answers < self.questions:
            return f"{summary}: it can segment but must learn when to answer [SEG]: keep loss.text above 0, and watch seg_rate"
        return summary


def measure_baseline(
    learner: Learner, card: Any, samples: Sequence[Sample], batch_size: int, refitted: bool = False
) -> BaselineScore:
    """Ask about the first phrase of up to 8 samples, evenly spread over all. `refitted`: the projector is new."""
    indices = np.linspace(0, len(samples) - 1, min(BASELINE_SAMPLES, len(samples))).round().astype(int)
    asked = [_with_first_phrase(samples[i]) for i in indices.tolist()]
    dice = average(score_samples(learner.segmenter(card, batch_size), asked))["dice"]
    assert not isinstance(dice, str)
    # a forced answer shows only whether the model would give the template's answer
    free = learner.segmenter(card, batch_size, forced=False)
    predictions = free.predict(list(load_items(asked)))
    seg_answers = sum(prediction.says_seg for prediction in predictions)
    return BaselineScore(len(asked), seg_answers, dice, refitted or has_untrained_projector(learner.module))


def _with_first_phrase(sample: Sample) -> Sample:
    return replace(sample, prompts=sample.prompts[:1], masks=(sample.masks or ())[:1])


def has_untrained_projector(model: torch.nn.Module) -> bool:
    """Whether all matrices of `model.projector` look uniform in [-b, b] with b = 1 / sqrt(inputs), PyTorch's default.

    Such a matrix has standard deviation b / sqrt(3), and no value above b. False for a model without a projector.
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
    """Whether a value is true in any process; under FSDP2 each process has a part of the model."""

    steps: int = 0
    """Steps so far with at least one mask; without masks most of the model gets no gradient."""

    def __post_init__(self) -> None:
        self._before = {name: [_sample_of(p) for p in parameters] for name, parameters in self.groups.items()}
        self._had_gradient: set[str] = set()

    def note_gradients(self, has_masks: bool) -> None:
        """Record which groups have a gradient; call it in each step before the weights change.

        `has_masks`: whether any process has a mask in this step.
        """
        if self.steps >= CHECKED_STEPS or not has_masks:
            return
        self.steps += 1
        for name, parameters in self.groups.items():
            if any(p.grad is not None and bool(local_shard(p.grad).any()) for p in parameters):
                self._had_gradient.add(name)

    def verify_when_due(self) -> bool:
        """Run `verify` once after 3 steps; returns whether it has been run. A collective."""
        if self.steps == CHECKED_STEPS and self._before:
            self.verify()
            self._before = {}
        return not self._before

    def verify_at_end(self) -> None:
        """Run `verify` if the run ended early; TrainingError if no step had a mask. A collective."""
        if not self.steps:
            raise TrainingError(
                "no training sample has a mask, so no mask could be learned", code="nothing_to_learn"
            )
        if self._before:
            self.verify()

    def verify(self) -> None:
        """Raise TrainingError naming a group that never had a gradient or never changed."""
        for name, parameters in self.groups.items():
            if not self.in_any_process(name in self._had_gradient):
                raise TrainingError(
                    f"the {name} is set to train but had no gradient in the first steps: no loss term reaches it; check "
                    "the weights in `loss`",
                    code="no_gradient",
                    field="loss",
                )
            changed = (
                not torch.equal(a, _sample_of(p)) for a, p in zip(self._before[name], parameters, strict=True)
            )
            if not self.in_any_process(any(changed)):
                raise TrainingError(
                    f"the {name} is set to train but did not change in the first steps: the learning rate is too small "
                    "for its precision; raise optim.lr or use precision: fp32",
                    code="unchanged_weights",
                    field="optim.lr",
                )


def _sample_of(parameter: torch.nn.Parameter) -> torch.Tensor:
    return local_shard(parameter.detach()).flatten()[:CHECKED_VALUES].clone()
