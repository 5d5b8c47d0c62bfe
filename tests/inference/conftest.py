"""An untrained model shared by the prediction tests."""

from __future__ import annotations

import pytest

from vesalius.models.checkpoint import OpenedModel, new_model


@pytest.fixture(scope="session")
def opened() -> OpenedModel:
    """`tiny` with random weights, in eval mode."""
    opened = new_model("tiny", seed=0)
    opened.model.eval()
    return opened
