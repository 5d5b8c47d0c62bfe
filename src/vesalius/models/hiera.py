"""Faster image encoder of SAM 2: same outputs, without an unused attention, in channels-last layout.

It replaces the encoder of transformers, which computes and discards one attention, a tenth of the time on a CPU
(`benchmarks/predict.py`).
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch.amp import is_autocast_available
from torch.nn import functional
from transformers import Sam2VideoModel
from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig
from transformers.models.sam2.modeling_sam2 import (
    Sam2HieraDetModel,
    Sam2MultiScaleAttention,
    Sam2PatchEmbeddings,
    do_pool,
)

from vesalius.models.module_replacement import rebuild, replace_module


class WindowAttention(Sam2MultiScaleAttention):
    """Window attention of Hiera without the unused attention across heads that transformers computes."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Windows (w, height, width, c) to (w, height, width, c'), with height and width halved if queries are pooled."""
        windows, height, width, _ = hidden_states.shape
        heads = self.num_attention_heads
        qkv = self.qkv(hidden_states).reshape(windows, height * width, 3 * heads, -1)
        query, key, value = qkv.split(heads, dim=2)
        if self.query_stride:
            query = do_pool(query.reshape(windows, height, width, -1), self.query_stride)
            height, width = query.shape[1:3]
            query = query.reshape(windows, height * width, heads, -1)
        attended = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=self.scale
        )
        return self.proj(attended.transpose(1, 2).reshape(windows, height, width, -1))


class PatchEmbeddings(Sam2PatchEmbeddings):
    """Patch embeddings in channels-last layout, which all later layers use."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(i, 3, S, S) to (i, S / 4, S / 4, c)."""
        return super().forward(pixel_values).contiguous()


class Hiera(Sam2HieraDetModel):
    """The trunk of SAM 2's image encoder; two small matrix products resize its positional embedding to the image."""

    def __init__(self, config: Sam2HieraDetConfig) -> None:
        super().__init__(config)
        self.patch_embed = PatchEmbeddings(config)
        for block in self.blocks:
            old = block.attn
            block.attn = WindowAttention(config, old.dim, old.dim_out, old.num_attention_heads, old.query_stride)

    def _get_pos_embed(self, hw: tuple[int, int]) -> torch.Tensor:
        """Positional embedding (1, h, w, c): the global one, resized bicubically, plus the window embedding in each window."""
        (height, width), side = hw, self.pos_embed_window.shape[-1]
        embedding = self.pos_embed[0].permute(1, 2, 0).float()
        down, across = (
            _stretch(*sizes).to(embedding.device)
            for sizes in ((embedding.shape[0], height), (embedding.shape[1], width))
        )
        whole = _stretched(embedding, down, across).to(self.pos_embed.dtype)
        window = self.pos_embed_window.permute(0, 2, 3, 1).unsqueeze(2)
        parted = whole.reshape(height // side, side, width // side, side, -1)
        return (parted + window).reshape(1, height, width, -1)


def _stretched(embedding: torch.Tensor, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """Resize (rows, columns, c) to (h, w, c) by products with (h, rows) and (w, columns), always in float32."""
    device = embedding.device.type
    no_autocast = torch.autocast(device, enabled=False) if is_autocast_available(device) else nullcontext()
    with no_autocast:  # half precision is too inaccurate for these sums
        return across @ (down @ embedding.flatten(1)).unflatten(1, (embedding.shape[1], -1))


@cache
def _stretch(cells: int, to: int) -> torch.Tensor:
    """float32 (to, cells): the matrix of torch's bicubic interpolation from `cells` to `to` values."""
    with torch.inference_mode(False):  # the cached matrix is used in training too
        each = torch.eye(cells, device="cpu").reshape(cells, 1, cells, 1)
        return functional.interpolate(each, size=(to, 1), mode="bicubic")[:, 0, :, 0].T.contiguous()


def use_own_encoder(sam: Sam2VideoModel) -> None:
    """Replace the trunk of `sam` by a `Hiera` with the same parameters."""
    trunk = sam.vision_encoder.backbone
    replace_module(sam.vision_encoder, "backbone", rebuild(trunk, lambda: Hiera(trunk.config)))
