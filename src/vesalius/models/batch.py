"""`Batch`: the input of a model in one step of training or prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vesalius.masks import Size

IGNORE_INDEX = -100
"""Label of a token that the loss ignores."""


@dataclass(frozen=True)
class Batch:
    """The input of one step, under the official names. A row is one question; several rows may share an image."""

    input_ids: torch.Tensor
    """int64 (b, t), padded on the left."""
    attention_mask: torch.Tensor
    """int64 (b, t), 0 where padded."""
    labels: torch.Tensor
    """int64 (b, t): the tokens of answers, -100 at all other positions."""
    pixel_values: torch.Tensor
    """float, all images together: tiles (n, 3, 448, 448), or patches (n, values of a patch), by family."""
    image_grid_thw: torch.Tensor
    """int64 (images, or frames of a video, 3): patches in time, down and across; (0, 3) for tiles."""
    g_pixel_values: list[torch.Tensor]
    """For each image, or frame of a clip, float (3, S, S) for the segmenter."""
    masks: list[torch.Tensor]
    """For each image or clip uint8 (n, H, W) at the original size; an empty list without annotation. In training n is the
    number of [SEG] in its answers; for a clip of f frames, n * f, with all frames of the first [SEG] before the second."""
    image_of_row: torch.Tensor
    """int64 (b,)."""
    tiles_of_image: list[int]
    """For each image its number of tiles in `pixel_values`, or of rows in `image_grid_thw`."""
    frames_per_batch: list[int]
    """Number of frames of each image or clip; 1 for an image."""
    sizes: list[Size]
    """Original (h, w) of each image."""
    regions: torch.Tensor | None = None
    """bool (n, 16, 16): cells of the last tile that a question points at (`mask_prompts`), for one image."""
    draws: tuple[int, ...] = ()
    """Training: random numbers of the rows, which picked their templates and seed the points that a loss samples."""

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """The batch on a device; `dtype` is for the two pixel inputs."""
        return replace(
            self,
            **{
                name: getattr(self, name).to(device)
                for name in ("input_ids", "attention_mask", "labels", "image_of_row", "image_grid_thw")
            },
            regions=None if self.regions is None else self.regions.to(device),
            pixel_values=self.pixel_values.to(device, dtype),
            g_pixel_values=[pixels.to(device, dtype) for pixels in self.g_pixel_values],
            masks=[mask.to(device) for mask in self.masks],
        )

    def as_mapping(self) -> dict[str, Any]:
        """The official mapping: each question brings its own copy of the image's tiles or patches."""
        starts = np.cumsum([0, *self.tiles_of_image])
        parts = [slice(starts[i], starts[i + 1]) for i in self.image_of_row.tolist()]
        mapping = {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "labels": self.labels,
            "g_pixel_values": self.g_pixel_values,
            "masks": self.masks,
            "frames_per_batch": self.frames_per_batch,
        }
        if not len(self.image_grid_thw):
            return mapping | {"pixel_values": torch.cat([self.pixel_values[part] for part in parts])}
        patches = self.pixel_values.split(self.image_grid_thw.prod(dim=1).tolist())
        return mapping | {
            "pixel_values": torch.cat([torch.cat(patches[part]) for part in parts]),
            "image_grid_thw": torch.cat([self.image_grid_thw[part] for part in parts]),
        }
