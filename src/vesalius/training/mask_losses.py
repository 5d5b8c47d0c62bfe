"""How far each mask is from its target: one number a mask.

All take `logits` and `targets` of one shape, float32 (m, ...): a map, or a list of points, for each of m masks. A
target is the share in [0, 1] of a cell that the mask covers, or 0 and 1. The answer is float32 (m,), empty for m = 0.
"""

from __future__ import annotations

import torch
from torch.nn import functional

ROUNDING = 1e-6
"""Shares below are what is left of 0 after rounding: a pixel of the largest image covers more of its cell."""


def binary_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, class_balanced: bool) -> torch.Tensor:
    """Binary cross-entropy; see `focal_loss` for `class_balanced`."""
    return focal_loss(logits, targets, 0.0, class_balanced)


def focal_loss(
    logits: torch.Tensor, targets: torch.Tensor, gamma: float, class_balanced: bool
) -> torch.Tensor:
    """Cross-entropy times |target - probability| ** gamma, so that what is learned already counts little.

    The mean over the pixels (cells, points) of a mask; `class_balanced`: the mean over those of the object and the
    mean over those outside, in equal parts, so that the area of the object no longer matters (class-balanced
    cross-entropy); where one of both is missing it is the mean over the other. A cell that is covered in part belongs
    to both by its shares. Sources: Lin et al. 2017, Focal loss (arXiv:1708.02002), for targets of 0 and 1; Li et al.
    2020, Generalized focal loss (arXiv:2006.04388), for shares; Xie and Tu 2015, Holistically-nested edge detection
    (arXiv:1504.06375), for the balance, whose two means they weigh by both areas.
    """
    logits, inside = logits.flatten(1), targets.flatten(1)
    outside = 1 - inside
    missed, invented = -functional.logsigmoid(logits), -functional.logsigmoid(-logits)
    if gamma:
        easy = (inside - logits.sigmoid()).abs() ** gamma
        missed, invented = easy * missed, easy * invented
    if not class_balanced:
        return (inside * missed + outside * invented).mean(dim=1)
    (object_mean, has_object), (rest_mean, has_rest) = (
        _mean_over(missed, inside),
        _mean_over(invented, outside),
    )
    return (object_mean + rest_mean) / (has_object.float() + has_rest.float())


def _mean_over(values: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(Mean of `values` weighted by `shares`, 0 where there are none; whether there are any)."""
    shares = torch.where(shares > ROUNDING, shares, 0.0)
    whole = shares.sum(dim=1)
    return (shares * values).sum(dim=1) / whole.clamp(min=ROUNDING), whole > 0


def soft_dice_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 - (2 |p t| + 1) / (|p| + |t| + 1), in [0, 1); the 1 makes empty against empty 0."""
    probabilities, targets = logits.sigmoid().flatten(1), targets.flatten(1)
    overlap = 2 * (probabilities * targets).sum(dim=1) + 1
    return 1 - overlap / (probabilities.sum(dim=1) + targets.sum(dim=1) + 1)


def soft_cldice_loss(logits: torch.Tensor, targets: torch.Tensor, steps: int) -> torch.Tensor:
    """1 - soft clDice of maps (m, h, w), in [0, 1); empty against empty is 0.

    The harmonic mean of two shares, each with 1 above and below: how much of the guessed centerline lies in the
    target, and how much of the target's lies in the guess. A gap in a line costs as much as its length is of all lines,
    however thin the line. Source: Shit et al. 2021, clDice, CVPR (arXiv:2003.07311). `steps` as `soft_skeleton`.
    """
    probabilities = logits.sigmoid()
    precision = _share_inside(soft_skeleton(probabilities, steps), targets)
    sensitivity = _share_inside(soft_skeleton(targets, steps), probabilities)
    return 1 - 2 * precision * sensitivity / (precision + sensitivity)


def _share_inside(lines: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    return ((lines * maps).sum(dim=(1, 2)) + 1) / (lines.sum(dim=(1, 2)) + 1)


def soft_skeleton(maps: torch.Tensor, steps: int) -> torch.Tensor:
    """The centerline of maps (m, h, w) in [0, 1], of the same shape: what openings remove after 0 to `steps` erosions.

    `steps` must reach half of the widest line's width, in cells; more changes nothing. Source: Shit et al. 2021,
    algorithm 1.
    """
    maps = maps[:, None]
    skeleton = torch.zeros_like(maps)
    for _ in range(steps + 1):
        eroded = _erode(maps)
        removed = functional.relu(maps - _dilate(eroded))
        # what lies on the skeleton already is not counted twice
        skeleton = skeleton + functional.relu(removed - skeleton * removed)
        maps = eroded
    return skeleton[:, 0]


def _erode(maps: torch.Tensor) -> torch.Tensor:
    """The least of each cell and its four neighbors."""
    down = -functional.max_pool2d(-maps, (3, 1), stride=1, padding=(1, 0))
    across = -functional.max_pool2d(-maps, (1, 3), stride=1, padding=(0, 1))
    return torch.minimum(down, across)


def _dilate(maps: torch.Tensor) -> torch.Tensor:
    """The largest of each cell and its eight neighbors."""
    return functional.max_pool2d(maps, 3, stride=1, padding=1)


def iou_error(scores: torch.Tensor, candidates: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the predicted IoU `scores` (m, 3) of all three maps (m, 3, g, g), for targets (m, g, g)."""
    guessed = candidates.detach() > 0
    wanted = targets[:, None] > 0.5
    union = (guessed | wanted).sum((-2, -1))
    actual = (guessed & wanted).sum((-2, -1)) / union.clamp(min=1)
    # nothing wanted and nothing guessed is a perfect guess
    actual = torch.where(union == 0, 1.0, actual)
    return (scores - actual).abs().mean(dim=1)
