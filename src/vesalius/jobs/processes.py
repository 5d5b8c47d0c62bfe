"""Several copies of one model at the same list of images, each on a device and in a process of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self

from vesalius.errors import SettingError, VesaliusError
from vesalius.jobs.folder import answer_samples
from vesalius.jobs.opening import load_predictor
from vesalius.jobs.prediction_log import Line
from vesalius.segmenter import Described, ModelDescription, Segmenter, Usage
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


class Processes(Described):
    """One process for each order; a context manager that ends them."""

    def __init__(self, orders: Sequence[Order]) -> None:
        # loky's processes do not run the caller's main module again
        from loky import ProcessPoolExecutor

        self.orders = orders
        self._executors = [ProcessPoolExecutor(max_workers=1) for _ in orders]
        self._usage = [Usage() for _ in orders]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for executor in self._executors:
            executor.shutdown(kill_workers=True)

    @property
    def description(self) -> ModelDescription:
        """The description of the model, which is opened in all processes.

        SettingError for a device that does not exist, or one that would compute in another dtype than the others.
        """
        return self._description

    @cached_property
    def _description(self) -> ModelDescription:
        opened = [
            executor.submit(_describe, order)
            for executor, order in zip(self._executors, self.orders, strict=True)
        ]
        found = [self._result(k, future) for k, future in enumerate(opened)]
        dtypes = sorted({str(each.settings.get("dtype")) for each in found})
        if len(dtypes) > 1:
            raise SettingError(
                f"--devices: they would compute in {' and '.join(dtypes)} and give different masks; "
                "name devices of one kind",
                code="conflicting_settings",
                field="devices",
            )
        return found[0]

    @property
    def usage(self) -> Usage:
        """Counters of all processes together."""
        cache: dict[str, int] = {}
        for each in self._usage:
            for name, count in each.cache.items():
                cache[name] = cache.get(name, 0) + count
        return Usage(sum(each.batch_halved for each in self._usage), cache)

    def check_prompts(self, prompts: Iterable[str]) -> None:
        """Raise the model's SettingError for prompts that it cannot answer; one of the processes is asked."""
        self._result(0, self._executors[0].submit(_check, self.orders[0], tuple(prompts)))

    def answer_samples(
        self, samples: Iterable[Sample], out: Path, save: Sequence[str]
    ) -> Generator[list[Line], None, None]:
        """As `folder.answer_samples`, in pieces of the list; VesaliusError where a process was killed."""
        samples, size = iter(samples), BATCHES * self.description.batch_size
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
            lines, self._usage[k] = self._result(k, future)
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


def _describe(order: Order) -> ModelDescription:
    return _make(order).description


def _check(order: Order, prompts: tuple[str, ...]) -> None:
    _make(order).check_prompts(prompts)


_Piece = tuple[list[list[Line]], Usage]
"""The lines of each sample, and the counters of its process so far."""


def _answer(order: Order, piece: list[Sample], out: Path, save: tuple[str, ...]) -> _Piece:
    segmenter = _make(order)
    lines = list(answer_samples(segmenter, piece, out, save))
    return lines, segmenter.usage
