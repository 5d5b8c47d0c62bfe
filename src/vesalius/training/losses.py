"""What training makes small: text cross-entropy, and how far each mask is from its target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch.nn import functional

from vesalius.config import Settings
from vesalius.models.textseg import TextSegOutput
from vesalius.training.mask_losses import (
    binary_cross_entropy,
    focal_loss,
    iou_error,
    soft_cldice_loss,
    soft_dice_loss,
)
from vesalius.training.targets import Pair, on_cells, on_pixels, on_points


class LossSettings(Settings):
    """Weight of each part, 0 leaving it out; and where a map and its mask are compared.

    Each part of the masks is the mean over all masks of a batch, and 0 where it has none.
    """

    text: float = Field(default=1.0, ge=0)
    """Cross-entropy of the answer's tokens."""
    bce: float = Field(default=2.0, ge=0)
    """Binary cross-entropy."""
    dice: float = Field(default=0.5, ge=0)
    """1 - soft Dice."""
    cldice: float = Field(default=0.0, ge=0)
    """1 - soft clDice, which is about whole lines: a gap costs as much in a thin line as in a wide one."""
    focal: float = Field(default=0.0, ge=0)
    """Focal loss: cross-entropy that looks away from what is learned already; beside `bce`, or in its place."""
    iou: float = Field(default=0.05, ge=0)
    """Absolute error of the predicted IoU, by which one of three maps is chosen (as in SAM 2's own training)."""
    resolution: Literal["decoder", "points", "image"] = "decoder"
    """`decoder`: the decoder's map, against the share of each of its cells that the mask covers. `points`: at sampled
    points, most of them where the map is uncertain, as in the official training. `image`: on the map enlarged to the
    size of the image, as for a prediction. The IoU is always that of cells."""
    class_balanced: bool = False
    """In `bce` and `focal`, weigh the pixels of an object together as much as those around it; else each pixel counts the
    same."""
    points: int = Field(default=12544, ge=1)
    """How many points a mask."""
    oversample_ratio: float = Field(default=3.0, ge=1)
    """Times as many points are drawn, of which the least certain are taken."""
    importance_sample_ratio: float = Field(default=0.75, ge=0, le=1)
    """Share of the points that is taken so; the others are anywhere."""
    focal_gamma: float = Field(default=2.0, ge=1)
    """Power of the distance from the target by which the focal loss is weighed."""
    skeleton_steps: int = Field(default=10, ge=0)
    """Erosions of the soft skeleton of clDice: at least half of the widest line's width, in cells or pixels."""

    @model_validator(mode="after")
    def _lines_need_maps(self) -> Self:
        if self.cldice and self.resolution == "points":
            raise ValueError(
                "cldice needs whole maps, not points: set resolution to decoder or image, or cldice to 0"
            )
        return self


@dataclass(frozen=True)
class Losses:
    """Scalars; `total` is their weighted sum. None where the weight is 0 and a look would cost too much."""

    total: torch.Tensor
    text: torch.Tensor
    mask: torch.Tensor
    dice: torch.Tensor
    iou: torch.Tensor
    cldice: torch.Tensor | None = None
    focal: torch.Tensor | None = None


def measure(
    output: TextSegOutput, masks: Sequence[torch.Tensor], settings: LossSettings, draws: Sequence[int] = ()
) -> Losses:
    """Losses of one batch, in float32 whatever the model computes in.

    `masks` are uint8 (n, H, W) an image, one for each [SEG] in the order of the questions; an image may have none, and
    so may the batch: then the losses of masks are 0. `draws` seed what is sampled for `resolution: points`. Raises ValueError
    where masks and [SEG] differ in number.
    """
    with torch.autocast(output.masks.logits.device.type, enabled=False):
        return _measure(output, masks, settings, draws)


def _measure(
    output: TextSegOutput, masks: Sequence[torch.Tensor], settings: LossSettings, draws: Sequence[int]
) -> Losses:
    logits = output.masks.logits.float()
    if (count := sum(map(len, masks))) != len(logits):
        raise ValueError(f"{len(logits)} [SEG] in the answers but {count} masks")
    text = functional.cross_entropy(output.text_logits.float(), output.text_labels)
    if not count:  # without a graph where no mask was decoded; that of the text is whole
        none = logits.sum()
        return Losses(settings.text * text + none, text, none, none, none)
    cells = on_cells(masks, (logits.shape[-2], logits.shape[-1]))
    pairs = _pairs(logits, masks, cells, settings, draws)
    mask = _mean(partial(binary_cross_entropy, class_balanced=settings.class_balanced), pairs)
    dice = _mean(soft_dice_loss, pairs)
    iou = iou_error(output.masks.candidate_scores.float(), output.masks.candidates, cells).mean()
    total = settings.text * text + settings.bce * mask + settings.dice * dice + settings.iou * iou
    cldice = focal = None
    if settings.cldice:
        cldice = _mean(partial(soft_cldice_loss, steps=settings.skeleton_steps), pairs)
        total = total + settings.cldice * cldice
    if settings.focal:
        focal = _mean(
            partial(focal_loss, gamma=settings.focal_gamma, class_balanced=settings.class_balanced), pairs
        )
        total = total + settings.focal * focal
    return Losses(total, text, mask, dice, iou, cldice, focal)


def _pairs(
    logits: torch.Tensor,
    masks: Sequence[torch.Tensor],
    cells: torch.Tensor,
    settings: LossSettings,
    draws: Sequence[int],
) -> list[Pair]:
    """Logits and targets where they are compared: one pair for all masks, or one an image."""
    if settings.resolution == "image":
        return on_pixels(logits, [of_image for of_image in masks if len(of_image)])
    if settings.resolution == "points":
        ratios = settings.oversample_ratio, settings.importance_sample_ratio
        return [on_points(logits, masks, settings.points, *ratios, draws)]
    return [(logits, cells)]


def _mean(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], pairs: Sequence[Pair]) -> torch.Tensor:
    """Mean over all masks."""
    return torch.cat([loss(logits, targets) for logits, targets in pairs]).mean()
