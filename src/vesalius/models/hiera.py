"""SAM 2's image encoder, relieved of work whose result nothing reads."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import Sam2VideoModel
from transformers.models.sam2.modeling_sam2 import Sam2MultiScaleAttention, do_pool


class WindowAttention(Sam2MultiScaleAttention):
    """Attention within the windows of Hiera, the same numbers as transformers'.

    Theirs also computes attention of each position's heads to one another, in float32, and drops it: a tenth of the
    encoder's time on a CPU (`benchmarks/predict.py`).
    """

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Windows (w, height, width, c) to (w, height, width, c'), both sides halved where queries are pooled."""
        windows, height, width, _ = hidden_states.shape
        heads = self.num_attention_heads
        qkv = self.qkv(hidden_states).reshape(windows, height * width, 3, heads, -1)
        query, key, value = qkv.unbind(2)
        if self.query_stride:
            query = do_pool(query.reshape(windows, height, width, -1), self.query_stride)
            height, width = query.shape[1:3]
            query = query.reshape(windows, height * width, heads, -1)
        attended = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=self.scale
        )
        return self.proj(attended.transpose(1, 2).reshape(windows, height, width, -1))


def relieve(sam: Sam2VideoModel) -> None:
    """Let the encoder's attention do only what is needed; its parameters and their names stay."""
    for module in sam.vision_encoder.modules():
        if type(module) is Sam2MultiScaleAttention:
            module.__class__ = WindowAttention
