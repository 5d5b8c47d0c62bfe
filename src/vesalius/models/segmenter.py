"""The maths of SAM 2 on one image: pixels to features, features and prompts to masks.

Functions of a native `Sam2VideoModel`, whose own entries take points and boxes and run without gradient. Masks live in
the square of S x S pixels that the encoder sees, on g = S / 4 cells a side. Gradients flow through everything here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import interpolate, linear
from transformers import Sam2VideoModel
from transformers.models.sam2.modeling_sam2 import Sam2VisionNeck


@dataclass(frozen=True)
class Features:
    """What the image encoder sees in i images of S x S pixels; nothing of any memory is in it."""

    stride_4: torch.Tensor
    """float (i, c / 8, S / 4, S / 4), ready for the decoder's last upscaling."""
    stride_8: torch.Tensor
    """float (i, c / 4, S / 8, S / 8), ready for the decoder's first upscaling."""
    stride_16: torch.Tensor
    """float (i, c, S / 16, S / 16)."""


@dataclass(frozen=True)
class Decoded:
    """Three masks for each of n prompts on each of i images; whoever wants one takes the highest score (`take_best`)."""

    candidates: torch.Tensor
    """float (i, n, 3, g, g): logits. They stay as they are where the object score says that nothing is there."""
    scores: torch.Tensor
    """float (i, n, 3): predicted IoU of each mask."""
    object_scores: torch.Tensor
    """float (i, n): logit of whether the object is in the image at all."""
    tokens: torch.Tensor
    """float (i, n, 3, c): what the decoder knows about the object of each mask."""


@dataclass(frozen=True)
class SegPrompts:
    """The prompt embedding of each [SEG] of a batch, in order of the questions."""

    embedding: torch.Tensor
    """float (m, c): the projected hidden state of the token."""
    row: torch.Tensor
    """int64 (m,): index of its question."""
    image: torch.Tensor
    """int64 (m,): index of its image."""


@dataclass(frozen=True)
class MaskLogits:
    """The mask decoder's best map for each [SEG]."""

    logits: torch.Tensor
    """float (m, g, g)."""
    scores: torch.Tensor
    """float (m,): predicted IoU of that map."""
    candidates: torch.Tensor
    """float (m, 3, g, g): all three maps, of which `logits` is the one with the highest score."""
    candidate_scores: torch.Tensor
    """float (m, 3)."""


def encode_images(sam: Sam2VideoModel, pixels: torch.Tensor) -> Features:
    """Features of float (i, 3, S, S).

    Not `Sam2VideoModel.get_image_embeddings`: it runs without gradient and has the "no memory" embedding in it.
    """
    levels = sam.vision_encoder.backbone(pixels).intermediate_hidden_states
    decoder = sam.mask_decoder
    # the decoder's two convolutions need to run once an image, not once a prompt
    return Features(*_pyramid(sam.vision_encoder.neck, levels, (decoder.conv_s0, decoder.conv_s1, None)))


def _pyramid(
    neck: Sam2VisionNeck, levels: Sequence[torch.Tensor], after: Sequence[nn.Conv2d | None]
) -> list[torch.Tensor]:
    """The neck's features, from stride 4 to 16, of the backbone's (i, h, w, c), from stride 4 to 32; each through `after`.

    As `Sam2VisionNeck.forward`, without its positional encodings: they are the same for every image, nothing here needs
    them, and on a CPU they are a quarter of the encoder's time.
    """
    found: list[torch.Tensor] = []
    coarser = None
    for place in reversed(range(len(levels))):
        convolution, then = neck.convs[len(levels) - 1 - place], after[place] if place < len(after) else None
        adds = coarser is not None and place in neck.fpn_top_down_levels
        if then is not None and not adds and place - 1 not in neck.fpn_top_down_levels:
            found.append(_convolve_twice(convolution, then, levels[place]))
            continue
        features = convolution(levels[place].permute(0, 3, 1, 2))
        if coarser is not None and adds:
            features = features + interpolate(coarser, scale_factor=2.0, mode="nearest")
        coarser = features
        found.append(features if then is None else then(features))
    return found[:0:-1]


def _convolve_twice(first: nn.Conv2d, second: nn.Conv2d, level: torch.Tensor) -> torch.Tensor:
    """What two convolutions of 1 x 1 make of (i, h, w, c), as (i, c', h, w): one matrix, several times smaller than both."""
    assert first.bias is not None and second.bias is not None
    # sums over the channels between, in 32 bits: autocast would take a matrix product to 16
    outer = second.weight.flatten(1).float().unsqueeze(-1)
    matrix = (outer * first.weight.flatten(1).float()).sum(dim=1)
    offset = (outer * first.bias.float().unsqueeze(-1)).sum(dim=1).squeeze(-1) + second.bias.float()
    matrix, offset = matrix.to(first.weight.dtype), offset.to(first.weight.dtype)
    return linear(level, matrix, offset).permute(0, 3, 1, 2)


def decode(sam: Sam2VideoModel, features: Features, prompts: torch.Tensor) -> Decoded:
    """Masks of what `prompts` (i, n, c), the embeddings of [SEG], mean on images that have no past."""
    coarse = features.stride_16 + sam.no_memory_embedding.reshape(1, -1, 1, 1)
    return _decode(sam, coarse, [features.stride_4, features.stride_8], prompts.unsqueeze(2))


def decode_with_memory(sam: Sam2VideoModel, features: Features, remembered: torch.Tensor) -> Decoded:
    """Masks, as (n, 1, ..), of n objects on one image, with no prompt.

    `remembered` (n, c, S / 16, S / 16) stands in for the image's features of stride 16: for each object the same
    features, after attention to what is remembered of it.
    """
    objects, channels = remembered.shape[:2]
    fine = [level.expand(objects, -1, -1, -1) for level in (features.stride_4, features.stride_8)]
    return _decode(sam, remembered, fine, remembered.new_zeros(objects, 1, 0, channels))


def _decode(
    sam: Sam2VideoModel, coarse: torch.Tensor, fine: list[torch.Tensor], prompts: torch.Tensor
) -> Decoded:
    """Masks for `prompts` (i, n, k, c), k tokens each, on features of stride 16 and the two finer levels."""
    images, objects = prompts.shape[:2]
    encoder = sam.prompt_encoder
    # SAM 2's two padding points: its own, and the one that stands for "no point was given"
    no_points = encoder.not_a_point_embed.weight.expand(images, objects, 2, -1)
    masks, scores, tokens, object_scores = sam.mask_decoder(
        image_embeddings=coarse,
        image_positional_embeddings=sam.get_image_wide_positional_embeddings().expand(images, -1, -1, -1),
        sparse_prompt_embeddings=torch.cat([no_points, prompts.to(coarse.dtype)], dim=2),
        dense_prompt_embeddings=encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(coarse),
        multimask_output=True,
        high_resolution_features=fine,
    )
    return Decoded(masks, scores, object_scores.squeeze(-1), tokens)


def take_best(values: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The entry of `values` (*, 3, ..) where `scores` (*, 3) is highest, as (*, ..)."""
    axis = scores.ndim - 1
    index = scores.argmax(dim=-1, keepdim=True)
    index = index.reshape(index.shape + (1,) * (values.ndim - scores.ndim))
    return values.take_along_dim(index, dim=axis).squeeze(axis)


def object_pointers(sam: Sam2VideoModel, decoded: Decoded) -> torch.Tensor:
    """float (i, n, c): what later frames of a video are told about each object.

    A hard choice: where the object score is not above 0, all objects have the same learned pointer.
    """
    pointers = sam.object_pointer_proj(take_best(decoded.tokens, decoded.scores))
    return torch.where(decoded.object_scores.unsqueeze(-1) > 0, pointers, sam.no_object_pointer)
