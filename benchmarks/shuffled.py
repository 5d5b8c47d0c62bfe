"""A control for models that read: the same model, asked for something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vesalius.segmenter import ModelDescription, Segmenter
from vesalius.types import Item, Prediction


class Shuffled(Segmenter):
    """The same model, asked for another phrase each time; its answers come back under the phrase that was meant."""

    def __init__(self, segmenter: Segmenter, phrases: Sequence[str], seed: int) -> None:
        self._segmenter = segmenter
        order = np.random.default_rng(seed).permutation(len(phrases)).tolist()
        # each is asked as the next one of a shuffled ring, and so never as itself
        self.asked_as = {phrases[order[i - 1]]: phrases[order[i]] for i in range(len(order))}

    @property
    def description(self) -> ModelDescription:
        """The model's description, with the prompts that it is asked instead as a setting."""
        model = self._segmenter.description
        return replace(model, settings={**model.settings, "asked_as": self.asked_as})

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        """The answers to other phrases, under those that were meant."""
        asked = [replace(item, prompts=tuple(map(self.asked_as.__getitem__, item.prompts))) for item in items]
        meant = [prompt for item in items for prompt in item.prompts]
        answers = self._segmenter.predict(asked)
        return [replace(each, prompt=prompt) for each, prompt in zip(answers, meant, strict=True)]
