"""The table of the families of vision-language models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vesalius.errors import CheckpointError
from vesalius.models.families.base import Family
from vesalius.models.families.internvl import InternVL
from vesalius.models.families.qwen2_5_vl import Qwen2_5VL
from vesalius.models.families.qwen3_vl import Qwen3VL

FAMILIES: dict[str, Family] = {family.name: family for family in (InternVL(), Qwen2_5VL(), Qwen3VL())}
"""Name, as a model card and the native configuration have it -> family."""


def family_of(name: str) -> Family:
    """The family of that name; CheckpointError for an unknown one."""
    if name not in FAMILIES:
        raise CheckpointError(
            f"the family {name!r} of vision-language models is not known; known: {', '.join(FAMILIES)}",
            code="unknown_family",
            field="family",
        )
    return FAMILIES[name]


def recognize(config: Mapping[str, Any], source: str) -> Family:
    """The family of an official `config.json`; CheckpointError, beginning with `source`, if there is none."""
    for family in FAMILIES.values():
        if family.recognizes(config):
            return family
    raise CheckpointError(
        f"{source}: is of no known family of vision-language models; known: {', '.join(FAMILIES)}",
        code="unknown_family",
    )
