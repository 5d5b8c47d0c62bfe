"""The training data loader: batches determined by (seed, epoch), with augmentation drawn per example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from vesalius.data.augment import AugmentSettings, augment
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.parallel import map_in_threads
from vesalius.training.learner import Learner, Movable
from vesalius.training.mixture import Mixture
from vesalius.types import Sample


@dataclass(frozen=True)
class Microbatch:
    """One process's part of a batch."""

    ids: list[str]
    batch: Movable
    weight: float
    """Weight of its mean loss in the step: its images divided by all images of the step. 0 if a batch has fewer images
    than there are processes and this process got none of them."""


@dataclass(frozen=True)
class StepBatches:
    """The microbatches of one optimizer step in one process."""

    microbatches: list[Microbatch]
    images: int
    """Images of all processes together."""


@dataclass(frozen=True)
class Loader:
    """Batches from a mixture of examples. The same settings give the same batches, whatever `num_workers` is.

    Several processes divide each batch: two with `batch_size` 2 train on the same images as one with 4.
    """

    mixture: Mixture
    learner: Learner
    augment: AugmentSettings
    batch_size: int
    seed: int
    accumulation: int = 1
    """Batches per optimizer step."""
    num_workers: int = 0
    rank: int = 0
    world_size: int = 1

    @property
    def samples(self) -> Sequence[Sample]:
        """The training samples, each used once per epoch."""
        return self.mixture.samples

    def batches_in_epoch(self) -> int:
        """Batches of one epoch, each over all processes; the last may be smaller."""
        return -(-len(self.mixture) // (self.batch_size * self.world_size))

    def steps_in_epoch(self) -> int:
        """Optimizer steps of one epoch; the last has fewer batches if `accumulation` does not divide them."""
        return -(-self.batches_in_epoch() // self.accumulation)

    def steps(self, epoch: int, start: int = 0) -> Iterator[StepBatches]:
        """The optimizer steps of an epoch, from batch number `start` on."""
        chunks = self.chunks(epoch, start)
        batches = self._load_all(epoch, [self._own_part(chunk) for chunk in chunks])
        for first in range(0, len(chunks), self.accumulation):
            group = chunks[first : first + self.accumulation]
            images = sum(map(len, group))
            microbatches = [
                Microbatch(
                    *next(batches), weight=len(np.array_split(chunk, self.world_size)[self.rank]) / images
                )
                for chunk in group
            ]
            yield StepBatches(microbatches, images)

    def chunks(self, epoch: int, start: int = 0) -> list[np.ndarray]:
        """Example numbers of each batch of an epoch, over all processes, from batch `start` on."""
        order, size = self.mixture.order(self.seed, epoch), self.batch_size * self.world_size
        return [order[i * size : (i + 1) * size] for i in range(start, self.batches_in_epoch())]

    def _own_part(self, chunk: np.ndarray) -> np.ndarray:
        """This process's part of a batch; if it is empty, the first sample of the batch, with weight 0."""
        part = np.array_split(chunk, self.world_size)[self.rank]
        return part if len(part) else chunk[:1]

    def _load_all(self, epoch: int, chunks: Sequence[np.ndarray]) -> Iterator[tuple[list[str], Movable]]:
        # threads, not processes: Pillow and numpy release the interpreter lock while they work
        with FrameReader() as reader:
            load = partial(self._load, epoch, reader)
            yield from map_in_threads(load, chunks, self.num_workers, threads=self.num_workers)

    def _load(self, epoch: int, reader: FrameReader, numbers: np.ndarray) -> tuple[list[str], Movable]:
        items, draws = [], []
        for number in numbers.tolist():
            rng = np.random.default_rng([self.seed, epoch, number])
            item = self.mixture.load(number, self.seed, epoch, rng, reader)
            # a conversation may mention sides or sizes, which augmentation would change
            items.append(item if item.turns else augment(item, self.augment, rng))
            draws += rng.integers(0, 2**31, size=len(items[-1].prompts)).tolist()
        return [item.id for item in items], self.learner.make_batch(items, draws)
