"""Threads beside the model: the order of the jobs, few of them in flight, and errors in their turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from vesalius.jobs import pipeline
from vesalius.jobs.pipeline import THREADS, map_in_threads


def uneven(number: int) -> int:
    time.sleep(0.01 * (number % 3 == 0))
    return number


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_results_come_in_order_with_few_jobs_drawn_ahead(ahead: int) -> None:
    drawn = 0

    def jobs() -> Iterator[int]:
        nonlocal drawn
        for number in range(30):
            drawn += 1
            yield number

    most = 0
    for done, result in enumerate(map_in_threads(uneven, jobs(), ahead)):
        assert result == done
        most = max(most, drawn - done)
    assert most <= ahead + 1


def test_work_goes_on_while_the_caller_is_busy() -> None:
    both = threading.Barrier(THREADS + 1, timeout=10)

    def meet(_: int) -> None:
        both.wait()

    def jobs() -> Iterator[int]:
        yield from range(THREADS)
        both.wait()  # passes when all threads are at work beside this one

    assert len(list(map_in_threads(meet, jobs(), THREADS))) == THREADS


def test_error_comes_after_the_results_before_it() -> None:
    came = []
    with pytest.raises(ZeroDivisionError):
        for result in map_in_threads(lambda number: 6 // number, [3, 2, 0, 1], 8):
            came.append(result)
    assert came == [2, 3]


def test_heavy_results_stop_the_reading_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MOST_BYTES", 1000)
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
    assert len(list(map_in_threads(read, range(3), 10, lambda _: 5000))) == 3, (
        "one too heavy alone still goes"
    )


def test_closed_early_it_leaves_no_thread() -> None:
    before = threading.active_count()
    results = map_in_threads(uneven, range(100), 4)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before
