"""Where maps of logits meet their masks: on the map's cells, at sampled points, or on the image's pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from vesalius.masks import Size, cell_weights

Pair = tuple[torch.Tensor, torch.Tensor]
"""Logits and targets of one shape, float32 (m, ...)."""


def on_cells(masks: Sequence[torch.Tensor], size: Size) -> torch.Tensor:
    """Targets float32 (m, h, w) of masks (n, H, W) an image: the share of each cell that a mask covers.

    A thin line that nearest-neighbor shrinking would break stays whole, as a gray one.
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
    """Logits and targets (m, count) at sampled points, as the official training has them.

    Logits (m, h, w), and masks (n, H, W) an image shrunk to (h, w) by nearest neighbors, are read at
    `uncertain_points`, which `draws` seed: the same logits and draws give the same points, on any device.
    """
    size = logits.shape[-2:]
    shrunk = torch.cat(
        [functional.interpolate(of_image[:, None].float(), size, mode="nearest")[:, 0] for of_image in masks]
    )
    seed = int(np.random.SeedSequence(tuple(draws)).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(seed)
    points = uncertain_points(logits, count, oversample_ratio, importance_sample_ratio, generator)
    return read_at(logits, points), read_at(shrunk, points)


@torch.no_grad()
def uncertain_points(
    logits: torch.Tensor,
    count: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Points (m, count, 2), x and y in [0, 1] of the width and height, for each map of logits (m, h, w).

    Of `oversample_ratio` times as many random points, the share `importance_sample_ratio` of `count` is taken where
    the logit is nearest to 0; the others are new random ones. `generator` is of the CPU. Source: Kirillov et al.
    2020, PointRend, CVPR (arXiv:1912.08193), section 3.1.
    """
    important = int(importance_sample_ratio * count)
    shapes = (len(logits), int(oversample_ratio * count), 2), (len(logits), count - important, 2)
    candidates, others = (torch.rand(shape, generator=generator).to(logits.device) for shape in shapes)
    chosen = read_at(logits, candidates).abs().topk(important, dim=1, largest=False).indices
    return torch.cat([candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), others], dim=1)


def read_at(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Values (m, k) of maps (m, h, w) at points (m, k, 2) as `uncertain_points`, bilinear between centers of cells.

    Beyond the outermost centers values fade towards 0, in maps and targets alike, as in the official training.
    """
    return functional.grid_sample(maps[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def on_pixels(logits: torch.Tensor, masks: Sequence[torch.Tensor]) -> list[Pair]:
    """For each image its logits, enlarged to (n, H, W) in the two steps of a prediction, and its masks (n, H, W)."""
    side = 4 * logits.shape[-1]
    pairs = []
    for of_image, low in zip(masks, logits.split([len(of_image) for of_image in masks]), strict=True):
        maps = functional.interpolate(low[:, None], (side, side), mode="bilinear", align_corners=False)
        maps = functional.interpolate(maps, of_image.shape[-2:], mode="bilinear", align_corners=False)
        pairs.append((maps[:, 0], of_image.float()))
    return pairs


def area_average(masks: torch.Tensor, size: Size) -> torch.Tensor:
    """Share of each cell that the mask covers: (n, H, W) to float32 (n, h, w), exact for any ratio of sizes."""
    height, width = masks.shape[-2:]
    rows = torch.from_numpy(cell_weights(height, size[0])).to(masks.device)
    columns = torch.from_numpy(cell_weights(width, size[1])).to(masks.device)
    return rows @ masks.float() @ columns.T
