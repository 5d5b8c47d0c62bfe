"""Copies of one model in several processes, each on its own device; together they predict one list of images."""

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
from vesalius.jobs.folder import predict_and_write
from vesalius.jobs.opening import load_predictor
from vesalius.jobs.prediction_log import Line
from vesalius.parallel import in_order
from vesalius.segmenter import Described, ModelDescription, Segmenter, Usage
from vesalius.types import Sample

BATCHES = 8
"""Batches per chunk. A killed process loses at most one chunk, and a process idles only between chunks."""
AHEAD = 2
"""Maximum number of chunks per process that are queued, running, or done and not yet consumed."""

Open = Callable[[str], Segmenter]
"""Opens a segmenter on the named device; must be picklable."""


def predictor_processes(model: str, devices: Sequence[str], settings: Mapping[str, Any]) -> Processes:
    """One predictor process per device, such as `cuda:0`; `settings` are the other arguments of `load_predictor`.

    Predictors on the CPU share its cores. SettingError if no device is given.
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
    """A process with one segmenter, opened at the first call; a context manager that terminates the process.

    Calls run one after the other. A thread waits for each result, so `submit` returns a future.
    """

    def __init__(self, make: Open, device: str) -> None:
        # loky does not import the caller's main module, so scripts need no `if __name__ == "__main__"`
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
        """Process id."""
        return int(self._process.pid)

    @property
    def waiting(self) -> int:
        """Number of queued and running calls."""
        self._unfinished = [each for each in self._unfinished if not each.done()]
        return len(self._unfinished)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run `work(segmenter, *arguments)` in the process; `work` is a module-level function.

        The future raises the exception of `work`, or VesaliusError if the process was killed.
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
    """Open the segmenter at the first call, and run calls until the parent closes the connection."""
    # Ctrl-C reaches all processes; the parent terminates the others
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    segmenter: Segmenter | None = None
    while True:
        try:
            work, arguments = connection.recv()
        except EOFError:
            return
        try:
            segmenter = make(device) if segmenter is None else segmenter
            reply: tuple[Any, Exception | None] = work(segmenter, *arguments), None
        except Exception as error:  # the parent raises it again
            reply = None, error
        try:
            connection.send(reply)
        except (TypeError, AttributeError, pickle.PicklingError):  # an error that cannot be pickled
            connection.send((None, RuntimeError(f"{type(reply[1]).__name__}: {reply[1]}")))


class Processes(Described):
    """One model process per device; a context manager that terminates them."""

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
        """Description of the model, after opening it in all processes.

        SettingError for a device that does not exist, and for devices that would compute in different dtypes.
        """
        return self._description

    @cached_property
    def _description(self) -> ModelDescription:
        opened = [process.submit(_describe) for process in self.processes]
        found = [future.result() for future in opened]
        dtypes = sorted({str(each.settings.get("dtype")) for each in found})
        if len(dtypes) > 1:
            raise SettingError(
                f"--devices: the devices compute in {' and '.join(dtypes)}, which gives different masks; "
                "choose devices of one kind",
                code="conflicting_settings",
                field="devices",
            )
        return found[0]

    @property
    def usage(self) -> Usage:
        """Counters summed over all processes."""
        cache: dict[str, int] = {}
        for each in self._usage:
            for name, count in each.cache.items():
                cache[name] = cache.get(name, 0) + count
        return Usage(sum(each.batch_halved for each in self._usage), cache)

    def check_prompts(self, prompts: Iterable[str]) -> list[str]:
        """Notes as for `Segmenter`; every process checks the prompts, so none of them logs the notes itself."""
        given = tuple(prompts)
        checked = [process.submit(_check, given) for process in self.processes]
        notes = [each.result() for each in checked]
        return notes[0]

    def predict_and_write(
        self, samples: Iterable[Sample], out: Path, save: Sequence[str]
    ) -> Generator[list[Line], None, None]:
        """`folder.predict_and_write` in chunks; each chunk goes to the process with the shortest queue.

        VesaliusError if a process was killed.
        """
        most = AHEAD * len(self.processes)
        numbers = range(len(self.processes))

        def submit(chunk: list[Sample]) -> Future[tuple[int, list[list[Line]], Usage]]:
            number = min(numbers, key=lambda k: self.processes[k].waiting)
            return self.processes[number].submit(_predict_chunk, number, chunk, out, tuple(save))

        chunks = _split(samples, BATCHES * self.description.batch_size)
        for number, lines, usage in in_order(submit, chunks, lambda pending: len(pending) >= most):
            self._usage[number] = usage
            yield from lines


def _split(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    rest = iter(samples)
    while chunk := list(islice(rest, size)):
        yield chunk


def _describe(segmenter: Segmenter) -> ModelDescription:
    return segmenter.description


def _check(segmenter: Segmenter, prompts: tuple[str, ...]) -> list[str]:
    return segmenter.check_prompts(prompts)


def _predict_chunk(
    segmenter: Segmenter, number: int, chunk: list[Sample], out: Path, save: tuple[str, ...]
) -> tuple[int, list[list[Line]], Usage]:
    """Index of the process, lines of each sample, and the process's counters so far."""
    lines = list(predict_and_write(segmenter, chunk, out, save))
    return number, lines, segmenter.usage
