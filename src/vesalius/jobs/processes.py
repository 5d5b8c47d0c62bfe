"""Several copies of one model at the same list of images, each on a device and in a process of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self

from vesalius.errors import SettingError, VesaliusError
from vesalius.jobs.folder import Segmenter, answer_samples, check_prompts, count_cached
from vesalius.jobs.prediction_log import Line
from vesalius.types import Sample

BATCHES = 8
"""Batches of a piece of work: a process that is killed loses no more, and at its end the pipeline runs empty."""
AHEAD = 2
"""Pieces of each process that wait, run, or are done and not yet taken."""


class Order(Protocol):
    """What a process needs to make its segmenter: can be sent there, and compared."""

    def __hash__(self) -> int: ...

    def __call__(self) -> Segmenter:
        """The segmenter, made anew."""

    @property
    def device(self) -> str:
        """Its name, for messages."""


@dataclass(frozen=True)
class PredictorOrder:
    """The arguments of `load_predictor`."""

    model: str
    device: str
    threads: int | None
    """Of PyTorch, where several processes share the cores of a CPU; None leaves them alone."""
    settings: tuple[tuple[str, Any], ...]

    def __call__(self) -> Segmenter:
        import torch

        from vesalius.inference.predictor import load_predictor
        from vesalius.models.cpu_allocator import keep_freed_memory

        keep_freed_memory()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return load_predictor(self.model, device=self.device, **dict(self.settings))


def order_predictors(model: str, devices: Sequence[str], settings: Mapping[str, Any]) -> list[PredictorOrder]:
    """One for each device, such as `cuda:0`; `settings` are the other arguments of `load_predictor`.

    SettingError where no device is named.
    """
    if not devices or not all(devices):
        raise SettingError("--devices: name one or more, with commas, for example cuda:0,cuda:1")
    import torch

    cores = max(1, torch.get_num_threads() // max(1, devices.count("cpu")))
    return [
        PredictorOrder(str(model), device, cores if device == "cpu" else None, tuple(settings.items()))
        for device in devices
    ]


@dataclass
class Description:
    """What reports say of a model that lives in other processes."""

    batch: int
    threshold: float | None
    card: dict[str, Any]
    settings: dict[str, Any]
    threshold_origin: dict[str, Any]
    training_images: Collection[str] | None
    trained_on_unknown: bool
    training_perceptual_hashes: Collection[str]
    tuning_images: Collection[str]
    cached: dict[str, int]
    """What came of the cache, of all processes together, so far; empty without one."""
    times_halved: int = 0
    """Of all processes together, so far."""
    check_prompts: Callable[[Sequence[str]], None] | None = None
    """As of a `Segmenter`; asks one of the processes."""


class Processes:
    """A process for each order; a context manager that ends them."""

    def __init__(self, orders: Sequence[Order]) -> None:
        # loky's processes do not run the caller's main module again
        from loky import ProcessPoolExecutor

        self.orders = orders
        self._executors = [ProcessPoolExecutor(max_workers=1) for _ in orders]
        self._halved = [0] * len(orders)
        self._cached: list[dict[str, int]] = [{} for _ in orders]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for executor in self._executors:
            executor.shutdown(kill_workers=True)

    @cached_property
    def description(self) -> Description:
        """What the model says of itself, which is opened in all processes.

        SettingError for a device that is not there, or one that would calculate in other numbers than another.
        """
        opened = [
            executor.submit(_describe, order)
            for executor, order in zip(self._executors, self.orders, strict=True)
        ]
        found = [self._result(k, future) for k, future in enumerate(opened)]
        dtypes = sorted({str(each.settings.get("dtype")) for each in found})
        if len(dtypes) > 1:
            raise SettingError(
                f"--devices: they would calculate in {' and '.join(dtypes)}, and not give the same; "
                "name devices of one kind"
            )
        description = found[0]
        description.check_prompts = self._check_prompts
        return description

    def _check_prompts(self, prompts: Sequence[str]) -> None:
        self._result(0, self._executors[0].submit(_check, self.orders[0], tuple(prompts)))

    def answer_samples(
        self, samples: Iterable[Sample], out: Path, save: Sequence[str]
    ) -> Generator[list[Line], None, None]:
        """As `folder.answer_samples`, in pieces of the list; VesaliusError where a process was killed."""
        samples, size = iter(samples), BATCHES * self.description.batch
        pending: deque[tuple[int, Future[_Piece]]] = deque()
        busy = [0] * len(self.orders)
        while True:
            while len(pending) < AHEAD * len(self.orders) and (piece := list(islice(samples, size))):
                k = busy.index(min(busy))
                busy[k] += 1
                task = self._executors[k].submit(_answer, self.orders[k], piece, out, tuple(save))
                pending.append((k, task))
            if not pending:
                return
            k, future = pending.popleft()
            lines, self._halved[k], self._cached[k] = self._result(k, future)
            self.description.times_halved = sum(self._halved)
            self.description.cached = {
                name: sum(each.get(name, 0) for each in self._cached) for name in self.description.cached
            }
            busy[k] -= 1
            yield from lines

    def _result(self, k: int, future: Future[Any]) -> Any:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise VesaliusError(
                f"the process on {self.orders[k].device} was killed, perhaps because memory ran out; run the same "
                "again to continue where it stopped"
            ) from error


@lru_cache(maxsize=1)
def _make(order: Order) -> Segmenter:
    # once a process
    return order()


def _describe(order: Order) -> Description:
    made = _make(order)
    return Description(
        batch=made.batch,
        threshold=made.threshold,
        card=made.card,
        settings=made.settings,
        threshold_origin=made.threshold_origin,
        training_images=made.training_images,
        trained_on_unknown=made.trained_on_unknown,
        training_perceptual_hashes=made.training_perceptual_hashes,
        tuning_images=made.tuning_images,
        cached=count_cached(made),
    )


def _check(order: Order, prompts: tuple[str, ...]) -> None:
    check_prompts(_make(order), prompts)


_Piece = tuple[list[list[Line]], int, dict[str, int]]
"""The lines of each sample; and of its process so far, how often the batch was halved, and what came of its cache."""


def _answer(order: Order, piece: list[Sample], out: Path, save: tuple[str, ...]) -> _Piece:
    segmenter = _make(order)
    lines = list(answer_samples(segmenter, piece, out, save))
    return lines, getattr(segmenter, "times_halved", 0), count_cached(segmenter)
