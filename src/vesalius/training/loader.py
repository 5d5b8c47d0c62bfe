"""The training data loader: (seed, epoch) determine batches, and (seed, epoch, example) determine augmentation."""

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
    """The images of one batch that one process trains on."""

    ids: list[str]
    batch: Movable
    weight: float
    """Weight of its mean loss in the step: its number of images divided by that of the step over all processes. 0 if the
    batch has fewer images than processes and none is left for this process."""


@dataclass(frozen=True)
class StepBatches:
    """The microbatches of one optimizer step in one process."""

    microbatches: list[Microbatch]
    images: int
    """Number of images in the step, over all processes."""


@dataclass(frozen=True)
class Loader:
    """Batches from a mixture of examples. Batches depend on the settings, but not on `num_workers`.

    Processes divide each batch: two processes with `batch_size` 2 train on the same images as one process with 4.
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
        """The segmentation samples, each used once per epoch."""
        return self.mixture.samples

    def batches_in_epoch(self) -> int:
        """Number of global batches per epoch, including a smaller last one."""
        return -(-len(self.mixture) // (self.batch_size * self.world_size))

    def steps_in_epoch(self) -> int:
        """Number of optimizer steps per epoch; the last step accumulates the remaining batches."""
        return -(-self.batches_in_epoch() // self.accumulation)

    def steps(self, epoch: int, start: int = 0) -> Iterator[StepBatches]:
        """Yield the batches of each optimizer step of an epoch, from batch index `start` on."""
        chunks = self.chunks(epoch, start)
        batches = self._load_all(epoch, [self._own_indices(chunk) for chunk in chunks])
        for first in range(0, len(chunks), self.accumulation):
            group = chunks[first : first + self.accumulation]
            images = sum(map(len, group))
            microbatches = [
                Microbatch(*next(batches), weight=len(np.array_split(chunk, self.world_size)[self.rank]) / images)
                for chunk in group
            ]
            yield StepBatches(microbatches, images)

    def chunks(self, epoch: int, start: int = 0) -> list[np.ndarray]:
        """Example indices of each global batch of an epoch, from batch index `start` on."""
        order, size = self.mixture.order(self.seed, epoch), self.batch_size * self.world_size
        return [order[i * size : (i + 1) * size] for i in range(start, self.batches_in_epoch())]

    def _own_indices(self, chunk: np.ndarray) -> np.ndarray:
        """Example indices of this process; if the batch has none left for it, the first index, used with weight 0."""
        own = np.array_split(chunk, self.world_size)[self.rank]
        return own if len(own) else chunk[:1]

    def _load_all(self, epoch: int, chunks: Sequence[np.ndarray]) -> Iterator[tuple[list[str], Movable]]:
        # threads, not processes, because Pillow and numpy release the GIL
        with FrameReader() as reader:
            load = partial(self._load, epoch, reader)
            yield from map_in_threads(load, chunks, self.num_workers, threads=self.num_workers)

    def _load(self, epoch: int, reader: FrameReader, numbers: np.ndarray) -> tuple[list[str], Movable]:
        items, draws = [], []
        for number in numbers.tolist():
            rng = np.random.default_rng([self.seed, epoch, number])
            item = self.mixture.load(number, self.seed, epoch, rng, reader)
            # conversations are not augmented: they may mention left, right or sizes
            items.append(item if item.turns else augment(item, self.augment, rng))
            draws += rng.integers(0, 2**31, size=len(items[-1].prompts)).tolist()
        return [item.id for item in items], self.learner.make_batch(items, draws)
