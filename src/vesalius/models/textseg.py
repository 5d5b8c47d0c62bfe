"""`TextSegModel`, the text-prompted segmenter: a vision-language model, a [SEG] projector and SAM 2.

After Sa2VA (arXiv 2501.04001): the hidden state of the token [SEG], projected, is a sparse prompt of SAM 2's mask decoder.
The two large components are native transformers models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, Sam2VideoMaskDecoderConfig, Sam2VideoModel

from vesalius.models import sam2
from vesalius.models.batch import IGNORE_INDEX, Batch
from vesalius.models.cpu_parallel import train_on_cores
from vesalius.models.families.table import family_of
from vesalius.models.hiera import use_own_encoder
from vesalius.models.mask_decoder import use_own_decoder
from vesalius.models.sam2 import MaskLogits, SegPrompts
from vesalius.models.specs import ModelSpec
from vesalius.models.vlm import embed_batch, reset_rope, run_language_model, vision_encoder_of

Encode = Callable[[Sam2VideoModel, torch.Tensor], sam2.Features]
"""`sam2.encode_images`, or a function with equal results, such as a cache."""


@dataclass(frozen=True)
class TextSegOutput:
    """Output of the forward pass in training."""

    text_logits: torch.Tensor
    """float (k, vocabulary): logits at the k positions that predict an answer token."""
    text_labels: torch.Tensor
    """int64 (k,): the answer tokens."""
    masks: MaskLogits
    """One mask for each [SEG], in order of the rows; for a clip one per frame, the frames of a [SEG] adjacent."""


class Projector(nn.Module):
    """The [SEG] projector: Linear, ReLU, Linear from a hidden state (.., hidden) to a prompt embedding (.., c)."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(hidden, hidden)
        self.linear_2 = nn.Linear(hidden, channels)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.linear_2(torch.relu(self.linear_1(hidden)))


class TextSegModel(nn.Module):
    """A text-prompted segmenter. DDP and FSDP2 call `forward`; all other methods are for the unwrapped model."""

    def __init__(
        self,
        vlm: PreTrainedModel,
        projector: Projector,
        sam: Sam2VideoModel,
        seg_id: int,
        seg_before_norm: bool = False,
    ) -> None:
        super().__init__()
        self.vlm = vlm
        self.projector = projector
        self.sam = sam
        self.seg_id = seg_id
        self.seg_before_norm = seg_before_norm

    def forward(self, batch: Batch) -> TextSegOutput:
        """Text and mask logits for a batch with answers."""
        reset_rope(self.vlm)
        states = run_language_model(self.vlm, embed_batch(self.vlm, batch), self.seg_before_norm)
        learned = batch.labels[:, 1:] != IGNORE_INDEX
        at = (batch.input_ids == self.seg_id) & (batch.labels != IGNORE_INDEX)
        seg = self.seg_prompts(states.seg[at], at.nonzero()[:, 0], batch)
        seg = _repeat_on_frames(seg, batch.frames_per_batch)
        return TextSegOutput(
            text_logits=self.vlm.lm_head(states.last[:, :-1][learned]),
            text_labels=batch.labels[:, 1:][learned],
            masks=train_on_cores(self.decode, batch.g_pixel_values, seg, self.sam.parameters()),
        )

    def seg_prompts(self, hidden: torch.Tensor, row: torch.Tensor, batch: Batch) -> SegPrompts:
        """SAM 2 prompts from the hidden states (m, hidden) of [SEG] tokens in the batch rows `row` (m,)."""
        return SegPrompts(self.projector(hidden), row, batch.image_of_row[row])

    def decode(
        self, g_pixel_values: Sequence[torch.Tensor], seg: SegPrompts, encode: Encode = sam2.encode_images
    ) -> MaskLogits:
        """One low-resolution mask for each [SEG], of g x g cells with g = S / 4.

        All images are encoded together, and all [SEG] of an image share one encoding and one decoder call.
        Without any [SEG] the masks have shape (0, g, g) and no image is encoded.
        """
        if not len(seg.row):
            side = self.sam.config.image_size // 4
            # empty but in the autograd graph, so that a batch without [SEG] gives the projector a gradient of 0
            empty = seg.embedding.sum() * seg.embedding.new_zeros(0, 3, side, side)
            return MaskLogits(empty[:, 0], empty[:, 0, 0, 0], empty, empty[:, :, 0, 0])
        used, position = seg.image.unique(return_inverse=True)
        features = encode(self.sam, torch.stack([g_pixel_values[i] for i in used.tolist()]))
        slot = _rank_within(position)
        prompts = seg.embedding.new_zeros(len(used), int(slot.max()) + 1, seg.embedding.shape[-1])
        prompts = prompts.index_put((position, slot), seg.embedding)
        decoded = sam2.decode(self.sam, features, prompts)
        candidates, scores = decoded.candidates[position, slot], decoded.scores[position, slot]
        return MaskLogits(sam2.take_best(candidates, scores), scores.amax(dim=-1), candidates, scores)


def configs(spec: ModelSpec) -> tuple[PreTrainedConfig, PreTrainedConfig]:
    """The transformers configurations of the vision-language model and of SAM 2."""
    # transformers before 5.20 reads a dictionary of the mask decoder as a configuration of the prompt encoder
    mask_decoder = Sam2VideoMaskDecoderConfig(**spec.sam["mask_decoder_config"])
    vlm, sam = (
        AutoConfig.for_model(each["model_type"], **{key: each[key] for key in each if key != "model_type"})
        for each in (spec.vlm, {**spec.sam, "mask_decoder_config": mask_decoder})
    )
    return vlm, sam


def build(spec: ModelSpec, seg_id: int) -> TextSegModel:
    """The model of a spec with random weights from torch's global generator, in float32."""
    vlm_config, sam_config = configs(spec)
    vlm = family_of(spec.family).model_class(vlm_config)
    model = assemble(vlm, Sam2VideoModel(sam_config), spec, seg_id)
    _rescale(model)
    return model


def _rescale(model: TextSegModel) -> None:
    """Reinitialize weights for which transformers' N(0, 0.02), meant for wide pretrained models, prevents learning.

    Measured on `tiny`: Dice 0.00 after 87 steps with it, 0.22 after 50 steps with PyTorch's own initialization, which SAM's
    authors used.
    """
    decoder, language_model = model.sam.mask_decoder, model.vlm.model.language_model
    for part in (vision_encoder_of(model.vlm), model.sam):
        part.apply(_reset)
    # embeddings keep their small scale, so that the phrase dominates the hidden state of [SEG]
    language_model.apply(lambda module: module.reset_parameters() if isinstance(module, nn.Linear) else None)
    # The mask must depend on the phrase from the start; otherwise training gives one mask for all phrases for many steps
    # (one image, two phrases, 80 steps: soft Dice 0.66 and 0.19; with the following changes 0.71 and 0.80).
    # The decoder's own tokens must be small, since its first layer averages them with the phrase's token.
    for part in (model.projector, decoder.output_hypernetworks_mlps):
        part.apply(_keep_variance)
    prompts = model.sam.prompt_encoder
    with torch.no_grad():
        for token in (decoder.mask_tokens, decoder.iou_token, decoder.obj_score_token, prompts.not_a_point_embed):
            token.weight.mul_(0.1)


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()


def _keep_variance(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


def assemble(vlm: PreTrainedModel, sam: Sam2VideoModel, spec: ModelSpec, seg_id: int) -> TextSegModel:
    """The model of two opened components, joined by a randomly initialized [SEG] projector."""
    use_own_encoder(sam)
    use_own_decoder(sam)
    projector = Projector(vlm.config.text_config.hidden_size, sam.config.mask_decoder_config.hidden_size)
    return TextSegModel(vlm, projector, sam, seg_id, spec.seg_before_norm)


def _repeat_on_frames(seg: SegPrompts, frames: Sequence[int]) -> SegPrompts:
    """The [SEG] prompts repeated for all frames of their clips; `frames` is the frame count of each image or clip.

    `image` becomes the frame index. As in the official training, each frame gets the same prompt, without memory.
    """
    counts = torch.tensor(frames, device=seg.image.device)
    which = torch.repeat_interleave(counts[seg.image])
    first = (counts.cumsum(0) - counts)[seg.image[which]]
    return SegPrompts(seg.embedding[which], seg.row[which], first + _rank_within(which))


def _rank_within(groups: torch.Tensor) -> torch.Tensor:
    """For each entry the number of earlier entries with the same value: [5, 5, 7, 5] gives [0, 1, 0, 2]."""
    same = groups[:, None] == groups[None, :]
    return same.tril(diagonal=-1).sum(dim=1)
