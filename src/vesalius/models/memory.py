"""SAM 2's video memory: objects prompted in some frames of a video are propagated to the other frames.

`VideoSession` reproduces the official Sa2VA code, `Tracker` SAM 2 itself. Both originals track each object separately, and
Sa2VA's encodes each frame several times; here all objects share one encoding of each frame and one call of each module,
with bounded memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import interpolate, pad
from transformers import Sam2VideoModel

from vesalius.errors import CheckpointError, SettingError
from vesalius.models.sam2 import Features, decode, decode_with_memory, encode_images, object_pointers, take_best

PROMPTED_FRAMES = 5
"""Number of leading frames that the language model sees and that are prompted with its [SEG]."""

SAM_2_0 = {
    "enable_temporal_pos_encoding_for_object_pointers": False,
    "enable_occlusion_spatial_embedding": False,
    "max_cond_frame_num": -1,
}
"""Required configuration values; SAM 2.1 has other values and a different memory."""

PROMPTED_AGE = -1
"""Age of prompted frames, an index: they get the last temporal encoding, the previous frame gets the first."""

NO_OBJECT = -1024.0
"""SAM 2's mask logit for an object that is absent from the frame."""


@dataclass(frozen=True)
class FrameMasks:
    """The masks of n objects on one frame of a video."""

    logits: torch.Tensor
    """float (n, g, g) with g = S / 4: the best of three candidates."""
    scores: torch.Tensor
    """float (n, 3): predicted IoU of all three candidates."""
    object_scores: torch.Tensor
    """float (n,): logit of the presence of the object in the frame."""
    pointers: torch.Tensor
    """float (n, c): object pointers for later frames."""


class VideoSession:
    """The memory of one video; frames are given in order.

    Its size does not grow with the video: it keeps the memories of the prompted frames and of the last six other frames,
    and the object pointers of the prompted frames and of the last fifteen other frames.
    """

    def __init__(
        self,
        sam: Sam2VideoModel,
        embeddings: torch.Tensor,
        prompted_frames: int = PROMPTED_FRAMES,
        memory_dtype: torch.dtype | None = None,
    ) -> None:
        """`embeddings` (n, c): the [SEG] embeddings of the objects. `memory_dtype`: by default the model's dtype."""
        _check_tracking(sam, embeddings)
        if prompted_frames < 1:
            raise SettingError(
                f"at least one frame of a video must be prompted; got {prompted_frames}",
                code="bad_value",
                field="prompted_frames",
            )
        self._sam = sam
        self._embeddings = embeddings
        self._prompted_frames = prompted_frames
        self._memory_dtype = memory_dtype or sam.dtype
        self._prompted: list[torch.Tensor] = []
        """Memories (n, cells, m) of the prompted frames."""
        self._recent: deque[torch.Tensor] = deque(maxlen=sam.config.num_maskmem - 1)
        """Memories of the most recent other frames, oldest first."""
        self._prompted_pointers: list[torch.Tensor] = []
        self._recent_pointers: deque[torch.Tensor] = deque(maxlen=sam.config.max_object_pointers_in_encoder - 1)

    @torch.no_grad()
    def segment(self, pixels: torch.Tensor) -> FrameMasks:
        """Masks of the next frame, for `pixels` float (1, 3, S, S)."""
        features = _encode_frame(self._sam, pixels)
        prompted = len(self._prompted) < self._prompted_frames
        if prompted:
            decoded = decode(self._sam, features, self._embeddings.unsqueeze(0))
        else:
            decoded = decode_with_memory(self._sam, features, self._look_back(features))
        # decoded tensors are (1, n, ..) or (n, 1, ..)
        masks = FrameMasks(
            logits=take_best(decoded.candidates, decoded.scores).flatten(0, 1),
            scores=decoded.scores.flatten(0, 1),
            object_scores=decoded.object_scores.flatten(),
            pointers=object_pointers(self._sam, decoded).flatten(0, 1),
        )
        self._remember(features, masks, prompted)
        return masks

    def _remember(self, features: Features, masks: FrameMasks, prompted: bool) -> None:
        # soft masks on prompted frames too, as in the official Sa2VA code; SAM 2 itself binarizes them
        memory = _encode_memory(self._sam, features, _resize_logits(self._sam, masks.logits).sigmoid())
        (self._prompted if prompted else self._recent).append(memory.to(self._memory_dtype))
        (self._prompted_pointers if prompted else self._recent_pointers).append(masks.pointers)

    def _look_back(self, features: Features) -> torch.Tensor:
        """float (n, c, S / 16, S / 16): the frame's features after memory attention for each object."""
        ages = [PROMPTED_AGE] * len(self._prompted) + [*reversed(range(len(self._recent)))]
        return attend(
            self._sam,
            features,
            ages,
            [*self._prompted, *self._recent],
            [*self._prompted_pointers, *self._recent_pointers],
        )


class Tracker:
    """SAM 2's own memory of one video: key frames are prompted with masks, and the objects propagate to other frames.

    Frames are identified by their index in the video. Key frames may be given in any order, even ahead of the propagated
    frame. Propagation runs in one direction; `reverse` restarts it from the key frames in the other direction. The tracker
    keeps the memories of the last six propagated frames and the pointers of the last fifteen, and both for all key frames
    until `forget`.

    As in SAM 2 and unlike in `VideoSession`, prompts are binary masks, an object with a score of at most 0 has an empty
    mask, and memories are bfloat16.
    """

    def __init__(self, sam: Sam2VideoModel, embeddings: torch.Tensor, logit_threshold: float = 0.0) -> None:
        """`embeddings` (n, c): the [SEG] embeddings of the objects. `logit_threshold` binarizes the prompted masks."""
        _check_tracking(sam, embeddings)
        self._sam = sam
        self._embeddings = embeddings
        self._logit_threshold = logit_threshold
        self._step = 1
        self._keys: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """Index of a key frame -> its memory (n, cells, m) and pointers (n, c)."""
        self._memories: dict[int, torch.Tensor] = {}
        self._pointers: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def prompt(self, frame: int, pixels: torch.Tensor) -> FrameMasks:
        """Decode masks from the [SEG] embeddings on this frame alone, as in training, and make it a key frame."""
        sam, features = self._sam, _encode_frame(self._sam, pixels)
        decoded = decode(sam, features, self._embeddings.unsqueeze(0))
        logits = take_best(decoded.candidates, decoded.scores)[0]
        masks = (_resize_logits(sam, logits) > self._logit_threshold).float()
        pointers = _pointers_of(sam, features, masks)
        self._keys[frame] = (_encode_memory(sam, features, masks).to(torch.bfloat16), pointers)
        return FrameMasks(logits, decoded.scores[0], decoded.object_scores[0], pointers)

    @torch.no_grad()
    def propagate(self, frame: int, pixels: torch.Tensor) -> FrameMasks:
        """Masks of the next frame in the current direction, from the memory; not for key frames.

        Frames may be skipped. ValueError without a key frame.
        """
        if not self._keys:
            raise ValueError("there is no key frame to propagate from")
        sam, features = self._sam, _encode_frame(self._sam, pixels)
        self._memories = _within(self._memories, frame, sam.config.num_maskmem - 1)
        self._pointers = _within(self._pointers, frame, sam.config.max_object_pointers_in_encoder - 1)
        decoded = decode_with_memory(sam, features, self._look_back(frame, features))
        present = decoded.object_scores > 0
        logits = take_best(decoded.candidates, decoded.scores)
        logits = torch.where(present[..., None, None], logits, NO_OBJECT)[:, 0]
        pointers = object_pointers(sam, decoded)[:, 0]
        memory = _encode_memory(sam, features, _resize_logits(sam, logits).sigmoid())
        self._memories[frame], self._pointers[frame] = memory.to(torch.bfloat16), pointers
        return FrameMasks(logits, decoded.scores[:, 0], decoded.object_scores[:, 0], pointers)

    def forget(self, frame: int) -> None:
        """Drop a key frame."""
        del self._keys[frame]

    def reverse(self) -> None:
        """Reverse the direction of propagation and drop the memories of all propagated frames."""
        self._step = -self._step
        self._memories, self._pointers = {}, {}

    def _look_back(self, frame: int, features: Features) -> torch.Tensor:
        """float (n, c, S / 16, S / 16): the frame's features after attention to all key frames and recent frames.

        As in SAM 2, key frames ahead contribute their memories but not their pointers.
        """
        passed = [pointers for key, (_, pointers) in self._keys.items() if (frame - key) * self._step >= 0]
        return attend(
            self._sam,
            features,
            [PROMPTED_AGE] * len(self._keys) + [abs(frame - other) - 1 for other in self._memories],
            [*(memory for memory, _ in self._keys.values()), *self._memories.values()],
            [*passed, *self._pointers.values()],
        )


def attend(
    sam: Sam2VideoModel,
    features: Features,
    ages: Sequence[int],
    memories: Sequence[torch.Tensor],
    pointers: Sequence[torch.Tensor],
) -> torch.Tensor:
    """float (n, c, S / 16, S / 16): the features of one image after memory attention for each of n objects.

    `memories` are (n, cells, m), one for each of `ages` (0: previous frame; `PROMPTED_AGE`: prompted frame); `pointers`
    are (n, c).
    """
    coarse = features.stride_16
    times = sam.memory_temporal_positional_encoding[[*ages]].flatten(1, 2)
    positions = (times + _positions(sam.memory_encoder.position_encoding, coarse)).flatten(0, 1)
    remembered = torch.cat([memory.to(coarse.dtype) for memory in memories], dim=1)
    # a pointer is wider than a memory, so it is split into several tokens without position
    pointing = remembered[:, :0]
    if pointers:
        pointing = torch.stack([*pointers], dim=1).reshape(len(remembered), -1, positions.shape[-1])
    own_positions = _positions(sam.vision_encoder.neck.position_encoding, coarse)
    # transformers' memory attention expects (tokens, objects, channels)
    attended = sam.memory_attention(
        current_vision_features=coarse.flatten(2).permute(2, 0, 1).expand(-1, len(remembered), -1),
        current_vision_position_embeddings=own_positions[:, None],
        memory=torch.cat([remembered, pointing], dim=1).transpose(0, 1),
        memory_posision_embeddings=pad(positions, (0, 0, 0, pointing.shape[1]))[:, None],
        num_object_pointer_tokens=pointing.shape[1],
    )
    return attended[0].transpose(1, 2).unflatten(2, coarse.shape[2:])


def _within(kept: dict[int, torch.Tensor], frame: int, most: int) -> dict[int, torch.Tensor]:
    return {other: each for other, each in kept.items() if abs(frame - other) <= most}


def _encode_frame(sam: Sam2VideoModel, pixels: torch.Tensor) -> Features:
    side = sam.config.image_size
    if pixels.shape != (1, 3, side, side):
        raise ValueError(f"a frame must be (1, 3, {side}, {side}); got {tuple(pixels.shape)}")
    return encode_images(sam, pixels)


def _resize_logits(sam: Sam2VideoModel, logits: torch.Tensor) -> torch.Tensor:
    """Logits (n, g, g) resized to the encoder's input, float32 (n, S, S)."""
    square = (sam.config.image_size, sam.config.image_size)
    return interpolate(logits.float().unsqueeze(1), square, mode="bilinear", align_corners=False)[:, 0]


def _encode_memory(sam: Sam2VideoModel, features: Features, masks: torch.Tensor) -> torch.Tensor:
    """float (n, cells, m): memories of a frame from its features and masks (n, S, S) in [0, 1]."""
    masks = masks * sam.config.sigmoid_scale_for_mem_enc + sam.config.sigmoid_bias_for_mem_enc
    memory, _ = sam.memory_encoder(features.stride_16, masks.unsqueeze(1).to(features.stride_16.dtype))
    return memory.flatten(2).transpose(1, 2)


def _pointers_of(sam: Sam2VideoModel, features: Features, masks: torch.Tensor) -> torch.Tensor:
    """float (n, c): object pointers for prompted masks (n, S, S) of 0 and 1.

    The pointer is the output token of the decoder's single mask for this mask prompt, as in SAM 2's training
    (`_use_mask_as_output` of facebookresearch/sam2); transformers uses the best of three masks instead.
    """
    objects, coarse = len(masks), features.stride_16
    prompts = masks.unsqueeze(1).to(coarse.dtype)
    _, _, tokens, scores = sam.mask_decoder(
        image_embeddings=coarse.expand(objects, -1, -1, -1),
        image_positional_embeddings=sam.get_image_wide_positional_embeddings().expand(objects, -1, -1, -1),
        sparse_prompt_embeddings=sam.prompt_encoder.not_a_point_embed.weight.expand(objects, 1, 2, -1),
        dense_prompt_embeddings=sam.prompt_encoder.mask_embed(sam.mask_downsample(prompts)),
        multimask_output=False,
        high_resolution_features=[
            level.expand(objects, -1, -1, -1) for level in (features.stride_4, features.stride_8)
        ],
    )
    present = (scores.reshape(objects, 1) > 0) & masks.flatten(1).any(dim=1, keepdim=True)
    return torch.where(present, sam.object_pointer_proj(tokens[:, 0, 0]), sam.no_object_pointer)


def _positions(encoding: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Sine encoding (h * w, channels) of the cells of `features` (1, c, h, w)."""
    # in float32, since half precision is too coarse for the angles
    positions = encoding(features.shape, features.device, torch.float32)
    return positions[0].flatten(1).T.to(features.dtype)


def _check_tracking(sam: Sam2VideoModel, embeddings: torch.Tensor) -> None:
    if not len(embeddings):
        raise SettingError("there is no object to track: the answer has no [SEG]", code="no_prompt")
    for name, value in SAM_2_0.items():
        if (found := getattr(sam.config, name)) != value:
            raise CheckpointError(
                f"sam/config.json: only SAM 2.0's memory ({name} = {value}) is supported; got {found}",
                code="invalid_model_config",
                field=name,
            )
    width, wanted = sam.mem_dim, sam.memory_attention.layers[0].cross_attn_image.k_proj.in_features
    if width != wanted:
        raise CheckpointError(
            f"this segmenter cannot track objects through a video: its memories have {width} channels, "
            f"but its memory attention expects {wanted}",
            code="invalid_model_config",
        )
