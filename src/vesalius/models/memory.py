"""SAM 2's memory: objects that language pointed out in the first frames of a video, followed through the rest.

The behaviour is that of the official Sa2VA code, which follows each [SEG] on its own and encodes each frame several
times; here all objects share one encoding of each frame and one call of each part.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import interpolate, pad
from transformers import Sam2VideoModel

from vesalius.errors import CheckpointError, SettingError
from vesalius.models.segmenter import (
    Features,
    decode,
    decode_remembered,
    encode_images,
    make_pointers,
    take_best,
)

PROMPTED_FRAMES = 5
"""First frames of a video, which the language model sees and in which its [SEG] are decoded."""

SAM_2_0 = {
    "enable_temporal_pos_encoding_for_object_pointers": False,
    "enable_occlusion_spatial_embedding": False,
    "max_cond_frame_num": -1,
}
"""What a configuration must say: the other values are those of SAM 2.1, whose memory works otherwise."""


@dataclass(frozen=True)
class FrameMasks:
    """One frame of a video: a mask for each of its n objects."""

    logits: torch.Tensor
    """float (n, g, g): the best of three, on the S / 4 cells a side of the square that the encoder sees."""
    scores: torch.Tensor
    """float (n, 3): predicted IoU of all three."""
    object_scores: torch.Tensor
    """float (n,): logit of whether the object is in the frame at all; the mask is as it is all the same."""
    pointers: torch.Tensor
    """float (n, c): what later frames are told of each object, besides its mask."""


class VideoSession:
    """The memory of one video: give it the frames in order.

    Holds no more for a long video than for a short one: the memories of the prompted frames and of the last six
    others, and the object pointers of the prompted frames and of the last fifteen others.
    """

    def __init__(
        self,
        sam: Sam2VideoModel,
        embeddings: torch.Tensor,
        prompted_frames: int = PROMPTED_FRAMES,
        memory_dtype: torch.dtype | None = None,
    ) -> None:
        """`embeddings` (n, c): one [SEG] for each object. Memories are kept in `memory_dtype`, else in the model's."""
        _check_remembers(sam)
        if not len(embeddings):
            raise SettingError("there is nothing to follow through the video: no [SEG]")
        if prompted_frames < 1:
            raise SettingError(f"at least one frame of a video must be prompted; got {prompted_frames}")
        self._sam = sam
        self._embeddings = embeddings
        self._prompted_frames = prompted_frames
        self._memory_dtype = memory_dtype or sam.dtype
        self._prompted: list[torch.Tensor] = []
        """Memories (n, cells, m) of the prompted frames."""
        self._recent: deque[torch.Tensor] = deque(maxlen=sam.config.num_maskmem - 1)
        """The same of the last other frames, oldest first."""
        self._prompted_pointers: list[torch.Tensor] = []
        self._recent_pointers: deque[torch.Tensor] = deque(
            maxlen=sam.config.max_object_pointers_in_encoder - 1
        )

    @torch.no_grad()
    def segment(self, pixels: torch.Tensor) -> FrameMasks:
        """Masks of the next frame, float (1, 3, S, S) as the segmenter takes images."""
        side = self._sam.config.image_size
        if pixels.shape != (1, 3, side, side):
            raise ValueError(f"a frame must be (1, 3, {side}, {side}); got {tuple(pixels.shape)}")
        features = encode_images(self._sam, pixels)
        prompted = len(self._prompted) < self._prompted_frames
        if prompted:
            decoded = decode(self._sam, features, self._embeddings.unsqueeze(0))
        else:
            decoded = decode_remembered(self._sam, features, self._look_back(features))
        # of (1, n, ..) and (n, 1, ..) alike
        masks = FrameMasks(
            logits=take_best(decoded.candidates, decoded.scores).flatten(0, 1),
            scores=decoded.scores.flatten(0, 1),
            object_scores=decoded.object_scores.flatten(),
            pointers=make_pointers(self._sam, decoded).flatten(0, 1),
        )
        self._remember(features, masks, prompted)
        return masks

    def _remember(self, features: Features, masks: FrameMasks, prompted: bool) -> None:
        memory = encode_memory(self._sam, features, masks.logits).flatten(2).transpose(1, 2)
        (self._prompted if prompted else self._recent).append(memory.to(self._memory_dtype))
        (self._prompted_pointers if prompted else self._recent_pointers).append(masks.pointers)

    def _look_back(self, features: Features) -> torch.Tensor:
        """float (n, c, S / 16, S / 16): for each object, the frame's features after attention to its memories."""
        sam, coarse = self._sam, features.stride_16
        # prompted frames have the last temporal encoding, however old they are; frame t - 1 has the first
        ages = [-1] * len(self._prompted) + [*reversed(range(len(self._recent)))]
        times = sam.memory_temporal_positional_encoding[ages].flatten(1, 2)
        places = (times + _places(sam.memory_encoder.position_encoding, coarse)).flatten(0, 1)
        # a pointer is wider than a memory: it becomes several tokens, which have no place
        pointers = torch.stack([*self._prompted_pointers, *self._recent_pointers], dim=1)
        pointers = pointers.reshape(len(pointers), -1, places.shape[-1])
        memories = [memory.to(coarse.dtype) for memory in (*self._prompted, *self._recent)]
        own_places = _places(sam.vision_encoder.neck.position_encoding, coarse)
        # the native module wants (tokens, objects, channels)
        attended = sam.memory_attention(
            current_vision_features=coarse.flatten(2).permute(2, 0, 1).expand(-1, len(pointers), -1),
            current_vision_position_embeddings=own_places[:, None],
            memory=torch.cat([*memories, pointers], dim=1).transpose(0, 1),
            memory_posision_embeddings=pad(places, (0, 0, 0, pointers.shape[1]))[:, None],
            num_object_pointer_tokens=pointers.shape[1],
        )
        return attended[0].transpose(1, 2).unflatten(2, coarse.shape[2:])


def encode_memory(sam: Sam2VideoModel, features: Features, logits: torch.Tensor) -> torch.Tensor:
    """float (n, m, S / 16, S / 16): what to remember of a frame with the features of one image and masks (n, g, g)."""
    square = (sam.config.image_size, sam.config.image_size)
    masks = interpolate(logits.float().unsqueeze(1), square, mode="bilinear", align_corners=False)
    # soft masks, on the prompted frames too: SAM 2 makes them hard there, the official code of Sa2VA does not
    masks = masks.sigmoid() * sam.config.sigmoid_scale_for_mem_enc + sam.config.sigmoid_bias_for_mem_enc
    memory, _ = sam.memory_encoder(features.stride_16, masks.to(features.stride_16.dtype))
    return memory


def _places(encoding: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Sine encoding (h * w, channels) of the cells of `features` (1, c, h, w)."""
    # computed in float32: half precision has too few digits for the angles
    places = encoding(features.shape, features.device, torch.float32)
    return places[0].flatten(1).T.to(features.dtype)


def _check_remembers(sam: Sam2VideoModel) -> None:
    for name, value in SAM_2_0.items():
        if (found := getattr(sam.config, name)) != value:
            raise CheckpointError(
                f"sam/config.json: {name} is {found}; the memory here is SAM 2.0's, with {value}"
            )
    width, wanted = sam.mem_dim, sam.memory_attention.layers[0].cross_attn_image.k_proj.in_features
    if width != wanted:
        raise CheckpointError(
            f"this segmenter cannot follow objects through a video: its memories have {width} channels, "
            f"and its memory attention reads {wanted}"
        )
