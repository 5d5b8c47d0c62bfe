"""Presets: the known models by name, and lookup of a published model by its configuration or tensors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import NamedTuple

from vesalius.errors import SettingError
from vesalius.models.families.base import Family
from vesalius.models.families.table import FAMILIES
from vesalius.models.keymaps import language_models
from vesalius.models.specs import ModelSpec, TensorShape

EMBEDDINGS = ("embed_tokens.weight", "tok_embeddings.weight")
LANGUAGE_LAYER = re.compile(r"(?:language_model|^vlm\.model)\.(?:.*\.)?layers\.(\d+)\.")


def _make(family: Family, name: str) -> ModelSpec:
    preset = family.presets[name]
    spec = family.make_spec(preset.config, preset.sam(), f"preset {name}")
    return spec.changed(name=name, max_tiles=preset.max_tiles)


PRESETS: dict[str, Callable[[], ModelSpec]] = {
    name: partial(_make, family, name) for family in FAMILIES.values() for name in family.presets
}
"""Model name -> function that builds its spec."""


def find_spec(name: str) -> ModelSpec:
    """The spec of the preset `name`; SettingError with the nearest name if it is unknown."""
    by_name = {known.lower(): make for known, make in PRESETS.items()}
    make = by_name.get(name.removeprefix("ByteDance/").lower())
    if make is None:
        close = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(PRESETS)}"
        raise SettingError(f"unknown model name {name!r}; {hint}", code="unknown_model", field="model")
    return make()


class Sizes(NamedTuple):
    """The architecture fields that distinguish published models."""

    family: str
    language_model: str | None
    hidden_size: int | None
    num_hidden_layers: int | None
    vocab_size: int | None
    vision_hidden_size: int
    vision_layers: int | None
    segmenter_hidden_size: int


def sizes_of(spec: ModelSpec) -> Sizes:
    """The distinguishing fields of a spec."""
    text, vision = spec.text, spec.vlm["vision_config"]
    return Sizes(
        spec.family,
        text.get("model_type"),
        text.get("hidden_size"),
        text.get("num_hidden_layers"),
        text.get("vocab_size"),
        vision["hidden_size"],
        vision.get("depth", vision.get("num_hidden_layers")),
        spec.sam["vision_config"]["backbone_config"]["hidden_size"],
    )


@cache
def published_sizes() -> Mapping[str, Sizes]:
    """Preset name -> its sizes."""
    return {name: sizes_of(make()) for name, make in PRESETS.items()}


def identify(spec: ModelSpec) -> str | None:
    """Name of the published model with the sizes of a spec; None if there is none."""
    found = sizes_of(spec)
    return next((name for name, sizes in published_sizes().items() if sizes == found), None)


def find_published(shapes: Mapping[str, TensorShape]) -> str | None:
    """Name of the published model with the vocabulary, hidden size and number of language layers of these tensors.

    Tensor names may be official or canonical. None without a match, or without embeddings.
    """
    embeddings = [shape for name, shape in shapes.items() if name.endswith(EMBEDDINGS)]
    layers = {int(found[1]) for name in shapes if (found := LANGUAGE_LAYER.search(name))}
    for name, sizes in published_sizes().items():
        same = embeddings == [(sizes.vocab_size, sizes.hidden_size)]
        if same and len(layers) == sizes.num_hidden_layers:
            return name
    return None


def find_candidates(shapes: Mapping[str, TensorShape]) -> list[str]:
    """Names of the published models that could contain these official tensors, which may be only some of the model's.

    Compares the type of the language model, the width of the [SEG] projector and the largest layer index.
    """
    hidden = (*shapes.get("text_hidden_fcs.0.weight", ()), 0)[0]
    layers = [re.search(r"language_model\..*?\blayers\.(\d+)\.", name) for name in shapes]
    n_layers = max((int(found[1]) + 1 for found in layers if found), default=0)
    kinds = language_models(shapes)
    return [
        name
        for name, sizes in published_sizes().items()
        if sizes.hidden_size == hidden
        and (sizes.num_hidden_layers or 0) >= n_layers
        and (kinds is None or sizes.language_model in kinds)
    ]
