"""Means, cluster bootstrap intervals and paired tests."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vesalius.evaluation import statistics
from vesalius.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    cohens_d_z,
    holm,
    paired_comparisons,
    rank_biserial,
    signed_rank_test,
    summarize,
)


def row(status: str, group: str, dice: float | None) -> dict:
    return {"status": status, "group": group, "dice": dice}


def ends(interval: Interval | None) -> tuple[float, float]:
    assert interval is not None
    return interval.low, interval.high


def test_interval_of_two_groups_spans_both_values():
    # two groups give the means 0, 0.5, 0.5 and 1 with equal probability: the 2.5 % and 97.5 % quantiles are the ends
    assert bootstrap_interval([0.0, 1.0], ["a", "b"]) == Interval(0.0, 1.0, "percentile", n_groups=2)


def test_percentile_interval_agrees_with_an_enumeration_of_all_resamples():
    sizes = {"a": [0.1, 0.3], "b": [0.5], "c": [0.9, 0.7, 0.8]}
    values = [value for group in sizes.values() for value in group]
    groups = [name for name, group in sizes.items() for _ in group]
    means = [np.mean(list(itertools.chain(*draw))) for draw in itertools.product(sizes.values(), repeat=3)]

    low, high = ends(bootstrap_interval(values, groups, level=0.5, resamples=20_000))

    # with 27 resamples, each end is the mean at which the distribution passes the quantile
    for end, quantile in ((low, 0.25), (high, 0.75)):
        assert np.mean(np.less(means, end - 1e-9)) <= quantile <= np.mean(np.less(means, end + 1e-9))


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_interval_is_that_of_scipy_on_the_same_draws(method):
    # groups are drawn in the order of their sums, so sorted values make scipy's draws the same
    values = np.sort(np.random.default_rng(3).beta(5, 1, size=25))
    oracle = stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method=method, rng=np.random.default_rng(7), batch=2000
    ).confidence_interval

    found = bootstrap_interval(values.tolist(), range(25), seed=7, method=method)

    assert found.method == method and found.n_groups == 25
    assert ends(found) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


def test_bca_moves_the_interval_towards_the_long_tail():
    values = np.random.default_rng(0).beta(8, 1, size=30).tolist()
    plain, corrected = (bootstrap_interval(values, range(30), method=method) for method in ("percentile", "bca"))
    assert corrected.low < plain.low and corrected.high < plain.high


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([0.2, 0.4, 0.9, 0.5], "four groups are fewer than BCA_GROUPS"),
        ([0.1 + 0.2] * 3 + [0.3] * 3, "all groups are equal up to rounding"),
    ],
)
def test_percentiles_are_taken_where_bca_is_not_defined(values, why):
    found = bootstrap_interval(values, range(len(values)))
    assert found == bootstrap_interval(values, range(len(values)), method="percentile"), why


def test_percentiles_are_taken_where_all_draws_lie_on_one_side():
    found = bootstrap_interval([1, 2, 4, 8, 16, 32], range(6), resamples=1)
    assert found.method == "percentile"


def test_frames_of_one_patient_do_not_narrow_the_interval():
    patients = np.random.default_rng(1).random(12)
    once = ends(bootstrap_interval(patients, range(12)))
    thirty_times = ends(bootstrap_interval(np.repeat(patients, 30), np.repeat(np.arange(12), 30).tolist()))
    as_if_independent = ends(bootstrap_interval(np.repeat(patients, 30), range(360)))

    assert thirty_times == pytest.approx(once)
    assert as_if_independent[1] - as_if_independent[0] < 0.3 * (once[1] - once[0])


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(1000):
        patients = random.normal(0.7, 0.1, size=40)
        values = (patients[:, None] + random.normal(0, 0.05, size=(40, 5))).ravel()
        low, high = ends(bootstrap_interval(values, np.repeat(np.arange(40), 5).tolist(), resamples=400, seed=seed + 1))
        hits += low <= 0.7 <= high

    assert 0.91 <= hits / 1000 <= 0.97


def test_same_seed_gives_the_same_interval_whatever_the_memory_bound(monkeypatch):
    values, groups = [0.1, 0.2, 0.9, 0.4, 0.6, 0.65], list("abcdef")
    whole = bootstrap_interval(values, groups, seed=3)
    assert bootstrap_interval(values, groups, seed=3) == whole
    assert bootstrap_interval(values, groups, seed=4) != whole

    monkeypatch.setattr(statistics, "DRAWS_AT_ONCE", 7)
    assert ends(bootstrap_interval(values, groups, seed=3)) == pytest.approx(ends(whole), abs=1e-12)


@pytest.mark.parametrize(("values", "groups"), [([], []), ([0.5], ["a"]), ([0.5, 0.7], ["a", "a"])])
def test_fewer_than_two_groups_have_no_interval(values, groups):
    assert bootstrap_interval(values, groups) is None


@pytest.mark.parametrize(
    ("values", "groups", "level", "words"),
    [
        ([0.5], ["a", "b"], 0.95, "1 values but 2 groups"),
        ([0.5, float("nan")], ["a", "b"], 0.95, "must be finite numbers"),
        ([0.5, 0.6], ["a", "b"], 95, "level must lie between 0 and 1"),
    ],
)
def test_values_that_make_no_interval_are_refused(values, groups, level, words):
    with pytest.raises(ValueError, match=words):
        bootstrap_interval(values, groups, level=level)


PAIRS = st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 7)), min_size=1, max_size=20)
"""(value, number of its group)."""


@given(PAIRS)
def test_interval_lies_within_the_values(pairs):
    values, groups = zip(*pairs, strict=True)
    interval = bootstrap_interval(values, groups, resamples=50)
    if len(set(groups)) < 2:
        assert interval is None
    else:
        assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9


@given(PAIRS, st.randoms(use_true_random=False))
def test_neither_the_order_of_rows_nor_the_names_of_groups_matter(pairs, random):
    values, groups = zip(*pairs, strict=True)
    [before] = paired_comparisons([(values, groups)], resamples=50)
    names = random.sample("abcdefgh", 8)
    values, groups = zip(*random.sample(pairs, len(pairs)), strict=True)
    [after] = paired_comparisons([(values, [names[group] for group in groups])], resamples=50)

    assert after.interval == before.interval
    assert (after.p, after.rank_biserial) == (before.p, before.rank_biserial)
    assert after.d_z == pytest.approx(before.d_z)


@given(PAIRS)
def test_swapping_the_two_results_turns_all_signs(pairs):
    values, groups = zip(*pairs, strict=True)
    [one] = paired_comparisons([(values, groups)], resamples=50)
    [two] = paired_comparisons([([-value for value in values], groups)], resamples=50)

    assert two.difference == -one.difference
    assert two.p == one.p and two.p_holm == one.p_holm
    assert two.rank_biserial == (None if one.rank_biserial is None else -one.rank_biserial)
    assert two.d_z == (None if one.d_z is None else pytest.approx(-one.d_z))
    if one.interval and math.fsum(values) != 0:  # at 0, either mirror image may be drawn
        assert ends(two.interval) == (-one.interval.high, -one.interval.low)


def test_one_column_among_many_has_the_interval_that_it_has_alone():
    random = np.random.default_rng(5)
    columns = [(random.random(20).tolist(), list(range(20))) for _ in range(3)]
    columns.append((random.random(12).tolist(), list(range(12))))

    for column, found in zip(columns, statistics.bootstrap_intervals(columns), strict=True):
        assert ends(found) == pytest.approx(ends(bootstrap_interval(*column)), abs=1e-12)


def test_signed_rank_test_of_small_examples():
    # ranks 1, 2 and 3, all positive: 2 of the 8 sign combinations are as extreme
    assert signed_rank_test(np.array([0.1, 0.2, 0.4])) == 2 / 8
    # the zero is excluded; rank 1 is negative: a sum of at most 1 in 2 of 4 combinations, two-sided
    assert signed_rank_test(np.array([0.0, -0.1, 0.4])) == 1.0
    # ranks 1.5, 1.5, 3 and 4, one 1.5 negative: 3 of 16 combinations have a sum of at most 1.5, two-sided
    assert signed_rank_test(np.array([0.1, -0.1, 0.2, 0.4])) == 6 / 16


@pytest.mark.parametrize("count", [5, 20, 50, 51, 200])
def test_signed_rank_test_is_that_of_scipy_without_ties(count):
    differences = np.random.default_rng(count).normal(0.2, 1, size=count)
    assert signed_rank_test(differences) == pytest.approx(stats.wilcoxon(differences).pvalue, rel=1e-9)


def test_signed_rank_test_with_ties_is_that_of_scipys_permutation_test():
    random = np.random.default_rng(0)
    for _ in range(5):
        differences = random.integers(-2, 5, size=8).astype(float)
        nonzero = differences[differences != 0]
        oracle = stats.wilcoxon(nonzero, method=stats.PermutationMethod(n_resamples=2**9)).pvalue
        assert signed_rank_test(differences) == pytest.approx(oracle)


def test_signed_rank_test_of_many_ties_is_that_of_scipy():
    differences = np.random.default_rng(2).integers(-3, 5, size=100).astype(float)
    oracle = stats.wilcoxon(differences[differences != 0], method="asymptotic").pvalue
    assert signed_rank_test(differences) == pytest.approx(oracle)


def test_rounding_is_neither_a_difference_nor_a_rank():
    noise = 0.1 + 0.2 - 0.3
    assert signed_rank_test(np.array([noise, noise])) == 1.0
    assert rank_biserial(np.array([noise, 0.0])) == 0.0
    assert signed_rank_test(np.array([0.3, -0.1 - 0.2, 0.5])) == signed_rank_test(np.array([0.3, -0.3, 0.5]))


def test_effect_sizes_of_a_small_example():
    differences = np.array([-0.1, 0.2, 0.3, 0.4])  # rank 1 is negative, 2 + 3 + 4 positive
    assert rank_biserial(differences) == (9 - 1) / 10
    # mean 0.2; the squares of -0.3, 0, 0.1, 0.2 sum to 0.14
    assert cohens_d_z(differences) == pytest.approx(0.2 / (0.14 / 3) ** 0.5)


def test_holm_correction_of_a_small_example():
    # sorted: 4 x 0.01, 3 x 0.02, then 2 x 0.025 = 0.05 raised to 0.06, 1 x 0.4
    assert holm([0.025, 0.01, 0.4, 0.02]) == pytest.approx([0.06, 0.04, 0.4, 0.06])
    assert holm([0.6, None, 0.7]) == [1.0, None, 1.0]
    assert holm([]) == []


def test_paired_comparison_weights_pairs_in_the_mean_and_groups_in_the_test():
    # a: 0.4 and 0.2, mean 0.3; b: 0.1; c: -0.2
    differences, groups = [0.4, 0.2, 0.1, -0.2], ["a", "a", "b", "c"]
    [found] = paired_comparisons([(differences, groups)])

    assert (found.n, found.n_groups) == (4, 3)
    assert found.difference == pytest.approx(0.125)
    assert found.rank_biserial == pytest.approx((3 + 1 - 2) / 6)
    assert found.p == 6 / 8  # rank sums 0, 1, 2 of 8 combinations, two-sided
    assert found.interval.low == pytest.approx(-0.2) and found.interval.high == pytest.approx(0.3)


def test_comparisons_are_corrected_together():
    clear = ([0.1 + index / 100 for index in range(10)], range(10))
    doubtful = ([0.1, -0.2, 0.3, -0.4, 0.5], range(5))
    found = paired_comparisons([clear, doubtful, ([0.5], ["a"])])

    assert [each.p_holm for each in found] == [2 * found[0].p, found[1].p, None]


def test_no_difference_has_p_1_and_no_d():
    [found] = paired_comparisons([([0.0] * 6, range(6))])
    assert (found.difference, found.p, found.rank_biserial, found.d_z) == (0.0, 1.0, 0.0, None)
    assert ends(found.interval) == (0.0, 0.0)


def test_same_difference_in_every_group_has_no_d():
    [found] = paired_comparisons([([0.5] * 6, range(6))])
    assert (found.rank_biserial, found.d_z, found.p) == (1.0, None, 2 / 64)


@pytest.mark.parametrize(("differences", "mean"), [([], None), ([0.2, 0.4], pytest.approx(0.3))])
def test_one_group_or_none_is_not_tested(differences, mean):
    [found] = paired_comparisons([(differences, ["a"] * len(differences))])

    assert found.difference == mean
    rest = (found.interval, found.p, found.p_holm, found.rank_biserial, found.d_z)
    assert rest == (None, None, None, None, None)


def test_failed_rows_have_no_score_and_rows_without_seg_are_scored_as_empty():
    summary = summarize(
        [row("ok", "a", 0.8), row("ok", "b", 0.6), row("no_seg", "c", 0.0), row("failed", "d", None)], ["dice"]
    )

    assert summary["coverage"] == {"ok": 2, "failed": 1, "no_seg": 1}
    assert summary["mean"]["dice"] == pytest.approx(1.4 / 3)
    assert summary["mean_answered"]["dice"] == pytest.approx(0.7)
    assert summary["undefined"]["dice"] == 0


def test_undefined_values_leave_the_mean_and_are_counted():
    summary = summarize([row("ok", "a", 0.5), row("ok", "b", None)], ["dice"])

    assert (summary["mean"]["dice"], summary["undefined"]["dice"], summary["ci95"]["dice"]) == (0.5, 1, None)
    assert (summary["n_groups"]["dice"], summary["ci_method"]["dice"]) == (1, None)


def test_every_interval_has_its_method_and_number_of_groups():
    rows = [{**row("ok", str(group), group / 10), "hd95_px": 2.0 if group < 3 else None} for group in range(6)]
    summary = summarize(rows, ["dice", "hd95_px"])

    assert summary["n_groups"] == {"dice": 6, "hd95_px": 3}
    assert summary["ci_method"] == {"dice": "bca", "hd95_px": "percentile"}
    assert summary["undefined"] == {"dice": 0, "hd95_px": 3}
    for metric in ("dice", "hd95_px"):
        defined = [each for each in rows if each[metric] is not None]
        alone = bootstrap_interval([each[metric] for each in defined], [each["group"] for each in defined])
        assert summary["ci95"][metric] == pytest.approx(ends(alone), abs=1e-12)


def test_mean_of_nothing_is_none():
    summary = summarize([row("failed", "a", None)], ["dice"])

    assert {summary[key]["dice"] for key in ("mean", "mean_answered", "ci95")} == {None}
