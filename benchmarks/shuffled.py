"""Control experiment for prompts: the same model, prompted with other phrases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vesalius.segmenter import ModelDescription, Segmenter
from vesalius.types import Item, Prediction


class Shuffled(Segmenter):
    """A segmenter that predicts another phrase than the given one, and returns the prediction under the given phrase."""

    def __init__(self, segmenter: Segmenter, phrases: Sequence[str], seed: int) -> None:
        self._segmenter = segmenter
        order = np.random.default_rng(seed).permutation(len(phrases)).tolist()
        # each phrase is replaced by its successor in a random cyclic order, never by itself
        self.asked_as = {phrases[order[i - 1]]: phrases[order[i]] for i in range(len(order))}

    @property
    def description(self) -> ModelDescription:
        """The model's description, with the replaced prompts as a setting."""
        model = self._segmenter.description
        return replace(model, settings={**model.settings, "asked_as": self.asked_as})

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        """Predictions for the replacement phrases, returned under the given phrases."""
        asked = [replace(item, prompts=tuple(map(self.asked_as.__getitem__, item.prompts))) for item in items]
        given = [prompt for item in items for prompt in item.prompts]
        answers = self._segmenter.predict(asked)
        return [replace(each, prompt=prompt) for each, prompt in zip(answers, given, strict=True)]
