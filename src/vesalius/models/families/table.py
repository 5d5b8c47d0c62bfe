"""`FAMILIES`: the supported families of vision-language models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vesalius.errors import CheckpointError
from vesalius.models.families.base import Family
from vesalius.models.families.internvl import InternVL
from vesalius.models.families.qwen2_5_vl import Qwen2_5VL
from vesalius.models.families.qwen3_vl import Qwen3VL

FAMILIES: dict[str, Family] = {family.name: family for family in (InternVL(), Qwen2_5VL(), Qwen3VL())}
"""Name of the family in model cards and native configurations -> family."""


def family_of(name: str) -> Family:
    """The family called `name`; CheckpointError if it is unknown."""
    if name not in FAMILIES:
        raise CheckpointError(
            f"unknown family of vision-language models {name!r}; known: {', '.join(FAMILIES)}",
            code="unknown_family",
            field="family",
        )
    return FAMILIES[name]


def recognize(config: Mapping[str, Any], source: str) -> Family:
    """The family of an official `config.json`; CheckpointError, starting with `source`, if none matches."""
    for family in FAMILIES.values():
        if family.recognizes(config):
            return family
    raise CheckpointError(
        f"{source}: belongs to no supported family of vision-language models; supported: {', '.join(FAMILIES)}",
        code="unknown_family",
    )
