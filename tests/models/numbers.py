"""Random tensors and comparison of arrays for the tests of models."""

from __future__ import annotations

import numpy as np
import torch


def close(found: torch.Tensor | np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Assert equal shapes, and values equal up to an absolute tolerance."""
    assert tuple(found.shape) == tuple(expected.shape)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=tolerance)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normally distributed float32 numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
