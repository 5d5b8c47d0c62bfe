"""Faster mask decoder of SAM 2: same outputs, with shared image features and fewer memory-layout changes.

It replaces the decoder of transformers because it takes less than half the time on a CPU (`benchmarks/predict.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import layer_norm, linear
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import (
    Sam2VideoAttention,
    Sam2VideoMaskDecoder,
    Sam2VideoTwoWayAttentionBlock,
)

from vesalius.models.module_replacement import rebuild, replace_module


class MaskDecoder(Sam2VideoMaskDecoder):
    """The mask decoder of transformers, without copying the image features for each prompt.

    All prompts of an image share its features up to the first layer, and share the finer feature levels. Upscaling turns
    each cell into 4 x 4 cells, stored as matrix rows; only the final masks are rearranged into images.
    """

    def forward(
        self,
        image_embeddings: torch.Tensor,
        image_positional_embeddings: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
        multimask_output: bool,
        high_resolution_features: list[torch.Tensor],
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Masks (i, n, 3, 4 h, 4 w), their scores (i, n, 3) and tokens (i, n, 3, c), and object scores (i, n, 1).

        Inputs: features (i, c, h, w), positional embeddings equal for all i, n prompts (i, n, k, c) of k tokens, and dense
        prompts (i, c, h, w), which are added to the features. Without `multimask_output` transformers computes the mask.
        """
        if not multimask_output:
            return super().forward(
                image_embeddings,
                image_positional_embeddings,
                sparse_prompt_embeddings,
                dense_prompt_embeddings,
                multimask_output,
                high_resolution_features,
                **kwargs,
            )
        images, prompts = sparse_prompt_embeddings.shape[:2]
        own = torch.cat([self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(images, prompts, -1, -1), sparse_prompt_embeddings], dim=2)
        positions = _as_rows(image_positional_embeddings[:1])
        cells = _as_rows(image_embeddings + dense_prompt_embeddings)
        queries = tokens
        for layer in self.transformer.layers:
            queries, cells = _read_both_ways(layer, queries, cells, tokens, positions)
        last = self.transformer.final_attn_token_to_image
        queries = queries + _tokens_read(last, queries + tokens, cells + positions, cells)
        queries = self.transformer.layer_norm_final_attn(queries)
        by_mask = queries[:, :, 3 : 2 + self.num_mask_tokens]
        weights = torch.stack(
            [mlp(by_mask[:, :, index]) for index, mlp in enumerate(list(self.output_hypernetworks_mlps)[1:])], dim=2
        )
        finest, finer = high_resolution_features
        masks = self._upscale(cells, weights, finest, finer, image_embeddings.shape[-1])
        scores = self.iou_prediction_head(queries[:, :, 1])[:, :, 1:]
        return masks, scores, by_mask, self.pred_obj_score_head(queries[:, :, 0])

    def _upscale(
        self, cells: torch.Tensor, weights: torch.Tensor, finest: torch.Tensor, finer: torch.Tensor, width: int
    ) -> torch.Tensor:
        """Masks (i, n, m, 4 h, 4 w) from cells (i, n or 1, h * w, c) and mask weights (i, n, m, c / 8)."""
        images, prompts, count = weights.shape[:3]
        height = cells.shape[2] // width
        for convolution, level, sides in ((self.upscale_conv1, finer, (2,)), (self.upscale_conv2, finest, (2, 2))):
            # kernel (c, c', 2, 2) as a matrix with c' rows for each of the 2 x 2 output cells
            cells = linear(cells, convolution.weight.permute(2, 3, 1, 0).flatten(0, 2))
            cells = cells.reshape(images, -1, height * width * 4 ** len(sides), level.shape[1])
            cells = cells.add_(_in_blocks(level + convolution.bias.reshape(-1, 1, 1), height, width, sides))
            if convolution is self.upscale_conv1:
                norm = self.upscale_layer_norm
                cells = layer_norm(cells, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
            cells = self.activation(cells)
        masks = weights @ cells.transpose(-1, -2)
        # axes: y, x, then (y, x) within 2 x 2 blocks, twice
        masks = masks.reshape(images, prompts, count, height, width, 2, 2, 2, 2)
        masks = masks.permute(0, 1, 2, 3, 5, 7, 4, 6, 8)
        return masks.reshape(images, prompts, count, 4 * height, 4 * width)


def _as_rows(maps: torch.Tensor) -> torch.Tensor:
    """Rearrange (i, c, h, w) to contiguous (i, 1, h * w, c), since the result is added many times."""
    return maps.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()


def _in_blocks(level: torch.Tensor, height: int, width: int, sides: tuple[int, ...]) -> torch.Tensor:
    """Rearrange (i, c, h * s, w * s) to (i, 1, h * w * s * s, c), each s x s block contiguous, in Z-order."""
    halves = len(sides)
    parted = level.reshape(*level.shape[:2], height, *sides, width, *sides)
    rows, columns = range(3, 3 + halves), range(4 + halves, 4 + 2 * halves)
    within = [axis for pair in zip(rows, columns, strict=True) for axis in pair]
    return parted.permute(0, 2, 3 + halves, *within, 1).flatten(1, -2).unsqueeze(1)


def _read_both_ways(
    layer: Sam2VideoTwoWayAttentionBlock,
    queries: torch.Tensor,
    cells: torch.Tensor,
    tokens: torch.Tensor,
    positions: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries (i, n, t, c) and cells (i, n, l, c) after one two-way attention layer; input cells may be (i, 1, l, c)."""
    if layer.skip_first_layer_pe:
        queries = layer.self_attn(queries, queries, queries)[0]
    else:
        asking = queries + tokens
        queries = queries + layer.self_attn(asking, asking, queries)[0]
    queries = layer.layer_norm1(queries)
    placed = cells + positions
    read = _tokens_read(layer.cross_attn_token_to_image, queries + tokens, placed, cells)
    queries = layer.layer_norm2(queries + read)
    queries = layer.layer_norm3(queries + layer.mlp(queries))
    read = _cells_read(layer.cross_attn_image_to_token, placed, queries + tokens, queries)
    return queries, layer.layer_norm4(read.add_(cells))


# The next two functions project the few tokens instead of the thousands of cells:
# (cells @ W) @ token = cells @ (W @ token).


def _tokens_read(
    attention: Sam2VideoAttention, queries: torch.Tensor, placed: torch.Tensor, cells: torch.Tensor
) -> torch.Tensor:
    """Output of tokens (i, n, t, c) attending to cells (i, n or 1, l, c); `placed`: cells plus positional embeddings."""
    prompts, count = queries.shape[1:3]
    query = _by_head(attention.q_proj, queries, attention) @ _weight_by_head(attention.k_proj, attention)
    # the key bias cancels in the softmax
    taken = _logits(query * attention.scaling, placed).softmax(dim=-1) @ cells
    taken = taken.reshape(len(cells), prompts, attention.num_attention_heads, count, -1)
    values = taken @ _weight_by_head(attention.v_proj, attention).transpose(-1, -2)
    return attention.o_proj(values.transpose(2, 3).flatten(-2) + attention.v_proj.bias)


def _cells_read(
    attention: Sam2VideoAttention, placed: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Output (i, n, l, c) of `placed`, cells plus positional embeddings (i, n or 1, l, c), attending to tokens (i, n, t, c)."""
    heads, (prompts, count) = attention.num_attention_heads, keys.shape[1:3]
    key = _by_head(attention.k_proj, keys, attention) * attention.scaling
    query = key @ _weight_by_head(attention.q_proj, attention)
    offset = key @ attention.q_proj.bias.reshape(heads, -1, 1)
    # cells last, so that the softmax over the few tokens is fast
    logits = _logits(query, placed).reshape(len(placed), prompts, heads, count, -1) + offset
    weights = logits.softmax(dim=-2).flatten(2, 3)
    out = attention.o_proj.weight.unflatten(1, (heads, -1)).permute(1, 2, 0)
    # the weights of a head sum to 1, so each head adds 1 / heads of the bias
    given = _by_head(attention.v_proj, values, attention) @ out + attention.o_proj.bias / heads
    return weights.transpose(-1, -2) @ given.flatten(2, 3)


def _logits(query: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Attention logits (i, n or 1, rows, l) of queries (i, n, heads, t, c) and cells (i, n or 1, l, c)."""
    images, apart, _, channels = cells.shape
    return query.reshape(images, apart, -1, channels) @ cells.transpose(-1, -2)


def _by_head(project: nn.Linear, tokens: torch.Tensor, attention: Sam2VideoAttention) -> torch.Tensor:
    """Projected tokens (i, n, t, c) as (i, n, heads, t, d)."""
    return project(tokens).unflatten(-1, (attention.num_attention_heads, -1)).transpose(2, 3)


def _weight_by_head(project: nn.Linear, attention: Sam2VideoAttention) -> torch.Tensor:
    """The matrix of a projection as (heads, d, c)."""
    return project.weight.unflatten(0, (attention.num_attention_heads, -1))


def use_own_decoder(sam: Sam2VideoModel) -> None:
    """Replace the mask decoder of `sam` by a `MaskDecoder` with the same parameters."""
    native = sam.mask_decoder
    replace_module(sam, "mask_decoder", rebuild(native, lambda: MaskDecoder(native.config)))
