"""Copies of one model in several processes, each on its own device, that share one list of images."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

from vesalius.errors import SettingError, VesaliusError
from vesalius.jobs.folder import answer_samples
from vesalius.jobs.opening import load_predictor
from vesalius.jobs.prediction_log import Line
from vesalius.parallel import in_order
from vesalius.segmenter import Described, ModelDescription, Segmenter, Usage
from vesalius.types import Sample

BATCHES = 8
"""Batches in a piece of work: a killed process loses at most one piece, and a process is idle only between pieces."""
AHEAD = 2
"""Pieces per process that wait, run, or are done and not yet taken."""


Open = Callable[[str], Segmenter]
"""Opens a segmenter on the device of this name; can be pickled."""


def predictor_processes(model: str, devices: Sequence[str], settings: Mapping[str, Any]) -> Processes:
    """One predictor for each device, such as `cuda:0`; `settings` are the other arguments of `load_predictor`.

    Predictors on the CPU share its cores. SettingError without any device.
    """
    if not devices or not all(devices):
        raise SettingError(
            "--devices: name one or more devices, separated by commas, for example cuda:0,cuda:1",
            code="bad_value",
            field="devices",
        )
    import torch

    threads = max(1, torch.get_num_threads() // max(1, devices.count("cpu")))
    return Processes(partial(_open_predictor, str(model), threads, dict(settings)), devices)


def _open_predictor(model: str, cpu_threads: int, settings: dict[str, Any], device: str) -> Segmenter:
    import torch

    from vesalius.models.cpu_allocator import keep_freed_memory

    keep_freed_memory()
    if device == "cpu":
        torch.set_num_threads(cpu_threads)
    return load_predictor(model, device=device, **settings)


class ModelProcess:
    """A process with one segmenter, which is opened by the first call; a context manager that ends it.

    A thread waits for the answer of each call, so calls run one after the other and yield futures.
    """

    def __init__(self, make: Open, device: str) -> None:
        # loky's processes do not import the caller's main module, so a script needs no guard around its last lines
        from loky.backend import get_context

        context = get_context("loky")
        self.device = device
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, device), daemon=True)
        self._process.start()
        theirs.close()
        self._thread = ThreadPoolExecutor(1)
        self._unfinished: list[Future[Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._thread.shutdown(cancel_futures=True)
        self._process.join()
        self._connection.close()

    @property
    def pid(self) -> int:
        """Id of the process."""
        return int(self._process.pid)

    @property
    def waiting(self) -> int:
        """Number of calls that wait or run."""
        self._unfinished = [each for each in self._unfinished if not each.done()]
        return len(self._unfinished)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """`work(segmenter, *arguments)` in the process; `work` is a function of a module.

        The future raises the exception of `work`; VesaliusError if the process was killed.
        """
        future = self._thread.submit(self._call, work, arguments)
        self._unfinished.append(future)
        return future

    def _call(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        try:
            self._connection.send((work, arguments))
            result, error = self._connection.recv()
        except (EOFError, OSError) as broken:
            raise VesaliusError(
                f"the process on {self.device} was killed, perhaps because memory ran out; repeat the command to "
                "continue",
                code="process_killed",
            ) from broken
        if error is not None:
            raise error
        return result


def _serve(connection: Any, make: Open, device: str) -> None:
    """Open the segmenter at the first call, and answer calls until the other end is closed."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes; the first one ends the others
    segmenter: Segmenter | None = None
    while True:
        try:
            work, arguments = connection.recv()
        except EOFError:
            return
        try:
            segmenter = make(device) if segmenter is None else segmenter
            answer: tuple[Any, Exception | None] = work(segmenter, *arguments), None
        except Exception as error:  # raised again where the result is taken
            answer = None, error
        try:
            connection.send(answer)
        except (TypeError, AttributeError, pickle.PicklingError):  # an error that cannot be pickled
            connection.send((None, RuntimeError(f"{type(answer[1]).__name__}: {answer[1]}")))


class Processes(Described):
    """One model process for each device; a context manager that ends them."""

    def __init__(self, make: Open, devices: Sequence[str]) -> None:
        self._files = ExitStack()
        self.processes = [self._files.enter_context(ModelProcess(make, device)) for device in devices]
        self._usage = [Usage() for _ in devices]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    @property
    def description(self) -> ModelDescription:
        """The description of the model, which is opened in all processes.

        SettingError for a device that does not exist, or one that would compute in another dtype than the others.
        """
        return self._description

    @cached_property
    def _description(self) -> ModelDescription:
        opened = [process.submit(_describe) for process in self.processes]
        found = [future.result() for future in opened]
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
        """Raise the model's SettingError for prompts that it cannot answer; the first process is asked."""
        self.processes[0].submit(_check, tuple(prompts)).result()

    def answer_samples(
        self, samples: Iterable[Sample], out: Path, save: Sequence[str]
    ) -> Generator[list[Line], None, None]:
        """As `folder.answer_samples`, in pieces of the list, each for the process with the fewest unfinished ones.

        VesaliusError if a process was killed.
        """
        most = AHEAD * len(self.processes)
        numbers = range(len(self.processes))

        def submit(piece: list[Sample]) -> Future[tuple[int, list[list[Line]], Usage]]:
            number = min(numbers, key=lambda k: self.processes[k].waiting)
            return self.processes[number].submit(_answer, number, piece, out, tuple(save))

        pieces = _cut(samples, BATCHES * self.description.batch_size)
        for number, lines, usage in in_order(submit, pieces, lambda pending: len(pending) >= most):
            self._usage[number] = usage
            yield from lines


def _cut(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    rest = iter(samples)
    while piece := list(islice(rest, size)):
        yield piece


def _describe(segmenter: Segmenter) -> ModelDescription:
    return segmenter.description


def _check(segmenter: Segmenter, prompts: tuple[str, ...]) -> None:
    segmenter.check_prompts(prompts)


def _answer(
    segmenter: Segmenter, number: int, piece: list[Sample], out: Path, save: tuple[str, ...]
) -> tuple[int, list[list[Line]], Usage]:
    """The number of the process, the lines of each sample, and the counters of the process so far."""
    lines = list(answer_samples(segmenter, piece, out, save))
    return number, lines, segmenter.usage
