"""Optional libraries: imported when needed; if one is missing, the error gives the installation command."""

from __future__ import annotations

import importlib
from typing import Any

from vesalius.errors import MissingExtraError


def require(module: str, extra: str, what: str) -> Any:
    """The imported module; raises MissingExtraError if it is not installed. `what` is a plural noun for the message."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        command = f'pip install "vesalius[{extra}]"'
        message = f'{what} need the extra "{extra}"; install it with: {command}'
        raise MissingExtraError(message, code="missing_extra", field=extra, remedy=command) from error
