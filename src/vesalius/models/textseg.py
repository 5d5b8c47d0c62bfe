"""The text-prompted segmenter: a vision-language model, a projector and SAM 2, joined by the token [SEG].

After Sa2VA (arXiv 2501.04001): the hidden state of [SEG] becomes one more sparse prompt of SAM 2's mask decoder.
The two large parts are native transformers models; this file is what lies between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedModel,
    Sam2VideoConfig,
    Sam2VideoModel,
)
from transformers.cache_utils import DynamicCache

from vesalius.models.processor import NOT_LEARNED, Batch
from vesalius.models.specs import ModelSpec


@dataclass(frozen=True)
class SegPrompts:
    """One row for each [SEG] of a batch, in order of the questions."""

    embedding: torch.Tensor
    """float (m, c): what the projector made of its hidden state."""
    row: torch.Tensor
    """int64 (m,): the question it answers."""
    image: torch.Tensor
    """int64 (m,): the image it is about."""


@dataclass(frozen=True)
class Answer:
    """What the language model said to each question of a batch."""

    ids: list[list[int]]
    """Tokens of each answer, the closing one included."""
    seg: SegPrompts
    says_seg: torch.Tensor
    """bool (b,): the model itself writes [SEG]; where the answer was given, it agrees with all of it up to there."""


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


@dataclass(frozen=True)
class Output:
    """What training needs of one batch."""

    text_logits: torch.Tensor
    """float (k, vocabulary): where a token of an answer is to be predicted, and only there."""
    text_labels: torch.Tensor
    """int64 (k,)."""
    masks: MaskLogits
    """One for each [SEG], in order of the questions."""


class Projector(nn.Module):
    """Linear, ReLU, Linear: hidden state of [SEG] (.., hidden) to a prompt embedding (.., c)."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(hidden, hidden)
        self.linear_2 = nn.Linear(hidden, channels)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.linear_2(torch.relu(self.linear_1(hidden)))


class TextSegModel(nn.Module):
    """Parameters, and the maths on them. Wrappers see `forward`; `answer` and `decode` are for the unwrapped model."""

    def __init__(
        self, vlm: PreTrainedModel, projector: Projector, sam: Sam2VideoModel, seg_id: int, image_id: int
    ) -> None:
        super().__init__()
        self.vlm = vlm
        self.projector = projector
        self.sam = sam
        self.seg_id = seg_id
        self.image_id = image_id

    def forward(self, batch: Batch) -> Output:
        """Text and mask logits for a batch whose rows hold their answers."""
        hidden = self._hidden_states(batch)
        learned = batch.labels[:, 1:] != NOT_LEARNED
        seg = self._seg_prompts(
            hidden, (batch.input_ids == self.seg_id) & (batch.labels != NOT_LEARNED), batch
        )
        return Output(
            text_logits=self.vlm.lm_head(hidden[:, :-1][learned]),
            text_labels=batch.labels[:, 1:][learned],
            masks=self.decode(batch.g_pixel_values, seg),
        )

    def _hidden_states(self, batch: Batch) -> torch.Tensor:
        """float (b, t, hidden) after the last norm, in one pass."""
        return self.vlm.model.language_model(
            inputs_embeds=self.embed(batch),
            attention_mask=batch.attention_mask,
            position_ids=_positions(batch.attention_mask),
            use_cache=False,
        ).last_hidden_state

    def embed(self, batch: Batch) -> torch.Tensor:
        """float (b, t, hidden): token embeddings with the image's features in their places.

        Each image is encoded once, however many questions are asked about it.
        """
        features = self.vlm.get_image_features(pixel_values=batch.pixel_values).pooler_output
        per_image = features.split(batch.tiles_of_image)
        of_rows = torch.cat([per_image[i].flatten(0, 1) for i in batch.image_of_row.tolist()])
        embeddings = self.vlm.get_input_embeddings()(batch.input_ids)
        places = (batch.input_ids == self.image_id).unsqueeze(-1)
        return embeddings.masked_scatter(places, of_rows.to(embeddings.dtype))

    def _seg_prompts(self, hidden: torch.Tensor, at: torch.Tensor, batch: Batch) -> SegPrompts:
        row = at.nonzero()[:, 0]
        return SegPrompts(self.projector(hidden[at]), row, batch.image_of_row[row])

    @torch.no_grad()
    def answer(self, batch: Batch, stop_id: int, max_new_tokens: int = 0) -> Answer:
        """Answers to the questions of a batch.

        With `max_new_tokens` = 0 the rows already hold the template's answer, which is read in one pass; else
        the model writes up to that many tokens greedily, and may well not say [SEG].
        """
        return self._generate(batch, stop_id, max_new_tokens) if max_new_tokens else self._read(batch)

    def _read(self, batch: Batch) -> Answer:
        hidden = self._hidden_states(batch)
        at = (batch.input_ids == self.seg_id) & (batch.labels != NOT_LEARNED)
        # the model would write so itself if each token up to [SEG] is its own first choice
        target = batch.labels[:, 1:]
        is_seg = (target == self.seg_id).long()
        checked = (target != NOT_LEARNED) & (is_seg.cumsum(dim=1) - is_seg == 0)
        agrees = self.vlm.lm_head(hidden[:, :-1][checked]).argmax(dim=-1) == target[checked]
        says_seg = torch.ones(len(at), dtype=torch.bool, device=at.device)
        says_seg[checked.nonzero()[:, 0][~agrees]] = False
        ids = [row[row != NOT_LEARNED].tolist() for row in batch.labels]
        return Answer(ids, self._seg_prompts(hidden, at, batch), says_seg)

    def _generate(self, batch: Batch, stop_id: int, max_new_tokens: int) -> Answer:
        attention = batch.attention_mask
        inputs: dict[str, Any] = {"inputs_embeds": self.embed(batch), "position_ids": _positions(attention)}
        cache = DynamicCache()
        done = torch.zeros(len(attention), dtype=torch.bool, device=attention.device)
        tokens: list[torch.Tensor] = []
        states: list[torch.Tensor] = []
        for _ in range(max_new_tokens):
            hidden = self.vlm.model.language_model(
                **inputs, attention_mask=attention, past_key_values=cache, use_cache=True
            ).last_hidden_state[:, -1]
            if tokens:
                states.append(hidden)  # the state where the last token is the input
            token = self.vlm.lm_head(hidden).argmax(dim=-1).masked_fill(done, stop_id)
            tokens.append(token)
            done = done | (token == stop_id)
            if done.all():
                break
            attention = torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1)
            inputs = {
                "inputs_embeds": self.vlm.get_input_embeddings()(token)[:, None],
                "position_ids": _positions(attention)[:, -1:],
            }
        written = torch.stack(tokens, dim=1)
        # the state of a [SEG] that is the very last token allowed was never computed: the answer was cut there
        hidden = torch.stack(states, dim=1) if states else batch.pixel_values.new_zeros(len(written), 0, 1)
        at = written[:, : hidden.shape[1]] == self.seg_id
        ids = [_until(row, stop_id) for row in written.tolist()]
        return Answer(
            ids, self._seg_prompts(hidden, at, batch) if at.any() else self._no_seg(batch), at.any(dim=1)
        )

    def _no_seg(self, batch: Batch) -> SegPrompts:
        nothing = batch.image_of_row[:0]
        channels = self.projector.linear_2.out_features
        return SegPrompts(self.projector.linear_2.weight.new_zeros(0, channels), nothing, nothing)

    def decode(self, g_pixel_values: Sequence[torch.Tensor], seg: SegPrompts) -> MaskLogits:
        """One low-resolution map for each [SEG], of g = S / 4 cells a side.

        All images are encoded together, and all [SEG] of an image share one encoding and one decoder call.
        No [SEG] at all gives maps of shape (0, g, g) and encodes nothing.
        """
        if not len(seg.row):
            side = self.sam.config.image_size // 4
            empty = seg.embedding.new_zeros(0, 3, side, side)
            return MaskLogits(empty[:, 0], empty[:, 0, 0, 0], empty, empty[:, :, 0, 0])
        used, position = seg.image.unique(return_inverse=True)
        features = self.encode_images(torch.stack([g_pixel_values[i] for i in used.tolist()]))
        slot = _rank_within(position)
        prompts = seg.embedding.new_zeros(len(used), int(slot.max()) + 1, seg.embedding.shape[-1])
        prompts = prompts.index_put((position, slot), seg.embedding)
        candidates, scores = self._decode_masks(features, prompts.to(features[-1].dtype))
        candidates, scores = candidates[position, slot], scores[position, slot]
        best = scores.argmax(dim=-1)
        each = torch.arange(len(best), device=best.device)
        return MaskLogits(candidates[each, best], scores[each, best], candidates, scores)

    def encode_images(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Features of (i, 3, S, S): stride 4 and 8 for the decoder's upscaling, stride 16 with no memory added.

        Not `Sam2VideoModel.get_image_embeddings`: it runs without gradient, and includes the decoder's convolutions.
        """
        flat = list(self.sam.get_image_features(pixels, return_dict=True).fpn_hidden_states)
        flat[-1] = flat[-1] + self.sam.no_memory_embedding
        return [
            feature.permute(1, 2, 0).unflatten(2, tuple(size))
            for feature, size in zip(flat, self.sam.backbone_feature_sizes, strict=True)
        ]

    def _decode_masks(
        self, features: list[torch.Tensor], prompts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Three maps and their predicted IoU for each of `prompts` (i, n, c)."""
        images, objects, _ = prompts.shape
        encoder = self.sam.prompt_encoder
        # SAM 2's two padding points: its own, and the one that stands for "no point was given"
        no_points = encoder.not_a_point_embed.weight.expand(images, objects, 2, -1)
        side = encoder.image_embedding_size
        masks, scores, _, _ = self.sam.mask_decoder(
            image_embeddings=features[-1],
            image_positional_embeddings=self.sam.get_image_wide_positional_embeddings().expand(
                images, -1, -1, -1
            ),
            sparse_prompt_embeddings=torch.cat([no_points, prompts.unsqueeze(2)], dim=2),
            dense_prompt_embeddings=encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(
                images, -1, *side
            ),
            multimask_output=True,
            high_resolution_features=features[:-1],
        )
        return masks, scores


def build(spec: ModelSpec, seg_id: int, image_id: int) -> TextSegModel:
    """The model of a spec with random weights, drawn from torch's global generator, in float32."""
    vlm_settings = dict(spec.vlm)
    vlm = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(vlm_settings.pop("model_type"), **vlm_settings)
    )
    sam = Sam2VideoModel(
        Sam2VideoConfig(**{key: value for key, value in spec.sam.items() if key != "model_type"})
    )
    model = assemble(vlm, sam, seg_id, image_id)
    _rescale(model)
    return model


def _rescale(model: TextSegModel) -> None:
    """Draw random weights again where transformers' N(0, 0.02), made for wide pretrained parts, does not learn.

    Measured on `tiny`: Dice 0.00 after 87 steps with it, 0.22 after 50 with PyTorch's own scales, which SAM's
    authors used.
    """
    decoder, language_model = model.sam.mask_decoder, model.vlm.model.language_model
    for part in (model.vlm.model.vision_tower, model.sam):
        part.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)
    # the phrase must stay visible in the state of [SEG] beside the embedding of that token, which stays small
    language_model.apply(lambda module: module.reset_parameters() if isinstance(module, nn.Linear) else None)
    # Another phrase must change the mask from the start, or training settles on one mask for all phrases and takes
    # long to leave it (one image, two phrases, 80 steps: soft Dice 0.66 and 0.19; with what follows 0.71 and 0.80).
    # The decoder's own tokens must not drown the phrase's, as the first layer averages over all nine of them.
    for part in (model.projector, decoder.output_hypernetworks_mlps):
        part.apply(_keep_variance)
    prompts = model.sam.prompt_encoder
    with torch.no_grad():
        for token in (
            decoder.mask_tokens,
            decoder.iou_token,
            decoder.obj_score_token,
            prompts.not_a_point_embed,
        ):
            token.weight.mul_(0.1)


def _keep_variance(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


def assemble(vlm: PreTrainedModel, sam: Sam2VideoModel, seg_id: int, image_id: int) -> TextSegModel:
    """The model of two opened halves, with a random projector that fits them."""
    projector = Projector(vlm.config.text_config.hidden_size, sam.config.mask_decoder_config.hidden_size)
    return TextSegModel(vlm, projector, sam, seg_id, image_id)


def _positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Place of each token in its own row: padding on the left does not count."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def _rank_within(groups: torch.Tensor) -> torch.Tensor:
    """How many earlier entries have the same value: [5, 5, 7, 5] gives [0, 1, 0, 2]."""
    same = groups[:, None] == groups[None, :]
    return same.tril(diagonal=-1).sum(dim=1)


def _until(ids: list[int], stop_id: int) -> list[int]:
    """The tokens up to the first closing one, which is included."""
    return ids[: ids.index(stop_id) + 1] if stop_id in ids else ids
