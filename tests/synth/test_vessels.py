"""Vessel trees: Murray's law at each bifurcation, stenoses, and origins of branches."""

import doctest

import numpy as np
import pytest

from vesalius.synth import vessels
from vesalius.synth.heart import grow_tree
from vesalius.synth.retina import grow_eye
from vesalius.synth.vessels import STENOSIS, Vessel, caliber, choose_origins, fork, murray_ratio


def straight(radius: float, n: int = 400) -> Vessel:
    points = np.stack([10 + 0.6 * np.arange(n), np.full(n, 50.0)], axis=1)
    return Vessel(points, np.full(n, float(radius)), np.zeros(n))


def all_of(seed: int, kind: str, size: int = 512) -> list[Vessel]:
    rng = np.random.default_rng(seed)
    if kind == "retina":
        return list(grow_eye(rng, size).vessels)
    tree = grow_tree(rng, size)
    return [*tree.vessels, *tree.twigs]


def test_radii_of_two_daughters_obey_murrays_law() -> None:
    for share in (0.3, 0.6, 0.9):
        assert share**3 + murray_ratio(share) ** 3 == pytest.approx(1)
    assert doctest.testmod(vessels).failed == 0


def test_a_vessel_is_thinner_after_each_origin() -> None:
    vessel, radii = fork(straight(5), np.array([100, 200]), lambda radius: 0.5)
    behind = murray_ratio(0.5)
    assert radii == pytest.approx([2.5, 2.5 * behind])
    np.testing.assert_allclose(
        vessel.reference_radius[[0, 100, 101, 200, 201]], 5 * behind ** np.array([0, 0, 1, 1, 2])
    )


@pytest.mark.parametrize("kind", ["coronary", "retina"])
def test_murrays_law_holds_at_each_bifurcation_of_a_tree(kind: str) -> None:
    forks = 0
    for seed in range(8):
        found: dict[tuple[int, int], list[Vessel]] = {}
        for vessel in all_of(seed, kind):
            if vessel.parent is not None:
                found.setdefault((id(vessel.parent), vessel.start), []).append(vessel)
        for children in found.values():
            parent, start = children[0].parent, children[0].start
            assert parent is not None
            last = start == len(parent.reference_radius) - 1
            outgoing = [child.reference_radius[0] for child in children] + (
                [] if last else [parent.reference_radius[start + 1]]
            )
            if last and len(children) == 1:
                continue  # the other branch is not in the image
            assert len(outgoing) == 2
            total = sum(radius**3 for radius in outgoing) ** (1 / 3)
            # the parent tapers from one point to the next, more so if it is short
            assert total == pytest.approx(parent.reference_radius[start], rel=0.01 + 1.5 / len(parent.points))
            forks += 1
    assert forks > 60


@pytest.mark.parametrize("kind", ["coronary", "retina"])
@pytest.mark.parametrize("size", [64, 512])
def test_branches_begin_on_their_parent_and_are_thinner(kind: str, size: int) -> None:
    for seed in range(4):
        for vessel in all_of(seed, kind, size):
            assert vessel.points.shape == (len(vessel.reference_radius), 2) and len(vessel.stenosis) == len(
                vessel.reference_radius
            )
            if vessel.parent is not None:
                np.testing.assert_allclose(vessel.points[0], vessel.parent.points[vessel.start], atol=1e-9)
                assert vessel.reference_radius[0] < vessel.parent.reference_radius[vessel.start]
                assert vessel.path_px[0] == vessel.parent.path_px[vessel.start]


def test_origins_are_distinct_and_in_order_even_on_the_shortest_vessel() -> None:
    rng = np.random.default_rng(0)
    origins = choose_origins(rng, straight(3), 8, (0.1, 0.8))
    assert len(origins) == 8 and (np.diff(origins) > 0).all() and origins[0] >= 39 and origins[-1] < 320
    assert len(choose_origins(rng, straight(3, n=4), 8, (0.1, 0.8))) == 2


def test_radii_begin_at_the_given_radius_and_taper() -> None:
    radii = caliber(np.random.default_rng(1), np.linspace(0, 1, 200), 6.0, 0.5)
    assert radii[0] == 6.0 and 2.5 < radii[-1] < 3.5


@pytest.mark.parametrize(("depth", "expected"), [(0.49, 0), (0.51, 1), (0.7, 1)])
def test_a_stenosis_loses_half_the_diameter_or_more_between_its_shoulders(depth: float, expected: int) -> None:
    index = np.arange(400)
    stenosis = depth * np.exp(-(((index - 200) / 20) ** 2))
    vessel = Vessel(straight(6).points, np.full(400, 6.0), stenosis)
    assert vessel.in_stenosis.any() == expected
    if expected:
        np.testing.assert_array_equal(vessel.in_stenosis, stenosis >= vessels.SHOULDER)
        assert 1 - vessel.tube.radii.min() / 6 >= STENOSIS


def test_a_vessel_of_one_pixel_has_no_stenosis() -> None:
    vessel = Vessel(straight(1).points, np.full(400, 0.8), np.full(400, 0.7))
    assert not vessel.in_stenosis.any()
