"""A control for models that read: the same model, asked for something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vesalius.jobs.folder import Segmenter
from vesalius.types import Item, Prediction


class Shuffled:
    """The same model, asked for another phrase each time; its answers come back under the phrase that was meant."""

    def __init__(self, segmenter: Segmenter, phrases: Sequence[str], seed: int) -> None:
        self._segmenter = segmenter
        order = np.random.default_rng(seed).permutation(len(phrases)).tolist()
        # each is asked as the next one of a shuffled ring, and so never as itself
        self.asked_as = {phrases[order[i - 1]]: phrases[order[i]] for i in range(len(order))}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._segmenter, name)

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the model, and what it was asked instead."""
        return {**self._segmenter.settings, "asked_as": self.asked_as}

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        """The answers to other phrases, under those that were meant."""
        asked = [replace(item, prompts=tuple(map(self.asked_as.__getitem__, item.prompts))) for item in items]
        meant = [prompt for item in items for prompt in item.prompts]
        answers = self._segmenter.predict(asked)
        return [replace(each, prompt=prompt) for each, prompt in zip(answers, meant, strict=True)]
