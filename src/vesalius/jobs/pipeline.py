"""Work in threads beside the model's: in order, with few jobs in flight, so that memory does not grow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

THREADS = 2
"""That read, and as many that write. A volume or a video is decoded by each of them from its own place."""
MOST_BYTES = 2**29
"""Pixels that wait on either side of the model; a single image may have more."""


def map_in_threads(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    ahead: int,
    weigh: Callable[[Any], int] = lambda _: 0,
) -> Generator[Result, None, None]:
    """`work` on each job in `THREADS` threads, results in the order of the jobs, taken here.

    Jobs are drawn from the iterable in this thread, at most `ahead` before the result that comes next, and none while
    those in flight weigh more than `MOST_BYTES`: `weigh` gives the bytes that a job, or the result of one that is
    done, holds. An exception of `work` is raised here, in its turn. What has begun is waited for when the generator is
    closed.
    """
    pool = ThreadPoolExecutor(THREADS)
    pending: deque[tuple[Job, Future[Result]]] = deque()

    def too_many() -> bool:
        return len(pending) > ahead or sum(_bytes(*each, weigh) for each in pending) > MOST_BYTES

    try:
        for job in jobs:
            pending.append((job, pool.submit(work, job)))
            while pending and too_many():
                yield pending.popleft()[1].result()
        while pending:
            yield pending.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)


def _bytes(job: Any, future: Future[Any], weigh: Callable[[Any], int]) -> int:
    if not future.done():
        return weigh(job)
    return 0 if future.exception() is not None else weigh(future.result())
