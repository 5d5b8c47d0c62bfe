"""The learning rate finder, on a quadratic loss with a known limit of the learning rate."""

from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.codes import raises_code

from vesalius.errors import TrainingError
from vesalius.training.lr_finder import LrSearch, draw_search, sweep

RATES = np.geomspace(1e-5, 1e3, 80).tolist()


def descend(curvature: float) -> LrSearch:
    """Gradient descent on c x^2 / 2, which diverges for rates above 2 / c."""
    position = 5.0

    def step(rate: float, _: None) -> float:
        nonlocal position
        loss = 1 + curvature * position**2 / 2
        position -= rate * curvature * position
        return loss

    return sweep(step, repeat(None), RATES)


@pytest.mark.parametrize("curvature", [0.1, 1.0, 10.0])
def test_the_suggestion_is_in_the_range_where_the_loss_falls(curvature: float) -> None:
    found = descend(curvature)
    assert found.found
    assert 0.02 / curvature < found.suggestion < 1 / curvature
    assert found.rates[-1] < 50 / curvature, "it ends soon after the loss has grown"
    assert f"try optim.lr={found.suggestion:.1e}" in str(found)


def test_a_loss_that_never_falls_gives_no_suggestion() -> None:
    found = sweep(lambda rate, _: 1.0, repeat(None), RATES)
    assert not found.found
    assert str(found).startswith("no learning rate found")


def test_low_losses_of_the_first_batches_are_no_suggestion() -> None:
    falling = [1.0] * 40 + [0.5] * 20 + [5.0] * 20
    losses = iter([0.1, 0.2, *falling[2:]])
    found = sweep(lambda rate, _: next(losses), repeat(None), RATES)
    assert found.found and 40 <= found.rates.index(found.best_rate) < 60


def test_a_loss_that_is_not_finite_ends_the_search() -> None:
    losses = iter([1.0, 0.5, float("nan"), 0.1])
    assert sweep(lambda rate, _: next(losses), repeat(None), RATES).losses == [1.0, 0.5]
    with raises_code(TrainingError, "not_finite_loss"):
        sweep(lambda rate, _: float("nan"), repeat(None), RATES)


def test_the_loss_curve_is_drawn(tmp_path: Path) -> None:
    draw_search(descend(1.0), tmp_path / "lr.png")
    assert np.asarray(Image.open(tmp_path / "lr.png").convert("RGB")).std() > 10
