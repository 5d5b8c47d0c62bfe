"""The training loss: text cross-entropy, and losses between predicted and target masks.

Mask losses take `logits` and `targets` of equal shape, float32 (m, ...): one map or list of points for each of m masks.
Targets are the coverage of each cell in [0, 1] (area-averaged masks), or binary. Mask losses return float32 (m,), empty
for m = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch.nn import functional

from vesalius.config import Settings
from vesalius.masks import Size, cell_weights
from vesalius.models.textseg import TextSegOutput

Pair = tuple[torch.Tensor, torch.Tensor]
"""Logits and targets of equal shape, float32 (m, ...)."""

ROUNDING = 1e-6
"""Coverage below this is rounding error: a single pixel covers more of its cell even in the largest image."""


class LossSettings(Settings):
    """Weights of the loss terms, and the resolution at which masks are compared. A weight of 0 drops the term.

    Each mask term is the mean over all masks of a batch, or 0 if the batch has no mask.
    """

    text: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy of the answer tokens."""
    bce: float = Field(default=2.0, ge=0)
    """Weight of the binary cross-entropy."""
    dice: float = Field(default=0.5, ge=0)
    """Weight of 1 - soft Dice."""
    cldice: float = Field(default=0.0, ge=0)
    """Weight of 1 - soft clDice, a centerline loss: a gap costs the same in thin and wide vessels."""
    focal: float = Field(default=0.0, ge=0)
    """Weight of the focal loss, a cross-entropy that down-weights easy pixels; may be combined with or replace `bce`."""
    iou: float = Field(default=0.05, ge=0)
    """Weight of the absolute error of the predicted IoU, which selects one of the three mask candidates (as in SAM 2)."""
    resolution: Literal["decoder", "points", "image"] = "decoder"
    """Resolution of the mask losses. `decoder`: the decoder's map; targets are the coverage of each cell. `points`: sampled
    points, most of them uncertain, as in the official training. `image`: logits resized to the image, as in prediction.
    The IoU term always uses the decoder's map."""
    class_balanced: bool = False
    """In `bce` and `focal`, give the foreground and the background of each mask the same total weight; if false, each pixel
    has the same weight."""
    points: int = Field(default=12544, ge=1)
    """Sampled points per mask."""
    oversample_ratio: float = Field(default=3.0, ge=1)
    """Number of random candidate points as a multiple of `points`; the most uncertain candidates are kept."""
    importance_sample_ratio: float = Field(default=0.75, ge=0, le=1)
    """Fraction of points chosen by uncertainty; the others are uniformly random."""
    focal_gamma: float = Field(default=2.0, ge=1)
    """Exponent of the focal loss."""
    skeleton_steps: int = Field(default=10, ge=0)
    """Erosions for the soft skeleton of clDice; at least half the width of the widest vessel, in cells or pixels."""

    @model_validator(mode="after")
    def _lines_need_maps(self) -> Self:
        if self.cldice and self.resolution == "points":
            raise ValueError("cldice needs whole maps, not points: set resolution to decoder or image, or cldice to 0")
        return self


@dataclass(frozen=True)
class Losses:
    """Scalar loss terms; `total` is their weighted sum. `cldice` and `focal` are None if their weight is 0."""

    total: torch.Tensor
    text: torch.Tensor
    mask: torch.Tensor
    dice: torch.Tensor
    iou: torch.Tensor
    cldice: torch.Tensor | None = None
    focal: torch.Tensor | None = None


def compute_losses(
    output: TextSegOutput, masks: Sequence[torch.Tensor], settings: LossSettings, draws: Sequence[int] = ()
) -> Losses:
    """Losses of one batch, computed in float32 regardless of the model's dtype.

    `masks` holds uint8 (n, H, W) per image, one mask per [SEG] in the order of the prompts; n may be 0. Without masks the
    mask losses are 0. `draws` seed the point sampling of `resolution: points`. Raises ValueError if the number of masks
    differs from the number of [SEG] tokens.
    """
    with torch.autocast(output.masks.logits.device.type, enabled=False):
        return _compute(output, masks, settings, draws)


def _compute(
    output: TextSegOutput, masks: Sequence[torch.Tensor], settings: LossSettings, draws: Sequence[int]
) -> Losses:
    logits = output.masks.logits.float()
    if (count := sum(map(len, masks))) != len(logits):
        raise ValueError(f"{len(logits)} [SEG] in the answers but {count} masks")
    text = functional.cross_entropy(output.text_logits.float(), output.text_labels)
    if not count:  # no mask was decoded: only the text loss has a graph
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
        cldice = _mean(partial(soft_cldice_loss, iterations=settings.skeleton_steps), pairs)
        total = total + settings.cldice * cldice
    if settings.focal:
        focal = _mean(partial(focal_loss, gamma=settings.focal_gamma, class_balanced=settings.class_balanced), pairs)
        total = total + settings.focal * focal
    return Losses(total, text, mask, dice, iou, cldice, focal)


def _pairs(
    logits: torch.Tensor,
    masks: Sequence[torch.Tensor],
    cells: torch.Tensor,
    settings: LossSettings,
    draws: Sequence[int],
) -> list[Pair]:
    """Logits and targets at `settings.resolution`: one pair for all masks, or one per image."""
    if settings.resolution == "image":
        return on_pixels(logits, [of_image for of_image in masks if len(of_image)])
    if settings.resolution == "points":
        ratios = settings.oversample_ratio, settings.importance_sample_ratio
        return [on_points(logits, masks, settings.points, *ratios, draws)]
    return [(logits, cells)]


def _mean(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], pairs: Sequence[Pair]) -> torch.Tensor:
    """Mean of a loss over all masks."""
    return torch.cat([loss(logits, targets) for logits, targets in pairs]).mean()


def binary_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, class_balanced: bool) -> torch.Tensor:
    """Binary cross-entropy; see `focal_loss` for `class_balanced`."""
    return focal_loss(logits, targets, 0.0, class_balanced)


def focal_loss(logits: torch.Tensor, targets: torch.Tensor, gamma: float, class_balanced: bool) -> torch.Tensor:
    """Binary cross-entropy times |target - probability| ** gamma, which down-weights easy pixels.

    The result is the mean over the pixels (cells, points) of each mask. With `class_balanced` it is the average of the
    foreground mean and the background mean, independent of the object's area; if one of them is empty, it is the other
    mean. A partly covered cell counts for both, weighted by its coverage. Sources: Lin et al. 2017, Focal loss
    (arXiv:1708.02002), for targets 0 and 1; Li et al. 2020, Generalized focal loss (arXiv:2006.04388), for fractional
    targets; Xie and Tu 2015, Holistically-nested edge detection (arXiv:1504.06375), for class balancing.
    """
    logits, inside = logits.flatten(1), targets.flatten(1)
    outside = 1 - inside
    false_negative, false_positive = -functional.logsigmoid(logits), -functional.logsigmoid(-logits)
    if gamma:
        easy = (inside - logits.sigmoid()).abs() ** gamma
        false_negative, false_positive = easy * false_negative, easy * false_positive
    if not class_balanced:
        return (inside * false_negative + outside * false_positive).mean(dim=1)
    (object_mean, has_object), (rest_mean, has_rest) = (
        _mean_over(false_negative, inside),
        _mean_over(false_positive, outside),
    )
    return (object_mean + rest_mean) / (has_object.float() + has_rest.float())


def _mean_over(values: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean of `values` (m, k), 0 if all weights are 0; and whether any weight is above 0."""
    weights = torch.where(weights > ROUNDING, weights, 0.0)
    total = weights.sum(dim=1)
    return (weights * values).sum(dim=1) / total.clamp(min=ROUNDING), total > 0


def soft_dice_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 - soft Dice = 1 - (2 |p t| + 1) / (|p| + |t| + 1), in [0, 1); two empty masks give 0."""
    probabilities, targets = logits.sigmoid().flatten(1), targets.flatten(1)
    overlap = 2 * (probabilities * targets).sum(dim=1) + 1
    return 1 - overlap / (probabilities.sum(dim=1) + targets.sum(dim=1) + 1)


def soft_cldice_loss(logits: torch.Tensor, targets: torch.Tensor, iterations: int) -> torch.Tensor:
    """1 - soft clDice of maps (m, h, w), in [0, 1); two empty masks give 0.

    clDice is the harmonic mean of topology precision (fraction of the predicted centerline inside the target) and topology
    sensitivity (fraction of the target's centerline inside the prediction); 1 is added to each numerator and denominator.
    The cost of a gap is proportional to its length and independent of the vessel's width. `iterations`: see
    `soft_skeleton`. Source: Shit et al. 2021, clDice, CVPR (arXiv:2003.07311).
    """
    probabilities = logits.sigmoid()
    precision = _fraction_inside(soft_skeleton(probabilities, iterations), targets)
    sensitivity = _fraction_inside(soft_skeleton(targets, iterations), probabilities)
    return 1 - 2 * precision * sensitivity / (precision + sensitivity)


def _fraction_inside(lines: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    return ((lines * maps).sum(dim=(1, 2)) + 1) / (lines.sum(dim=(1, 2)) + 1)


def soft_skeleton(maps: torch.Tensor, iterations: int) -> torch.Tensor:
    """Soft centerlines (m, h, w) of maps in [0, 1]: the residues of openings after 0 to `iterations` erosions.

    `iterations` must be at least half the width of the widest vessel, in cells; further iterations change nothing.
    Source: Shit et al. 2021, algorithm 1.
    """
    maps = maps[:, None]
    skeleton = torch.zeros_like(maps)
    for _ in range(iterations + 1):
        eroded = _erode(maps)
        removed = functional.relu(maps - _dilate(eroded))
        # union with the skeleton: a cell counts only once
        skeleton = skeleton + functional.relu(removed - skeleton * removed)
        maps = eroded
    return skeleton[:, 0]


def _erode(maps: torch.Tensor) -> torch.Tensor:
    """Minimum of each cell and its four neighbors."""
    down = -functional.max_pool2d(-maps, (3, 1), stride=1, padding=(1, 0))
    across = -functional.max_pool2d(-maps, (1, 3), stride=1, padding=(0, 1))
    return torch.minimum(down, across)


def _dilate(maps: torch.Tensor) -> torch.Tensor:
    """Maximum of each cell and its eight neighbors."""
    return functional.max_pool2d(maps, 3, stride=1, padding=1)


def iou_error(scores: torch.Tensor, candidates: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean absolute error (m,) of predicted IoUs `scores` (m, 3) of mask `candidates` (m, 3, g, g) and `targets` (m, g, g)."""
    predicted = candidates.detach() > 0
    target = targets[:, None] > 0.5
    union = (predicted | target).sum((-2, -1))
    actual = (predicted & target).sum((-2, -1)) / union.clamp(min=1)
    # two empty masks have IoU 1
    actual = torch.where(union == 0, 1.0, actual)
    return (scores - actual).abs().mean(dim=1)


def on_cells(masks: Sequence[torch.Tensor], size: Size) -> torch.Tensor:
    """Targets float32 (m, h, w) from masks (n, H, W) per image: the coverage of each cell in [0, 1].

    Thin vessels stay connected, with values below 1; nearest-neighbor downsampling would break them.
    """
    return torch.cat([area_average(of_image, size) for of_image in masks])


def on_points(
    logits: torch.Tensor,
    masks: Sequence[torch.Tensor],
    count: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
    draws: Sequence[int],
) -> Pair:
    """Logits and targets (m, count) at sampled points, as in the official training.

    Points come from `sample_uncertain_points`. Logits are (m, h, w); masks (n, H, W) per image are downsampled to (h, w) by
    nearest neighbor. `draws` seed the sampling: equal logits and draws give equal points on any device.
    """
    size = logits.shape[-2:]
    downsampled = torch.cat(
        [functional.interpolate(of_image[:, None].float(), size, mode="nearest")[:, 0] for of_image in masks]
    )
    seed = int(np.random.SeedSequence(tuple(draws)).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(seed)
    points = sample_uncertain_points(logits, count, oversample_ratio, importance_sample_ratio, generator)
    return point_sample(logits, points), point_sample(downsampled, points)


@torch.no_grad()
def sample_uncertain_points(
    logits: torch.Tensor,
    count: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Points (m, count, 2) for each map of `logits` (m, h, w): x and y as fractions of width and height, in [0, 1].

    `importance_sample_ratio` * `count` points are the most uncertain (logit nearest to 0) of `oversample_ratio` * `count`
    random candidates; the others are random. `generator` is a CPU generator. Source: Kirillov et al. 2020, PointRend, CVPR
    (arXiv:1912.08193), section 3.1.
    """
    important = int(importance_sample_ratio * count)
    shapes = (len(logits), int(oversample_ratio * count), 2), (len(logits), count - important, 2)
    candidates, others = (torch.rand(shape, generator=generator).to(logits.device) for shape in shapes)
    chosen = point_sample(logits, candidates).abs().topk(important, dim=1, largest=False).indices
    return torch.cat([candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), others], dim=1)


def point_sample(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Bilinear samples (m, k) of maps (m, h, w) at points (m, k, 2), x and y in [0, 1].

    Beyond the outermost cell centers values fade to 0 (zero padding), in logits and targets alike, as in the official
    training.
    """
    return functional.grid_sample(maps[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def on_pixels(logits: torch.Tensor, masks: Sequence[torch.Tensor]) -> list[Pair]:
    """Logits and targets float32 (n, H, W) of each image; logits are resized in the same two steps as in prediction."""
    side = 4 * logits.shape[-1]
    pairs = []
    for of_image, low in zip(masks, logits.split([len(of_image) for of_image in masks]), strict=True):
        maps = functional.interpolate(low[:, None], (side, side), mode="bilinear", align_corners=False)
        maps = functional.interpolate(maps, of_image.shape[-2:], mode="bilinear", align_corners=False)
        pairs.append((maps[:, 0], of_image.float()))
    return pairs


def area_average(masks: torch.Tensor, size: Size) -> torch.Tensor:
    """Coverage of each cell by masks: (n, H, W) to float32 (n, h, w); exact for any ratio of sizes."""
    height, width = masks.shape[-2:]
    rows = torch.from_numpy(cell_weights(height, size[0])).to(masks.device)
    columns = torch.from_numpy(cell_weights(width, size[1])).to(masks.device)
    return rows @ masks.float() @ columns.T
