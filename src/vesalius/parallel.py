"""Ordered parallel maps with few jobs in flight, in threads or processes, so that memory does not grow with the input.

Written here because `Executor.map` of the standard library submits all jobs at once.
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
"""Jobs of each process that wait, run, or are done and not yet taken."""
THREADS = 2
"""Threads that read, and as many that write, beside the model's thread."""
MOST_BYTES = 2**29
"""Bytes held by jobs in flight beyond which no further job is started; a single job may hold more."""


def in_order(
    submit: Callable[[Job], Future[Result]],
    jobs: Iterable[Job],
    is_full: Callable[[Sequence[tuple[Job, Future[Result]]]], bool],
) -> Generator[Result, None, None]:
    """Results of the jobs, in their order.

    Jobs are drawn from the iterable in this thread and submitted one by one; while those whose results were not taken
    are too many for `is_full`, the next result is awaited first. The exception of a job is raised in its turn. Closing
    the generator cancels jobs that did not start.
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
    """`work` on each job in `threads` threads, results in the order of the jobs; with 0 threads in this one.

    At most `ahead` jobs are drawn before the next result, and none while those in flight hold more than `MOST_BYTES`.
    `weigh` gives the bytes that a job, or the result of a finished one, holds. Exceptions are raised in their turn.
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
    """`work` on each job in `processes` processes, results in the order of the jobs; with 0 processes in this one.

    At most `IN_FLIGHT` jobs are drawn ahead for each process. Exceptions of `work` are raised in their turn;
    VesaliusError if a process was killed.
    """
    if processes == 0:
        yield from map(work, jobs)
        return
    # loky's processes do not import the caller's main module, so a script needs no guard around its last lines
    from loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=processes, timeout=60)
    try:
        yield from in_order(
            lambda job: executor.submit(work, job), jobs, lambda pending: len(pending) > IN_FLIGHT * processes
        )
    except BrokenProcessPool as error:
        raise VesaliusError(
            "a worker process was killed, perhaps because memory ran out; repeat the command to continue, with fewer "
            f"workers than these {processes} if it happens again",
            code="process_killed",
        ) from error


def _bytes(job: Any, future: Future[Any], weigh: Callable[[Any], int]) -> int:
    if not future.done():
        return weigh(job)
    return 0 if future.exception() is not None else weigh(future.result())
