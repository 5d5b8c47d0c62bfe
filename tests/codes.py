"""Expect an error by its class and code, independent of its message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vesalius.errors import VesaliusError


@contextmanager
def raises_code(kind: type[VesaliusError], code: str, *holds: str) -> Iterator[pytest.ExceptionInfo[VesaliusError]]:
    """The block raises exactly `kind` with `code`; its sentence contains each of `holds` (numbers, names)."""
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert (type(error), error.code) == (kind, code), str(error)
    for part in holds:
        assert part in str(error)
