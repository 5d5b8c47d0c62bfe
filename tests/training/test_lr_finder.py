"""The search for a learning rate, on a problem whose answer is known."""

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
    """Gradient descent on c x^2 / 2, which diverges from a rate of 2 / c on."""
    place = 5.0

    def step(rate: float, _: None) -> float:
        nonlocal place
        loss = 1 + curvature * place**2 / 2
        place -= rate * curvature * place
        return loss

    return sweep(step, repeat(None), RATES)


@pytest.mark.parametrize("curvature", [0.1, 1.0, 10.0])
def test_the_suggestion_lies_where_the_loss_falls_and_below_where_it_diverges(curvature: float) -> None:
    found = descend(curvature)
    assert found.found
    assert 0.02 / curvature < found.suggestion < 1 / curvature
    assert found.rates[-1] < 50 / curvature, "it ends soon after the loss has grown"
    assert f"try optim.lr={found.suggestion:.1e}" in str(found)


def test_a_loss_that_never_falls_gives_no_suggestion() -> None:
    found = sweep(lambda rate, _: 1.0, repeat(None), RATES)
    assert not found.found
    assert str(found).startswith("no learning rate found: the loss did not fall")


def test_a_loss_that_is_no_number_ends_the_search_and_at_first_refuses_it() -> None:
    losses = iter([1.0, 0.5, float("nan"), 0.1])
    assert sweep(lambda rate, _: next(losses), repeat(None), RATES).losses == [1.0, 0.5]
    with raises_code(TrainingError, "not_finite_loss"):
        sweep(lambda rate, _: float("nan"), repeat(None), RATES)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw_search(descend(1.0), tmp_path / "lr.png")
    assert np.asarray(Image.open(tmp_path / "lr.png").convert("RGB")).std() > 10
