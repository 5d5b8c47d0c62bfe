"""Parallel maps: ordered results, few pending jobs, errors in order, one message for a killed process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from tests.codes import raises_code

from vesalius import parallel
from vesalius.errors import VesaliusError
from vesalius.parallel import IN_FLIGHT, THREADS, map_in_processes, map_in_threads


def uneven(number: int) -> int:
    time.sleep(0.01 * (number % 3 == 0))
    return number


def slow_start(number: int) -> int:
    time.sleep(0.2 if number == 0 else 0)
    return number


def end(number: int) -> int:
    os._exit(7)


@pytest.mark.parametrize(
    ("run", "ahead"),
    [
        *((partial(map_in_processes, slow_start, processes=n), IN_FLIGHT * n) for n in (0, 1, 2)),
        *((partial(map_in_threads, uneven, ahead=n), n) for n in (0, 1, 5)),
        (partial(map_in_threads, uneven, ahead=5, threads=0), 0),
    ],
)
def test_results_come_in_order_with_few_jobs_drawn_ahead(run: Any, ahead: int) -> None:
    drawn = 0

    def jobs() -> Iterator[int]:
        nonlocal drawn
        for number in range(30):
            drawn += 1
            yield number

    most = 0
    for done, result in enumerate(run(jobs=jobs())):
        assert result == done
        most = max(most, drawn - done)
    assert most <= ahead + 1


@pytest.mark.parametrize(
    "run", [partial(map_in_processes, processes=1), partial(map_in_threads, ahead=8)], ids=["processes", "threads"]
)
def test_errors_are_raised_in_their_turn(run: Any) -> None:
    results = run(partial(divmod, 6), [3, 2, 0, 1])
    assert [next(results), next(results)] == [(2, 0), (3, 0)]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_killed_process_is_one_error_and_the_next_map_works() -> None:
    with raises_code(VesaliusError, "process_killed", "now 1"):
        list(map_in_processes(end, range(3), 1))
    assert list(map_in_processes(slow_start, range(3), 1)) == [0, 1, 2]


def test_threads_work_while_the_caller_is_busy() -> None:
    both = threading.Barrier(THREADS + 1, timeout=10)

    def meet(_: int) -> None:
        both.wait()

    def jobs() -> Iterator[int]:
        yield from range(THREADS)
        both.wait()  # passes when all threads work beside this one

    assert len(list(map_in_threads(meet, jobs(), THREADS))) == THREADS


def test_heavy_results_stop_the_reading_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "MOST_BYTES", 1000)
    started: list[int] = []

    def read(number: int) -> np.ndarray:
        started.append(number)
        return np.zeros(600, np.uint8)

    def weigh(each: int | np.ndarray) -> int:
        return 600 if isinstance(each, int) else each.nbytes

    most = 0
    for done, _ in enumerate(map_in_threads(read, range(20), 10, weigh)):
        most = max(most, len(started) - done)
    assert most <= 2
    assert len(list(map_in_threads(read, range(3), 10, lambda _: 5000))) == 3, "a single heavy job runs alone"


def test_no_thread_is_left_after_an_early_close() -> None:
    before = threading.active_count()
    results = map_in_threads(uneven, range(100), 4)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before
