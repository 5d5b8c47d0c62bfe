"""Forward pass of the vision-language model, from a batch to the hidden states of its tokens.

Families differ in image features and positions (`models/families`); everything else is shared.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from vesalius.models.batch import Batch
from vesalius.models.families.table import family_of


@dataclass(frozen=True)
class LanguageInputs:
    """Input of the language model: token embeddings, with image features in place of image tokens."""

    embeddings: torch.Tensor
    """float (b, t, hidden)."""
    positions: torch.Tensor
    """int64 (b, t), or (3, b, t) in time, height and width, depending on the family."""
    attention: torch.Tensor
    """int64 (b, t), 0 where padded."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Image features that are added to the hidden states of the first layers, for families that have them."""


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of the input tokens, float (b, t, hidden)."""

    last: torch.Tensor
    """After the last norm: input of the language head."""
    seg: torch.Tensor
    """Input of the [SEG] projector."""


def vision_encoder_of(vlm: PreTrainedModel) -> torch.nn.Module:
    """The vision encoder of a vision-language model."""
    return family_of(vlm.config.model_type).vision_encoder(vlm)


def embed_batch(vlm: PreTrainedModel, batch: Batch) -> LanguageInputs:
    """The embedded rows of a batch; each image is encoded once for all its rows."""
    family = family_of(vlm.config.model_type)
    is_image = batch.input_ids == vlm.config.image_token_id
    embeddings = vlm.get_input_embeddings()(batch.input_ids)
    if not len(batch.pixel_values):
        return LanguageInputs(embeddings, family.text_positions(batch.attention_mask), batch.attention_mask)
    features = family.image_features(vlm, batch)
    positions = family.positions(vlm, batch, is_image)
    embeddings = embeddings.masked_scatter(is_image.unsqueeze(-1), _by_row(features.images, batch).to(embeddings.dtype))
    layers = [_by_row(layer, batch) for layer in features.deep]
    extra = {"visual_pos_masks": is_image, "deepstack_visual_embeds": layers} if layers else {}
    return LanguageInputs(embeddings, positions, batch.attention_mask, extra)


def _by_row(features: list[torch.Tensor], batch: Batch) -> torch.Tensor:
    return torch.cat([features[i] for i in batch.image_of_row.tolist()])


def embed_token(vlm: PreTrainedModel, before: LanguageInputs, token: torch.Tensor) -> LanguageInputs:
    """The inputs of the next token, `token` (b,), after `before`."""
    attention = torch.cat([before.attention, torch.ones_like(before.attention[:, :1])], dim=1)
    positions = before.positions
    # one past the largest position so far, which after an image differs from the token count
    largest = positions.amax(dim=-1) if positions.ndim == 2 else positions.amax(dim=(0, -1)).expand(3, -1)
    return LanguageInputs(vlm.get_input_embeddings()(token)[:, None], largest[..., None] + 1, attention)


def run_language_model(
    vlm: PreTrainedModel, inputs: LanguageInputs, seg_before_norm: bool, cache: Cache | None = None
) -> HiddenStates:
    """Hidden states of the tokens of `inputs`; they continue the cached tokens, if any."""
    language_model = vlm.model.language_model
    with _input_of(language_model.norm) as before_norm:
        last = language_model(
            inputs_embeds=inputs.embeddings,
            attention_mask=inputs.attention,
            position_ids=inputs.positions,
            use_cache=cache is not None,
            **{_cache_argument(type(language_model)): cache},
            **inputs.extra,
        ).last_hidden_state
    # in a model spread over devices the last layer may be on another device than the output
    return HiddenStates(last, before_norm[0].to(last.device) if seg_before_norm else last)


def _cache_argument(language_model: type[PreTrainedModel]) -> str:
    """Name of the argument for the KV cache: transformers 5.24 renamed `past_key_values` to `cache`."""
    return "cache" if "cache" in inspect.signature(language_model.forward).parameters else "past_key_values"


def prefill(
    vlm: PreTrainedModel, inputs: LanguageInputs, batch: Batch, seg_before_norm: bool, cache: Cache
) -> tuple[HiddenStates, LanguageInputs]:
    """Hidden states (b, k, hidden) and inputs of the last k tokens of each row; the cache is filled with all tokens.

    Rows about one image share its tokens as a prefix, which is computed once. k is the length of the longest row after
    its prefix, or of the whole rows if no prefix is shared.
    """
    rows = batch.image_of_row
    images, of_row = rows.unique(return_inverse=True)
    # beyond the trained context RoPE depends on the total length, so a prefix cannot be computed separately
    if len(images) == len(rows) or not len(batch.pixel_values) or exceeds_context(vlm, inputs.attention):
        return run_language_model(vlm, inputs, seg_before_norm, cache), inputs
    ends = _ends_of_images(vlm, batch)
    first = torch.stack([(of_row == image).nonzero()[0, 0] for image in range(len(images))])
    shared = _prefixes(inputs, first, ends)
    run_language_model(vlm, shared, seg_before_norm, cache)
    cache.batch_select_indices(of_row.cpu())  # the layers may be on several devices
    rest = inputs.attention.shape[1] - int(ends.min())
    after = torch.arange(inputs.attention.shape[1], device=ends.device)[-rest:] >= ends[:, None]
    own = inputs.attention[:, -rest:] * after
    read = LanguageInputs(
        inputs.embeddings[:, -rest:], inputs.positions[..., -rest:], torch.cat([shared.attention[of_row], own], dim=1)
    )
    return run_language_model(vlm, read, seg_before_norm, cache), read


def _ends_of_images(vlm: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """int64 (b,): the column after the last image token of each row."""
    is_image = batch.input_ids == vlm.config.image_token_id
    return is_image.shape[1] - is_image.flip(1).int().argmax(dim=1)


def _prefixes(inputs: LanguageInputs, rows: torch.Tensor, ends: torch.Tensor) -> LanguageInputs:
    """The inputs of `rows` up to the columns `ends`, padded on the left."""
    starts = inputs.attention.argmax(dim=1)  # rows are padded on the left
    width = int((ends - starts)[rows].max())
    columns = ends[rows, None] - width + torch.arange(width, device=ends.device)
    inside = columns >= starts[rows, None]
    picked = rows[:, None], columns.clamp(min=0)
    extra = {}
    if inputs.extra:
        marks = inputs.extra["visual_pos_masks"]
        counts = marks.sum(dim=1).tolist()
        layers = [layer.split(counts) for layer in inputs.extra["deepstack_visual_embeds"]]
        extra = {
            "visual_pos_masks": marks[picked] & inside,
            "deepstack_visual_embeds": [torch.cat([parts[row] for row in rows.tolist()]) for parts in layers],
        }
    return LanguageInputs(
        inputs.embeddings[picked], inputs.positions[(..., *picked)], inputs.attention[picked] * inside, extra
    )


@contextmanager
def _input_of(module: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the first argument of each call of the module within the block."""
    caught: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0]))
    try:
        yield caught
    finally:
        handle.remove()


def reset_rope(vlm: PreTrainedModel) -> None:
    """Reset dynamic RoPE scaling; otherwise its module keeps the frequencies of the longest prompt so far.

    The official code never resets it, so a short prompt after a long one gets wrong positions.
    """
    if rope := _dynamic_rope(vlm):
        rope.inv_freq = rope.original_inv_freq
        rope.max_seq_len_cached = rope.original_max_seq_len


def freeze_rope(vlm: PreTrainedModel) -> None:
    """Keep the RoPE frequencies of the prompt while its answer is generated.

    Otherwise each token beyond the trained context would change them, and the cached keys would no longer match; the
    official code has this error.
    """
    if rope := _dynamic_rope(vlm):
        rope.max_seq_len_cached = sys.maxsize


def exceeds_context(vlm: PreTrainedModel, attention: torch.Tensor) -> bool:
    """Whether inputs with this attention mask are longer than the trained context of a dynamic RoPE."""
    rope = _dynamic_rope(vlm)
    return rope is not None and attention.shape[1] > rope.original_max_seq_len


def _dynamic_rope(vlm: PreTrainedModel) -> Any:
    rope = vlm.model.language_model.rotary_emb
    return rope if getattr(rope, "rope_type", "default") == "dynamic" else None
