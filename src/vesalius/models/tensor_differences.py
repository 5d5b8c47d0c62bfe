"""Comparison of named tensors, or of their shapes, with the expected ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vesalius.names import list_names

SHOWN = 10
"""Maximum number of names per kind of difference in a message."""


def list_differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """The first missing, unknown and misshapen names as text; "" if there are none.

    Values are shapes, or tensors compared by shape and dtype.
    """
    wrong = {
        "missing": sorted(expected.keys() - found.keys()),
        "unknown": sorted(found.keys() - expected.keys()),
        "misshapen": [
            f"{name} {_form(found[name])} instead of {_form(expected[name])}"
            for name in sorted(expected.keys() & found.keys())
            if _form(found[name]) != _form(expected[name])
        ],
    }
    return "; ".join(f"{len(names)} {kind}: {list_names(names, SHOWN)}" for kind, names in wrong.items() if names)


def _form(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else str(list(value))
