"""Libraries that only some formats need: imported when asked for, and named with their command when absent."""

from __future__ import annotations

import importlib
from typing import Any

from vesalius.errors import MissingExtraError


def require(module: str, extra: str, what: str) -> Any:
    """The module; MissingExtraError, saying that `what` needs the extra, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f'{what} need the extra "{extra}"; install it with: pip install "vesalius[{extra}]"'
        ) from error
