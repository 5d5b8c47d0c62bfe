"""Batches for training: which examples come when is fixed by (seed, epoch), what is drawn for each by its number too."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from vesalius.data.augment import AugmentSettings, augment
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.training.learner import Learner, Movable
from vesalius.training.mixture import Mixture
from vesalius.types import Sample


@dataclass(frozen=True)
class Part:
    """One process's part of a batch."""

    ids: list[str]
    batch: Movable
    share: float
    """What its mean loss counts in the step: its images in all images of the step. 0 where there are fewer images than
    processes, and this one only takes part."""


@dataclass(frozen=True)
class Step:
    """What one step of the optimizer is made from, in one process."""

    parts: list[Part]
    images: int
    """Of all processes together."""


@dataclass(frozen=True)
class Feed:
    """Turns the examples of a mixture into batches. The same arguments give the same batches, whatever the number of workers.

    With several processes a batch is divided among them: two with `batch` 2 train on what one does with 4.
    """

    mixture: Mixture
    learner: Learner
    augment: AugmentSettings
    batch: int
    seed: int
    workers: int = 0
    rank: int = 0
    ranks: int = 1

    @property
    def samples(self) -> Sequence[Sample]:
        """The training samples, each of which an epoch asks about once."""
        return self.mixture.samples

    def batches_in_epoch(self) -> int:
        """Batches of one epoch, each for all processes; the last may be smaller."""
        return -(-len(self.mixture) // (self.batch * self.ranks))

    def steps(self, epoch: int, start: int, accumulate: int) -> Iterator[Step]:
        """The steps of an epoch, from its batch number `start` on.

        An epoch ends with a whole step: the last one has fewer batches where `accumulate` does not divide.
        """
        chunks = self.chunks(epoch, start)
        batches = self._prepare_all(epoch, [self._part_of(chunk) for chunk in chunks])
        for first in range(0, len(chunks), accumulate):
            group = chunks[first : first + accumulate]
            images = sum(map(len, group))
            parts = [
                Part(*next(batches), share=len(np.array_split(chunk, self.ranks)[self.rank]) / images)
                for chunk in group
            ]
            yield Step(parts, images)

    def steps_in_epoch(self, accumulate: int) -> int:
        """Optimizer steps of one epoch."""
        return -(-self.batches_in_epoch() // accumulate)

    def chunks(self, epoch: int, start: int = 0) -> list[np.ndarray]:
        """Numbers of the examples of each batch of an epoch, of all processes together, from batch `start` on."""
        order, size = self.mixture.order(self.seed, epoch), self.batch * self.ranks
        return [order[i * size : (i + 1) * size] for i in range(start, self.batches_in_epoch())]

    def _part_of(self, chunk: np.ndarray) -> np.ndarray:
        """This process's part of a batch; where there is none for it, the first sample, which counts nothing."""
        part = np.array_split(chunk, self.ranks)[self.rank]
        return part if len(part) else chunk[:1]

    def _prepare_all(self, epoch: int, chunks: Sequence[np.ndarray]) -> Iterator[tuple[list[str], Movable]]:
        with FrameReader() as reader:
            yield from self._prepare_ahead(partial(self._prepare, epoch, reader), chunks)

    def _prepare_ahead(
        self, prepare: Callable[[np.ndarray], tuple[list[str], Movable]], chunks: Sequence[np.ndarray]
    ) -> Iterator[tuple[list[str], Movable]]:
        if not self.workers:
            yield from map(prepare, chunks)
            return
        # threads, not processes: Pillow and numpy let go of the interpreter while they work
        with ThreadPoolExecutor(self.workers) as pool:
            waiting: deque[Future[tuple[list[str], Movable]]] = deque()
            for chunk in chunks:
                waiting.append(pool.submit(prepare, chunk))
                if len(waiting) > self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _prepare(self, epoch: int, reader: FrameReader, numbers: np.ndarray) -> tuple[list[str], Movable]:
        items, draws = [], []
        for number in numbers.tolist():
            rng = np.random.default_rng([self.seed, epoch, number])
            item = self.mixture.load(number, self.seed, epoch, rng, reader)
            # what is said of an image may name a side or a size, which augmentation changes
            items.append(item if item.turns else augment(item, self.augment, rng))
            draws += rng.integers(0, 2**31, size=len(items[-1].prompts)).tolist()
        return [item.id for item in items], self.learner.make_batch(items, draws)
