"""SAM 2's image encoder, relieved of work whose result nothing reads, and of maps whose channels lie apart."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch.amp import is_autocast_available
from torch.nn import functional
from transformers import Sam2VideoModel
from transformers.models.sam2.modeling_sam2 import (
    Sam2HieraDetModel,
    Sam2MultiScaleAttention,
    Sam2PatchEmbeddings,
    do_pool,
)


class WindowAttention(Sam2MultiScaleAttention):
    """Attention within the windows of Hiera, the same numbers as transformers'.

    Theirs also computes attention of each position's heads to one another, in float32, and drops it: a tenth of the
    encoder's time on a CPU (`benchmarks/predict.py`).
    """

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Windows (w, height, width, c) to (w, height, width, c'), both sides halved where queries are pooled."""
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
    """The same numbers with the channels of a patch side by side, as all that follows reads them."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(i, 3, S, S) to (i, S / 4, S / 4, c)."""
        return super().forward(pixel_values).contiguous()


class Hiera(Sam2HieraDetModel):
    """The trunk, whose positional embedding is stretched to the image by two small products of matrices."""

    def _get_pos_embed(self, hw: tuple[int, int]) -> torch.Tensor:
        """(1, h, w, c): what `interpolate` makes of the parameter, bicubic, and one window's embedding in each window."""
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
    """(rows, columns, c) to (h, w, c) by the products with (h, rows) and (w, columns), in float32 under autocast, too."""
    device = embedding.device.type
    no_autocast = torch.autocast(device, enabled=False) if is_autocast_available(device) else nullcontext()
    with no_autocast:  # 16 bits are too few for these sums
        return across @ (down @ embedding.flatten(1)).unflatten(1, (embedding.shape[1], -1))


@cache
def _stretch(cells: int, to: int) -> torch.Tensor:
    """float32 (to, cells): the matrix of torch's bicubic interpolation of so many values to so many."""
    with torch.inference_mode(False):  # kept for training, too
        each = torch.eye(cells, device="cpu").reshape(cells, 1, cells, 1)
        return functional.interpolate(each, size=(to, 1), mode="bicubic")[:, 0, :, 0].T.contiguous()


RELIEVED: dict[type, type] = {
    Sam2HieraDetModel: Hiera,
    Sam2MultiScaleAttention: WindowAttention,
    Sam2PatchEmbeddings: PatchEmbeddings,
}


def replace_modules(sam: Sam2VideoModel) -> None:
    """Let the encoder do only what is needed; its parameters and their names stay."""
    for module in sam.vision_encoder.modules():
        if (relieved := RELIEVED.get(type(module))) is not None:
            module.__class__ = relieved
