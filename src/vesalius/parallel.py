"""Ordered parallel maps in threads or processes with a bounded number of jobs in flight, hence of bounded memory.

`Executor.map` of the standard library is not used because it submits all jobs at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from vesalius.errors import VesaliusError

Job = TypeVar("Job")
Result = TypeVar("Result")

IN_FLIGHT = 4
"""Maximum jobs per process that are queued, running, or finished with an unconsumed result."""
THREADS = 2
"""Number of reading threads, and of writing threads, next to the thread of the model."""
MOST_BYTES = 2**29
"""Byte limit of all jobs in flight: no job is started above it; a single job may exceed it."""


def in_order(
    submit: Callable[[Job], Future[Result]],
    jobs: Iterable[Job],
    is_full: Callable[[Sequence[tuple[Job, Future[Result]]]], bool],
) -> Generator[Result, None, None]:
    """The results of the jobs, in the order of the jobs.

    The calling thread iterates over `jobs` and submits them. While `is_full(pending)` is true, it waits for the oldest
    result before it submits more. A job's exception is raised instead of its result. Closing the generator cancels jobs
    that have not started.
    """
    pending: deque[tuple[Job, Future[Result]]] = deque()
    try:
        for job in jobs:
            pending.append((job, submit(job)))
            while pending and is_full(pending):
                yield pending.popleft()[1].result()
        while pending:
            yield pending.popleft()[1].result()
    finally:
        for _, future in pending:
            future.cancel()


def map_in_threads(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    ahead: int,
    weigh: Callable[[Any], int] = lambda _: 0,
    threads: int = THREADS,
) -> Generator[Result, None, None]:
    """Map `work` over the jobs in `threads` threads (0: the calling thread); results are in the order of the jobs.

    At most `ahead` + 1 jobs are in flight, and none is submitted while they occupy more than `MOST_BYTES`; `weigh`
    returns the bytes of a job, or of its result once it is finished. A job's exception is raised instead of its result.
    Closing the generator waits for running jobs.
    """
    if threads == 0:
        yield from map(work, jobs)
        return

    def is_full(pending: Sequence[tuple[Job, Future[Result]]]) -> bool:
        return len(pending) > ahead or sum(_bytes(*each, weigh) for each in pending) > MOST_BYTES

    with ThreadPoolExecutor(threads) as pool:
        yield from in_order(lambda job: pool.submit(work, job), jobs, is_full)


def map_in_processes(
    work: Callable[[Job], Result], jobs: Iterable[Job], processes: int
) -> Generator[Result, None, None]:
    """Map `work` over the jobs in `processes` processes (0: the calling process); results are in the order of the jobs.

    At most `IN_FLIGHT` jobs per process are in flight. A job's exception is raised instead of its result; VesaliusError
    if a process was killed.
    """
    if processes == 0:
        yield from map(work, jobs)
        return
    # loky does not import the caller's main module in its processes, so scripts need no `if __name__ == "__main__"`
    from loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=processes, timeout=60)
    try:
        yield from in_order(
            lambda job: executor.submit(work, job), jobs, lambda pending: len(pending) > IN_FLIGHT * processes
        )
    except BrokenProcessPool as error:
        raise VesaliusError(
            "a worker process was killed, perhaps because memory ran out; repeat the command to continue, with fewer "
            f"workers (now {processes}) if it happens again",
            code="process_killed",
        ) from error


def _bytes(job: Any, future: Future[Any], weigh: Callable[[Any], int]) -> int:
    if not future.done():
        return weigh(job)
    return 0 if future.exception() is not None else weigh(future.result())
