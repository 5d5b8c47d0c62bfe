"""Area, length and diameters of shapes whose size is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vesalius.evaluation.geometry import measure


def bar(length: float, width: float, degrees: float, shape: tuple[int, int] = (200, 200)) -> np.ndarray:
    """A straight bar in the middle of an image."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    down, right = y - shape[0] / 2 + 0.3, x - shape[1] / 2 + 0.1
    angle = math.radians(degrees)
    along = right * math.cos(angle) + down * math.sin(angle)
    across = down * math.cos(angle) - right * math.sin(angle)
    return (abs(along) <= length / 2) & (abs(across) <= width / 2)


def ring(radius: float, width: float) -> np.ndarray:
    y, x = np.mgrid[:200, :200]
    return abs(np.hypot(y - 100, x - 100) - radius) <= width / 2


@pytest.mark.parametrize("width", [2, 4, 7, 15])
@pytest.mark.parametrize("degrees", [0, 20, 45, 90])
def test_straight_bar(width: float, degrees: float) -> None:
    found = measure(bar(120, width, degrees))
    assert found.area_px == pytest.approx(120 * width, rel=0.05, abs=70)
    assert found.length_px == pytest.approx(120, abs=4)
    assert found.mean_diameter_px == pytest.approx(width, abs=1)
    assert found.max_diameter_px == pytest.approx(width, abs=1)
    assert (found.area_mm2, found.length_mm, found.mean_diameter_mm, found.max_diameter_mm) == (None,) * 4


@pytest.mark.parametrize("radius", [5, 12, 40])
def test_disk(radius: float) -> None:
    y, x = np.mgrid[:100, :100]
    found = measure(np.hypot(y - 50, x - 50) <= radius)
    assert found.area_px == pytest.approx(math.pi * radius**2, rel=0.05)
    assert found.max_diameter_px == pytest.approx(2 * radius, abs=2)
    assert found.length_px == pytest.approx(2 * radius, abs=2)


def test_ring_is_as_long_as_its_circle() -> None:
    found = measure(ring(60, 5))
    assert found.length_px == pytest.approx(2 * math.pi * 60, rel=0.01)
    assert found.mean_diameter_px == pytest.approx(5, abs=1)


def test_branches_add_up() -> None:
    cross = bar(120, 3, 0) | bar(80, 3, 90)
    assert measure(cross).length_px == pytest.approx(200, abs=8)


def test_millimeters_follow_the_spacing_of_each_axis() -> None:
    mask = bar(120, 6, 0)
    one, scaled = measure(mask), measure(mask, (0.5, 0.5))
    assert scaled.area_mm2 == pytest.approx(one.area_px / 4)
    assert scaled.length_mm == pytest.approx(one.length_px / 2)
    assert scaled.mean_diameter_mm is not None and one.mean_diameter_px is not None
    assert scaled.mean_diameter_mm == pytest.approx(one.mean_diameter_px / 2)
    uneven = measure(mask, (0.1, 0.4))
    assert uneven.area_mm2 == pytest.approx(one.area_px * 0.04)
    assert uneven.length_mm == pytest.approx(120 * 0.4, abs=4 * 0.4)
    assert uneven.max_diameter_mm == pytest.approx(6 * 0.1, abs=0.2)


def test_vessel_at_the_border_and_single_pixel() -> None:
    mask = np.zeros((20, 60), bool)
    mask[8:12] = True
    found = measure(mask)
    assert found.length_px == pytest.approx(60, abs=4)
    assert found.mean_diameter_px == pytest.approx(4, abs=1)
    mask[:] = False
    mask[3, 4] = True
    found = measure(mask)
    assert (found.area_px, found.length_px, found.max_diameter_px) == (1, 1.5, 1.5)


def test_empty_mask_has_no_diameter() -> None:
    found = measure(np.zeros((4, 4), bool), (1.0, 1.0))
    assert (found.area_px, found.area_mm2, found.length_px, found.length_mm) == (0, 0.0, 0.0, 0.0)
    assert found.mean_diameter_px is None and found.max_diameter_mm is None
