"""Validation is prediction: the same predictor and the same scores as `vesalius evaluate`, with forced answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vesalius.data.dataset import load_item
from vesalius.evaluation.overlap import METRICS, score
from vesalius.inference.folder import Segmenter
from vesalius.types import Sample


def validate(segmenter: Segmenter, samples: Sequence[Sample]) -> dict[str, float | int | None]:
    """Mean of each metric over (sample, prompt), and `seg_rate`: how often the model itself would say [SEG].

    A metric that is defined nowhere is None. An unreadable sample raises DataError.
    """
    scores: dict[str, list[float]] = {name: [] for name in METRICS}
    says_seg: list[bool] = []
    for start in range(0, len(samples), segmenter.batch):
        items = [load_item(sample) for sample in samples[start : start + segmenter.batch]]
        truths = [mask[0] for item in items if item.masks is not None for mask in item.masks]
        for prediction, truth in zip(segmenter.predict(items), truths, strict=True):
            says_seg.append(prediction.says_seg)
            for name, value in score(truth, prediction.mask).items():
                if value is not None:
                    scores[name].append(value)
    means: dict[str, float | int | None] = {
        name: float(np.mean(values)) if values else None for name, values in scores.items()
    }
    return {**means, "seg_rate": float(np.mean(says_seg)), "n": len(says_seg)}


def summarise(line: Mapping[str, Any]) -> str:
    """A line of `validation.jsonl` in words."""
    shown = ("dice", "iou", "precision", "recall", "seg_rate")
    scores = "  ".join(f"{name} {line[name]:.3f}" for name in shown if line[name] is not None)
    return f"validation at step {line['step']}: {scores}{'  (best so far)' if line['best'] else ''}"
