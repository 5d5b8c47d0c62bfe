"""Means and cluster bootstrap intervals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vesalius.evaluation import statistics
from vesalius.evaluation.statistics import bootstrap_interval, summarise


def row(status: str, group: str, dice: float | None) -> dict:
    return {"status": status, "group": group, "dice": dice}


def test_interval_of_two_groups_reaches_from_one_to_the_other():
    # two groups give the means 0, 0.5, 0.5 and 1 with equal chance: 2.5 % and 97.5 % are the ends
    assert bootstrap_interval([0.0, 1.0], ["a", "b"]) == (0.0, 1.0)


def test_interval_agrees_with_all_draws_counted_out():
    sizes = {"a": [0.1, 0.3], "b": [0.5], "c": [0.9, 0.7, 0.8]}
    values = [value for group in sizes.values() for value in group]
    groups = [name for name, group in sizes.items() for _ in group]
    means = [np.mean(list(itertools.chain(*draw))) for draw in itertools.product(sizes.values(), repeat=3)]

    low, high = bootstrap_interval(values, groups, level=0.5, resamples=20_000)

    # 27 draws are few: an end of the interval is the mean at which their distribution steps over the quantile
    for end, quantile in ((low, 0.25), (high, 0.75)):
        assert np.mean(np.less(means, end - 1e-9)) <= quantile <= np.mean(np.less(means, end + 1e-9))


def test_frames_of_one_patient_do_not_narrow_the_interval():
    patients = np.random.default_rng(1).random(12)
    once = bootstrap_interval(patients, range(12))
    thirty_times = bootstrap_interval(np.repeat(patients, 30), np.repeat(np.arange(12), 30).tolist())
    as_if_independent = bootstrap_interval(np.repeat(patients, 30), range(360))

    assert thirty_times == pytest.approx(once)
    assert as_if_independent[1] - as_if_independent[0] < 0.3 * (once[1] - once[0])


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(1000):
        patients = random.normal(0.7, 0.1, size=40)
        values = (patients[:, None] + random.normal(0, 0.05, size=(40, 5))).ravel()
        low, high = bootstrap_interval(
            values, np.repeat(np.arange(40), 5).tolist(), resamples=400, seed=seed + 1
        )
        hits += low <= 0.7 <= high

    assert 0.91 <= hits / 1000 <= 0.97


def test_same_seed_gives_the_same_interval_whatever_the_memory_bound(monkeypatch):
    values, groups = [0.1, 0.2, 0.9, 0.4], list("abcd")
    whole = bootstrap_interval(values, groups, seed=3)
    monkeypatch.setattr(statistics, "DRAWS_AT_ONCE", 7)

    assert bootstrap_interval(values, groups, seed=3) == whole


@pytest.mark.parametrize(("values", "groups"), [([], []), ([0.5], ["a"]), ([0.5, 0.7], ["a", "a"])])
def test_fewer_than_two_groups_have_no_interval(values, groups):
    assert bootstrap_interval(values, groups) is None


@pytest.mark.parametrize(
    ("values", "groups", "level", "words"),
    [
        ([0.5], ["a", "b"], 0.95, "1 values but 2 groups"),
        ([0.5, float("nan")], ["a", "b"], 0.95, "not a finite number"),
        ([0.5, 0.6], ["a", "b"], 95, "level must lie between 0 and 1"),
    ],
)
def test_values_that_make_no_interval_are_refused(values, groups, level, words):
    with pytest.raises(ValueError, match=words):
        bootstrap_interval(values, groups, level=level)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4)), min_size=1, max_size=20))
def test_interval_lies_within_the_values(pairs):
    values, groups = zip(*pairs, strict=True)
    interval = bootstrap_interval(values, groups, resamples=50)
    if len(set(groups)) < 2:
        assert interval is None
    else:
        assert min(values) - 1e-9 <= interval[0] <= interval[1] <= max(values) + 1e-9


def test_failed_rows_have_no_score_and_rows_without_seg_are_scored_as_empty():
    summary = summarise(
        [row("ok", "a", 0.8), row("ok", "b", 0.6), row("no_seg", "c", 0.0), row("failed", "d", None)],
        ["dice"],
    )

    assert summary["coverage"] == {"ok": 2, "failed": 1, "no_seg": 1}
    assert summary["mean"]["dice"] == pytest.approx(1.4 / 3)
    assert summary["mean_answered"]["dice"] == pytest.approx(0.7)
    assert summary["undefined"]["dice"] == 0


def test_undefined_values_leave_the_mean_and_are_counted():
    summary = summarise([row("ok", "a", 0.5), row("ok", "b", None)], ["dice"])

    assert (summary["mean"]["dice"], summary["undefined"]["dice"], summary["ci95"]["dice"]) == (0.5, 1, None)


def test_mean_of_nothing_is_none():
    summary = summarise([row("failed", "a", None)], ["dice"])

    assert (summary["mean"]["dice"], summary["mean_answered"]["dice"], summary["ci95"]["dice"]) == (
        None,
        None,
        None,
    )
