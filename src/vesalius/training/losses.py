"""What training makes small: text cross-entropy, and how far each mask is from its target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch.nn import functional

from vesalius.config import Settings
from vesalius.masks import Size, cell_weights
from vesalius.models.textseg import MaskLogits, Output


class LossSettings(Settings):
    """Weight of each part; 0 leaves it out."""

    text: float = Field(default=1.0, ge=0)
    """Cross-entropy of the answer's tokens."""
    bce: float = Field(default=2.0, ge=0)
    """Binary cross-entropy of mask cells, mean over cells."""
    dice: float = Field(default=0.5, ge=0)
    """1 - soft Dice of each mask."""
    iou: float = Field(default=0.05, ge=0)
    """Absolute error of the predicted IoU, by which one of three maps is chosen (as in SAM 2's own training)."""


@dataclass(frozen=True)
class Losses:
    """Scalars; `total` is their weighted sum."""

    total: torch.Tensor
    text: torch.Tensor
    mask: torch.Tensor
    dice: torch.Tensor
    iou: torch.Tensor


def measure(output: Output, masks: Sequence[torch.Tensor], settings: LossSettings) -> Losses:
    """Losses of one batch; `masks` are uint8 (n, H, W) an image, in order of the questions.

    Targets are the share of each cell that the mask covers: a thin line that nearest-neighbour shrinking would
    break stays whole, as a grey one.
    """
    grid = output.masks.logits.shape[-2], output.masks.logits.shape[-1]
    targets = torch.cat([area_average(of_image, grid) for of_image in masks])
    logits = output.masks.logits.float()
    if len(targets) != len(logits):
        raise ValueError(f"{len(logits)} [SEG] in the answers but {len(targets)} masks")
    text = functional.cross_entropy(output.text_logits.float(), output.text_labels)
    bce = functional.binary_cross_entropy_with_logits(logits, targets)
    dice = soft_dice_loss(logits, targets)
    iou = iou_error(output.masks, targets)
    total = settings.text * text + settings.bce * bce + settings.dice * dice + settings.iou * iou
    return Losses(total, text, bce, dice, iou)


def soft_dice_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over masks (m, g, g) of 1 - (2 |p t| + 1) / (|p| + |t| + 1); the 1 makes empty against empty 0."""
    probabilities = logits.sigmoid().flatten(1)
    targets = targets.flatten(1)
    overlap = 2 * (probabilities * targets).sum(1) + 1
    return (1 - overlap / (probabilities.sum(1) + targets.sum(1) + 1)).mean()


def iou_error(masks: MaskLogits, targets: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the predicted IoU of all three candidates (m, 3, g, g)."""
    guessed = masks.candidates.detach() > 0
    wanted = targets[:, None] > 0.5
    union = (guessed | wanted).sum((-2, -1))
    actual = (guessed & wanted).sum((-2, -1)) / union.clamp(min=1)
    # nothing wanted and nothing guessed is a perfect guess
    actual = torch.where(union == 0, 1.0, actual)
    return (masks.candidate_scores.float() - actual).abs().mean()


def area_average(masks: torch.Tensor, size: Size) -> torch.Tensor:
    """Share of each cell that the mask covers: (n, H, W) to float32 (n, h, w), exact for any ratio of sizes."""
    height, width = masks.shape[-2:]
    rows = torch.from_numpy(cell_weights(height, size[0])).to(masks.device)
    columns = torch.from_numpy(cell_weights(width, size[1])).to(masks.device)
    return rows @ masks.float() @ columns.T
