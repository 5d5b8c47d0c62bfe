"""Parity check: largest differences between the outputs of source and result on one probe image."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vesalius.errors import CheckpointError
from vesalius.models.checkpoint import open_model
from vesalius.types import Item

MAX_BYTES = 6 * 10**9
"""Maximum float32 size of a model to check: a larger one takes minutes for a forward pass on a CPU."""

TOLERANCE = 1e-3
"""Maximum difference of outputs. Equal weights give equal bits unless a different CPU kernel is chosen."""


def forward_parity(source: Path, result: Path, n_parameters: int) -> dict[str, Any]:
    """Largest differences between the outputs of two models on a probe image, or the reason to skip the check.

    One model is in memory at a time. CheckpointError if the outputs differ; since the weights
    are equal, a configuration or the tokenizer differs.
    """
    needed = 4 * n_parameters
    if needed > MAX_BYTES or 2 * needed > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        return {"skipped": f"the model takes {needed / 1e9:.1f} GB of memory in float32"}
    before, after = _outputs(source), _outputs(result)
    if not torch.equal(before.pop("tokens"), after.pop("tokens")):
        raise _failed(source, "the result tokenizes the prompt differently")
    differences = {name: _largest_difference(before[name], after[name]) for name in before}
    if max(differences.values()) > TOLERANCE:
        raise _failed(source, f"the outputs of the result differ: {differences}")
    return {"largest_difference": differences}


def _failed(source: Path, reason: str) -> CheckpointError:
    return CheckpointError.at(source, f"was not converted, because {reason}", code="parity_failed")


def _largest_difference(before: torch.Tensor, after: torch.Tensor) -> float:
    """Largest absolute difference; NaN equals NaN, and NaN against a number is infinity."""
    same = (before == after) | (before.isnan() & after.isnan())
    difference = (before - after).abs().nan_to_num(nan=torch.inf).masked_fill(same, 0.0)
    return difference.max().item() if difference.numel() else 0.0


@torch.inference_mode()
def _outputs(folder: Path) -> dict[str, torch.Tensor]:
    opened = open_model(folder)
    down, across = np.mgrid[0:240, 0:320]
    rings = 127.5 + 127.5 * np.sin(np.hypot(down - 90, across - 140) / 9)
    pixels = np.stack([rings, 255 - rings, rings * down / 240], axis=-1).astype(np.uint8)
    batch = opened.processor([Item("probe", pixels[None], ("vessel",))], answered=True)
    output = opened.model(batch)
    masks = output.masks
    return {
        "tokens": batch.input_ids,
        "text_logits": output.text_logits,
        "mask_logits": masks.candidates,
        "mask_scores": masks.candidate_scores,
    }
