"""Work on samples in other processes, in order, with few of them in flight, so that memory does not grow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from vesalius.errors import VesaliusError

Job = TypeVar("Job")
Result = TypeVar("Result")

IN_FLIGHT = 4
"""Jobs of each process that wait or are done and not yet taken."""


def map_in_order(
    work: Callable[[Job], Result], jobs: Iterable[Job], processes: int
) -> Generator[Result, None, None]:
    """`work` on each job, results in the order of the jobs; with 0 processes it is done here.

    Jobs are taken from the iterable only as results are taken, at most `IN_FLIGHT` ahead for each process. An
    exception of `work` is raised here; VesaliusError where a process was killed.
    """
    if processes == 0:
        yield from map(work, jobs)
        return
    # loky's processes do not run the caller's main module again, so a script needs no guard around its last lines
    from loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=processes, timeout=60)
    pending: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            pending.append(executor.submit(work, job))
            if len(pending) > IN_FLIGHT * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise VesaliusError(
            "a working process was killed, perhaps because memory ran out; run the same again to continue "
            f"where it stopped, with fewer workers than these {processes} if it happens twice"
        ) from error
    finally:
        for future in pending:
            future.cancel()
