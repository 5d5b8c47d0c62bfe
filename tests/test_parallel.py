"""Other processes: the same results in the same order, few in flight, and one sentence when one is killed."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pytest

from vesalius.errors import VesaliusError
from vesalius.parallel import IN_FLIGHT, map_in_order


def wait_longer_for_the_first(number: int) -> int:
    import time

    time.sleep(0.2 if number == 0 else 0)
    return number


def end(number: int) -> int:
    os._exit(7)


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_results_come_in_order_with_few_jobs_taken_ahead(processes):
    taken = 0

    def jobs() -> Any:
        nonlocal taken
        for number in range(40):
            taken += 1
            yield number

    ahead = []
    for done, result in enumerate(map_in_order(wait_longer_for_the_first, jobs(), processes)):
        assert result == done
        ahead.append(taken - done)
    assert max(ahead) <= IN_FLIGHT * processes + 1


def test_process_that_was_killed_is_one_sentence():
    with pytest.raises(VesaliusError, match=r"was killed.*run the same again to continue"):
        list(map_in_order(end, range(3), 1))
    assert list(map_in_order(wait_longer_for_the_first, range(3), 1)) == [0, 1, 2]


def test_error_of_the_work_is_raised_as_it_is():
    with pytest.raises(ZeroDivisionError):
        list(map_in_order(partial(divmod, 1), [1, 0], 1))
