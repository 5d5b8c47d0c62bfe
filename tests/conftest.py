"""Fixtures that several rooms share."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder of real data sets beside the repository; the test is skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"real data sets are not at {SHARED / 'data'}")
    return SHARED.resolve()
