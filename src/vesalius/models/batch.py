"""`Batch`: the input of a model for one forward pass, in training and prediction."""

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
    """The input of one forward pass, with the official field names. Several rows (conversations) may share an image."""

    input_ids: torch.Tensor
    """int64 (b, t), padded on the left."""
    attention_mask: torch.Tensor
    """int64 (b, t), 0 where padded."""
    labels: torch.Tensor
    """int64 (b, t): token ids of the answers, -100 elsewhere."""
    pixel_values: torch.Tensor
    """float, of all images: tiles (n, 3, 448, 448) or flattened patches (n, values per patch), depending on the family."""
    image_grid_thw: torch.Tensor
    """int64 (images or video frames, 3): number of patches along time, height and width; (0, 3) for tiles."""
    g_pixel_values: list[torch.Tensor]
    """SAM 2's input for each image or clip frame, float (3, S, S)."""
    masks: list[torch.Tensor]
    """Ground truth of each image or clip, uint8 (n, H, W) at the original size; an empty list without annotation. In
    training n is the number of [SEG] tokens in its answers, times f for a clip of f frames; the f masks of a [SEG] are
    adjacent."""
    image_of_row: torch.Tensor
    """int64 (b,): image index of each row."""
    tiles_of_image: list[int]
    """Number of tiles of each image in `pixel_values`, or of its rows in `image_grid_thw`."""
    frames_per_batch: list[int]
    """Number of frames of each image or clip; 1 for an image."""
    sizes: list[Size]
    """Original (h, w) of each image."""
    regions: torch.Tensor | None = None
    """bool (n, 16, 16): n regions that the text refers to (`mask_prompts`), on the cells of the last tile; one image only."""
    draws: tuple[int, ...] = ()
    """Training: one random integer per prompt, which selected its templates and seeds the point sampling of the loss."""

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """A copy of the batch on a device; `dtype` applies to the two pixel inputs only."""
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
        """The batch as the official code's mapping, which repeats the image's tiles or patches for each row."""
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
