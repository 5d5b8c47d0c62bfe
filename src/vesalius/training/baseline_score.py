"""What the model can do before it is trained: whether it says [SEG], and whether its projector was ever trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vesalius.data.dataset import load_item
from vesalius.inference.predictor import Predictor
from vesalius.training.learner import Learner
from vesalius.training.validation import average, score_answers
from vesalius.types import Sample

ASKED = 8
"""Training images, each with its first phrase."""
POOR_DICE = 0.1
"""Below it masks have nothing to do with the question: an empty mask on every image has 0, a guess of all 0.05 or so
where vessels are 3 % of it."""


@dataclass(frozen=True)
class Start:
    """What a model does on training images before the first step."""

    asked: int
    says_seg: int
    """Questions that it answers with [SEG] of its own accord."""
    dice: float | None
    """Mean where the answer is forced on it."""
    fresh: bool
    """The projector has the spread of random numbers, as no trained one has."""

    def __str__(self) -> str:
        dice = "undefined" if self.dice is None else f"{self.dice:.3f}"
        told = f"before training: says [SEG] to {self.says_seg} of {self.asked} questions; mean Dice {dice} when made to"
        if self.fresh:
            return f"{told}: its projector holds random numbers and was never trained to segment"
        if self.dice is not None and self.dice < POOR_DICE:
            return f"{told}: it cannot segment these images yet"
        if self.says_seg < self.asked:
            return f"{told}: it segments, and must learn when to say so: keep loss.text above 0, and watch seg_rate"
        return told


def look_at_start(learner: Learner, card: Any, samples: Sequence[Sample], batch: int) -> Start:
    """Ask about the first phrase of a few samples, spread over all."""
    places = np.linspace(0, len(samples) - 1, min(ASKED, len(samples))).round().astype(int)
    some = [_first_phrase(samples[i]) for i in places.tolist()]
    segmenter = learner.segmenter(card, batch)
    means = average(score_answers(segmenter, some))
    dice = means["dice"]
    assert not isinstance(dice, str)
    says_seg = round(float(means["seg_rate"] or 0) * len(some))
    if isinstance(segmenter, Predictor):  # a forced answer shows only whether it would say the template's
        segmenter.answer = "verify"
        items = [load_item(sample) for sample in some]
        says_seg = sum(prediction.says_seg for prediction in segmenter.predict(items))
    return Start(len(some), says_seg, dice, looks_fresh(learner.module))


def _first_phrase(sample: Sample) -> Sample:
    return replace(sample, prompts=sample.prompts[:1], masks=(sample.masks or ())[:1])


def looks_fresh(model: torch.nn.Module) -> bool:
    """Whether all matrices of the model's `projector` are as PyTorch makes them: even between -b and b, b = 1 / sqrt(inputs).

    Their standard deviation is then b / sqrt(3), and none is larger than b. False for a model without a projector.
    """
    projector = getattr(model, "projector", None)
    if projector is None:
        return False
    found = []
    for layer in projector.modules():
        if isinstance(layer, torch.nn.Linear):
            weight = layer.weight.detach().float()
            bound = layer.in_features**-0.5
            even = abs(weight.std().item() / bound * 3**0.5 - 1) < 0.02
            found.append(even and weight.abs().max().item() <= bound * 1.01)
    return bool(found) and all(found)
