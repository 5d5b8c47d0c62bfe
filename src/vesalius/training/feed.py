"""Batches for training: which samples come when is fixed by (seed, epoch), what is drawn for each by its index too."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vesalius.data.augment import AugmentSettings, augment
from vesalius.data.dataset import epoch_order, load_item
from vesalius.training.learner import Learner, Movable
from vesalius.types import Sample


@dataclass(frozen=True)
class Feed:
    """Turns samples into batches. The same arguments give the same batches, whatever the number of workers."""

    samples: Sequence[Sample]
    learner: Learner
    augment: AugmentSettings
    batch: int
    seed: int
    workers: int = 0

    def batches_in_epoch(self) -> int:
        """Batches of one epoch; the last may be smaller."""
        return -(-len(self.samples) // self.batch)

    def steps(self, epoch: int, start: int, accumulate: int) -> Iterator[list[tuple[list[str], Movable]]]:
        """The batches of each optimiser step of an epoch, from its batch number `start` on.

        An epoch ends with a whole step: the last one has fewer batches where `accumulate` does not divide.
        """
        group: list[tuple[list[str], Movable]] = []
        for batch in self.epoch(epoch, start):
            group.append(batch)
            if len(group) == accumulate:
                yield group
                group = []
        if group:
            yield group

    def steps_in_epoch(self, accumulate: int) -> int:
        """Optimiser steps of one epoch."""
        return -(-self.batches_in_epoch() // accumulate)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[list[str], Movable]]:
        """(sample ids, batch) of one epoch from its batch number `start` on."""
        order = epoch_order(len(self.samples), self.seed, epoch)
        chunks = [order[i * self.batch : (i + 1) * self.batch] for i in range(start, self.batches_in_epoch())]
        if not self.workers:
            yield from (self._prepare(epoch, chunk) for chunk in chunks)
            return
        # threads, not processes: Pillow and numpy let go of the interpreter while they work
        with ThreadPoolExecutor(self.workers) as pool:
            waiting: deque[Future[tuple[list[str], Movable]]] = deque()
            for chunk in chunks:
                waiting.append(pool.submit(self._prepare, epoch, chunk))
                if len(waiting) > self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _prepare(self, epoch: int, indices: np.ndarray) -> tuple[list[str], Movable]:
        items, draws = [], []
        for index in indices.tolist():
            rng = np.random.default_rng([self.seed, epoch, index])
            items.append(augment(load_item(self.samples[index]), self.augment, rng))
            draws += rng.integers(0, 2**31, size=len(items[-1].prompts)).tolist()
        return [item.id for item in items], self.learner.make_batch(items, draws)
