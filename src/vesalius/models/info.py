"""What a model is, read from its files: parts, parameters, dtype, lineage."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vesalius.lineage import fingerprint_weights, list_tensors
from vesalius.models.checkpoint import find_bundle, read_card


def describe(model: str | Path) -> dict[str, Any]:
    """Facts about MODEL without loading its weights: counted in the files, not taken from names."""
    folder = find_bundle(model)
    card = read_card(folder)
    parts: dict[str, int] = {"vlm": 0, "projector": 0, "sam": 0}
    dtypes: dict[str, int] = {}
    for name, (_, dtype, shape, _) in list_tensors(folder).items():
        count = math.prod(shape)
        parts[name.partition(".")[0]] += count
        dtypes[dtype] = dtypes.get(dtype, 0) + count
    vlm, sam = card.spec.vlm, card.spec.sam
    return {
        "folder": str(folder),
        "name": card.spec.name,
        "family": card.spec.family,
        "parameters": {**parts, "total": sum(parts.values())},
        "dtypes": dtypes,
        "language_model": {
            "layers": vlm["text_config"]["num_hidden_layers"],
            "hidden_size": vlm["text_config"]["hidden_size"],
        },
        "sam_input": sam["image_size"],
        "threshold": card.threshold,
        "step": card.step,
        "trained_on_images": len(card.training_images),
        "lineage": card.lineage,
        "fingerprint": fingerprint_weights(folder),
    }
