"""SAM 2 on single images: pixels to features, features and prompts to masks, all differentiable.

The functions call submodules of `Sam2VideoModel`, since its own methods accept only points and boxes and run without
gradients. Masks have g x g cells, g = S / 4, for an input of S x S pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import interpolate, linear
from transformers import Sam2VideoModel
from transformers.models.sam2.modeling_sam2 import Sam2VisionNeck

MASK_LIMIT = 32.0
"""Logits of a mask prompt are limited to +-32, as in SAM 2's image predictor."""


@dataclass(frozen=True)
class Features:
    """Features of i images of S x S pixels, without memory."""

    stride_4: torch.Tensor
    """float (i, c / 8, S / 4, S / 4), projected for the decoder's last upscaling."""
    stride_8: torch.Tensor
    """float (i, c / 4, S / 8, S / 8), projected for the decoder's first upscaling."""
    stride_16: torch.Tensor
    """float (i, c, S / 16, S / 16)."""


@dataclass(frozen=True)
class Decoded:
    """Three candidate masks for each of n prompts on each of i images; `take_best` selects one by score."""

    candidates: torch.Tensor
    """float (i, n, 3, g, g): logits, not masked by the object scores."""
    scores: torch.Tensor
    """float (i, n, 3): predicted IoU of each mask."""
    object_scores: torch.Tensor
    """float (i, n): logit that the object is present in the image."""
    tokens: torch.Tensor
    """float (i, n, 3, c): output token of each mask."""


@dataclass(frozen=True)
class SegPrompts:
    """The prompt embeddings of all [SEG] tokens of a batch, in order of the rows."""

    embedding: torch.Tensor
    """float (m, c): the projected hidden state of the token."""
    row: torch.Tensor
    """int64 (m,): index of its batch row."""
    image: torch.Tensor
    """int64 (m,): index of its image."""


@dataclass(frozen=True)
class MaskLogits:
    """The mask of each [SEG], and all three candidates."""

    logits: torch.Tensor
    """float (m, g, g)."""
    scores: torch.Tensor
    """float (m,): predicted IoU of the mask."""
    candidates: torch.Tensor
    """float (m, 3, g, g): all three masks; `logits` is the one with the highest score."""
    candidate_scores: torch.Tensor
    """float (m, 3)."""


def encode_images(sam: Sam2VideoModel, pixels: torch.Tensor) -> Features:
    """Features of images, float (i, 3, S, S).

    `Sam2VideoModel.get_image_embeddings` runs without gradients and adds the no-memory embedding, so it is not used.
    """
    levels = sam.vision_encoder.backbone(pixels).intermediate_hidden_states
    decoder = sam.mask_decoder
    # the decoder's two convolutions run once per image here, not once per prompt
    return Features(*_pyramid(sam.vision_encoder.neck, levels, (decoder.conv_s0, decoder.conv_s1, None)))


def _pyramid(
    neck: Sam2VisionNeck, levels: Sequence[torch.Tensor], after: Sequence[nn.Conv2d | None]
) -> list[torch.Tensor]:
    """Neck features from stride 4 to 16, for backbone features (i, h, w, c) from stride 4 to 32.

    `after` has one further convolution or None per stride. Equals `Sam2VisionNeck.forward` without the positional
    encodings, which are not needed here and take a quarter of the encoder's time on a CPU.
    """
    found: list[torch.Tensor] = []
    coarser = None
    for index in reversed(range(len(levels))):
        convolution, then = neck.convs[len(levels) - 1 - index], after[index] if index < len(after) else None
        adds = coarser is not None and index in neck.fpn_top_down_levels
        if then is not None and not adds and index - 1 not in neck.fpn_top_down_levels:
            found.append(_convolve_twice(convolution, then, levels[index]))
            continue
        features = convolution(levels[index].permute(0, 3, 1, 2))
        if coarser is not None and adds:
            features = features + interpolate(coarser, scale_factor=2.0, mode="nearest")
        coarser = features
        found.append(features if then is None else then(features))
    return found[:0:-1]


def _convolve_twice(first: nn.Conv2d, second: nn.Conv2d, level: torch.Tensor) -> torch.Tensor:
    """Two 1 x 1 convolutions of (i, h, w, c) as one, several times cheaper, matrix product: (i, c', h, w)."""
    assert first.bias is not None and second.bias is not None
    # an explicit sum, since autocast would compute a matrix product in half precision
    outer = second.weight.flatten(1).float().unsqueeze(-1)
    matrix = (outer * first.weight.flatten(1).float()).sum(dim=1)
    offset = (outer * first.bias.float().unsqueeze(-1)).sum(dim=1).squeeze(-1) + second.bias.float()
    matrix, offset = matrix.to(first.weight.dtype), offset.to(first.weight.dtype)
    return linear(level, matrix, offset).permute(0, 3, 1, 2)


def decode(sam: Sam2VideoModel, features: Features, prompts: torch.Tensor) -> Decoded:
    """Masks for `prompts` (i, n, c), the [SEG] embeddings, on images without memory."""
    coarse = features.stride_16 + sam.no_memory_embedding.reshape(1, -1, 1, 1)
    return _decode(sam, coarse, [features.stride_4, features.stride_8], prompts.unsqueeze(2))


def decode_with_memory(sam: Sam2VideoModel, features: Features, remembered: torch.Tensor) -> Decoded:
    """Masks (n, 1, ..) of n objects on one image, from memory and without prompts.

    `remembered` (n, c, S / 16, S / 16) are the stride-16 features of the image after memory attention for each object.
    """
    objects, channels = remembered.shape[:2]
    fine = [level.expand(objects, -1, -1, -1) for level in (features.stride_4, features.stride_8)]
    return _decode(sam, remembered, fine, remembered.new_zeros(objects, 1, 0, channels))


def decode_with_points(
    sam: Sam2VideoModel,
    features: Features,
    embeddings: torch.Tensor,
    points: torch.Tensor,
    positive: torch.Tensor,
    logits: torch.Tensor | None,
) -> Decoded:
    """Masks (1, 1, 3, ..) of one object on one image, from its [SEG] embeddings, points and an earlier mask.

    `embeddings` float (k, c) may be empty; `points` float (p, 2) are (x, y) in pixels of the S x S input; `positive` bool
    (p,); `logits` float (g, g) are those of the earlier mask, or None. The sparse prompts are the points, SAM 2's padding,
    then the embeddings.
    """
    coarse = features.stride_16 + sam.no_memory_embedding.reshape(1, -1, 1, 1)
    mask = None if logits is None else logits[None, None].clamp(-MASK_LIMIT, MASK_LIMIT).to(coarse.dtype)
    sparse, dense = sam.prompt_encoder(points[None, None], positive[None, None].int(), None, mask)
    sparse = torch.cat([sparse.to(coarse.dtype), embeddings[None, None].to(coarse.dtype)], dim=2)
    return _decode_sparse(sam, coarse, [features.stride_4, features.stride_8], sparse, dense)


def _decode(sam: Sam2VideoModel, coarse: torch.Tensor, fine: list[torch.Tensor], prompts: torch.Tensor) -> Decoded:
    """Masks for `prompts` (i, n, k, c) of k tokens each, on features of stride 16 and of the two finer strides."""
    images, objects = prompts.shape[:2]
    encoder = sam.prompt_encoder
    # SAM 2 adds two "not a point" tokens: its padding, and one for the absent point prompt
    no_points = encoder.not_a_point_embed.weight.expand(images, objects, 2, -1)
    sparse = torch.cat([no_points, prompts.to(coarse.dtype)], dim=2)
    dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(coarse)
    return _decode_sparse(sam, coarse, fine, sparse, dense)


def _decode_sparse(
    sam: Sam2VideoModel, coarse: torch.Tensor, fine: list[torch.Tensor], sparse: torch.Tensor, dense: torch.Tensor
) -> Decoded:
    """Masks for sparse prompts (i, n, k, c) and dense prompts (i, c, h, w)."""
    images = sparse.shape[0]
    masks, scores, tokens, object_scores = sam.mask_decoder(
        image_embeddings=coarse,
        image_positional_embeddings=sam.get_image_wide_positional_embeddings().expand(images, -1, -1, -1),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
        high_resolution_features=fine,
    )
    return Decoded(masks, scores, object_scores.squeeze(-1), tokens)


def take_best(values: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The entry of `values` (*, 3, ..) with the highest of `scores` (*, 3), as (*, ..)."""
    axis = scores.ndim - 1
    index = scores.argmax(dim=-1, keepdim=True)
    index = index.reshape(index.shape + (1,) * (values.ndim - scores.ndim))
    return values.take_along_dim(index, dim=axis).squeeze(axis)


def object_pointers(sam: Sam2VideoModel, decoded: Decoded) -> torch.Tensor:
    """float (i, n, c): object pointers for later frames of a video.

    An object with a score of at most 0 gets the learned "no object" pointer.
    """
    pointers = sam.object_pointer_proj(take_best(decoded.tokens, decoded.scores))
    return torch.where(decoded.object_scores.unsqueeze(-1) > 0, pointers, sam.no_object_pointer)
