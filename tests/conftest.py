"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# two test processes on two cores: more threads would only wait for one another
os.environ.setdefault("OMP_NUM_THREADS", "1")
# the stored numbers are those of a CPU
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# fingerprints are remembered between runs, but not those of tests in the home of whoever runs them
CACHE = tempfile.TemporaryDirectory(prefix="vesalius-test-cache-")
os.environ["XDG_CACHE_HOME"] = CACHE.name

# no deadline: the machine may be busy; the same examples each time: a red run can be repeated
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data sets beside the repository; the test is skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"real data sets are not at {SHARED / 'data'}")
    return SHARED.resolve()
