"""Stratified parts: whole groups, the requested fractions, and similar label frequencies in each part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vesalius.curation.stratification import improve, stratify


def divide(sizes: np.ndarray, labels: np.ndarray, fractions: list[float], seed: int) -> np.ndarray:
    parts = stratify(sizes, labels, fractions, seed)
    return improve(parts, sizes, np.column_stack([labels, sizes]).astype(float), fractions, seed)


def test_four_groups_with_two_labels_are_divided_evenly() -> None:
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    parts = stratify(np.ones(4, int), labels, [0.5, 0.5], seed=0)
    assert sorted(parts[:2]) == sorted(parts[2:]) == [0, 1]


@given(
    st.lists(st.integers(1, 9), min_size=3, max_size=25),
    st.lists(st.integers(1, 9), min_size=2, max_size=3),
    st.integers(0, 2**31),
)
def test_fractions_are_met_within_the_largest_group_and_no_part_is_empty(
    sizes: list[int], weights: list[int], seed: int
) -> None:
    draw = np.random.default_rng(seed)
    counts = np.array(sizes)
    labels = draw.integers(0, counts[:, None] + 1, (len(sizes), 4))
    fractions = [weight / sum(weights) for weight in weights]
    parts = divide(counts, labels, fractions, seed)
    assert set(parts.tolist()) == set(range(len(fractions)))
    wanted = np.array(fractions) * counts.sum()
    off = abs(np.bincount(parts, counts, len(fractions)) - wanted)
    if wanted.min() >= counts.max():  # else a part that must not stay empty may have to take more
        assert off.max() <= counts.max() + 1e-9


@given(st.integers(0, 2**31))
def test_the_same_seed_gives_the_same_parts(seed: int) -> None:
    draw = np.random.default_rng(seed)
    sizes, labels = draw.integers(1, 5, 12), draw.integers(0, 3, (12, 3))
    first, second = (divide(sizes, labels, [0.6, 0.4], seed) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_exchanges_balance_a_measure_and_keep_the_sizes() -> None:
    area = np.array([[8.0], [8.0], [8.0], [1.0], [1.0], [1.0]])
    parts = improve(np.array([0, 0, 0, 1, 1, 1]), np.ones(6, int), area, [0.5, 0.5], seed=0)
    assert np.bincount(parts).tolist() == [3, 3]
    assert sorted(area[parts == part].sum() for part in (0, 1)) == [10, 17]


def test_fewer_groups_than_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="1 groups cannot fill 2 parts"):
        stratify(np.ones(1, int), np.zeros((1, 1), int), [0.5, 0.5], seed=0)
