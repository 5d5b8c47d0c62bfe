"""What a model is, read from its files: parts, parameters, dtype, lineage."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from vesalius.lineage import fingerprint_weights, list_tensors
from vesalius.models.checkpoint import find_bundle, read_card


def describe(model: str | Path) -> dict[str, Any]:
    """Facts about MODEL without loading its weights: counted in the files, not taken from names."""
    folder = find_bundle(model)
    card = read_card(folder)
    parts: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for name, (_, dtype, shape, _) in list_tensors(folder).items():
        count = math.prod(shape)
        parts[name.partition(".")[0]] += count
        dtypes[dtype] += count
    vlm, sam = card.spec.vlm, card.spec.sam
    return {
        "folder": str(folder),
        "name": card.spec.name,
        "family": card.spec.family,
        "parameters": {**parts, "total": parts.total()},
        "dtypes": dict(dtypes),
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
