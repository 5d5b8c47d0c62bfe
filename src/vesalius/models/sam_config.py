"""Configurations of SAM 2, from its sizes or from the shapes of official tensors; no official file contains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vesalius.errors import CheckpointError
from vesalius.models.specs import TensorShape

TRUNK = "grounding_encoder.sam2_model.image_encoder.trunk."
MEMORY = "grounding_encoder.sam2_model.memory_"
DECODER = "grounding_encoder.sam2_model.sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight"

# https://github.com/facebookresearch/sam2/tree/main/sam2/configs/sam2, and, last, the encoder of small test models
TRUNKS: dict[tuple[int, ...], dict[str, Any]] = {
    (2, 6, 36, 4): {"heads": 2, "windows": [8, 4, 16, 8], "global_blocks": [23, 33, 43]},
    (2, 3, 16, 3): {"heads": 2, "windows": [8, 4, 14, 7], "global_blocks": [12, 16, 20]},
    (1, 2, 11, 2): {"heads": 1, "windows": [8, 4, 14, 7], "global_blocks": [7, 10, 13]},
    (1, 2, 7, 2): {"heads": 1, "windows": [8, 4, 14, 7], "global_blocks": [5, 7, 9]},
    (1, 2, 2, 1): {"heads": 1, "windows": [8, 4, 16, 8], "global_blocks": [4]},
}
"""Blocks per stage of Hiera -> settings that tensor shapes do not determine."""


def sam2(
    image_size: int,
    *,
    hidden: int,
    heads: int,
    blocks: Sequence[int],
    windows: Sequence[int],
    global_blocks: Sequence[int],
    width: int,
    memory: tuple[int, int, int],
    decoder: tuple[int, int],
    background: Sequence[int] = (7, 7),
) -> dict[str, Any]:
    """The configuration of a SAM 2.0 with memory.

    `hidden` and `heads` are those of Hiera's first stage and double at each later stage; `width` is the channel count of
    all other modules; `memory` is (attention layers, MLP width, fuser layers); `decoder` is (MLP width, heads).
    """
    grid = image_size // 16
    return {
        "model_type": "sam2_video",
        "image_size": image_size,
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": _hiera(image_size, hidden, heads, blocks, windows, global_blocks, background),
            "backbone_channel_list": [hidden << stage for stage in reversed(range(4))],
            "backbone_feature_sizes": [[4 * grid, 4 * grid], [2 * grid, 2 * grid], [grid, grid]],
            "fpn_hidden_size": width,
        },
        "prompt_encoder_config": {"hidden_size": width, "image_size": image_size, "patch_size": 16},
        "mask_decoder_config": {
            "hidden_size": width,
            "iou_head_hidden_dim": width,
            # True would replace the single mask in eval mode; Sa2VA always requests three masks
            "dynamic_multimask_via_stability": False,
            "mlp_dim": decoder[0],
            "num_attention_heads": decoder[1],
        },
        "memory_attention_hidden_size": width,
        "memory_attention_num_layers": memory[0],
        "memory_attention_feed_forward_hidden_size": memory[1],
        "memory_attention_rope_feat_sizes": [grid, grid],
        "memory_encoder_hidden_size": width,
        # transformers' memory attention expects 64 channels at any width
        "memory_encoder_output_channels": 64,
        "mask_downsampler_embed_dim": width,
        "memory_fuser_embed_dim": width,
        "memory_fuser_intermediate_dim": 4 * width,
        "memory_fuser_num_layers": memory[2],
        # two features of SAM 2.1; all Sa2VA models use SAM 2.0
        "enable_temporal_pos_encoding_for_object_pointers": False,
        "enable_occlusion_spatial_embedding": False,
    }


def _hiera(
    image_size: int,
    hidden: int,
    heads: int,
    blocks: Sequence[int],
    windows: Sequence[int],
    global_blocks: Sequence[int],
    background: Sequence[int],
) -> dict[str, Any]:
    return {
        "model_type": "sam2_hiera_det_model",
        "image_size": [image_size, image_size],
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "blocks_per_stage": list(blocks),
        "embed_dim_per_stage": [hidden << stage for stage in range(4)],
        "num_attention_heads_per_stage": [heads << stage for stage in range(4)],
        "window_size_per_stage": list(windows),
        "global_attention_blocks": list(global_blocks),
        "window_positional_embedding_background_size": list(background),
    }


def sam2_large() -> dict[str, Any]:
    """SAM 2.0 with Hiera-L, the segmenter of all published models."""
    trunk = TRUNKS[2, 6, 36, 4]
    return sam2(1024, hidden=144, blocks=(2, 6, 36, 4), **trunk, width=256, memory=(4, 2048, 2), decoder=(2048, 8))


def read_sam(shapes: Mapping[str, TensorShape], folder: Path) -> dict[str, Any]:
    """SAM 2's configuration from tensor shapes by official name; CheckpointError if tensors are missing or unknown."""
    try:
        hidden = shapes[f"{TRUNK}patch_embed.proj.weight"][0]
        width = shapes["grounding_encoder.sam2_model.image_encoder.neck.convs.0.conv.weight"][0]
        memory_mlp = shapes[f"{MEMORY}attention.layers.0.linear1.weight"][0]
        decoder_mlp = shapes[DECODER][0]
    except KeyError as error:
        raise CheckpointError.at(
            folder, f"the tensor {error} of SAM 2 is missing; copy the model again", code="weights_mismatch"
        ) from error
    blocks = _count(shapes, f"{TRUNK}blocks.")
    starts = [i for i in range(blocks) if f"{TRUNK}blocks.{i}.proj.weight" in shapes]
    stages = tuple(end - start for start, end in zip([0, *starts], [*starts, blocks], strict=True))
    if stages not in TRUNKS:
        raise CheckpointError.at(
            folder, f"a SAM 2 encoder with {stages} blocks per stage is not supported", code="invalid_model_config"
        )
    return sam2(
        1024,
        hidden=hidden,
        blocks=stages,
        **TRUNKS[stages],
        width=width,
        memory=(
            _count(shapes, f"{MEMORY}attention.layers."),
            memory_mlp,
            _count(shapes, f"{MEMORY}encoder.fuser.layers."),
        ),
        decoder=(decoder_mlp, 8),
        background=shapes[f"{TRUNK}pos_embed"][-2:],
    )


def _count(shapes: Mapping[str, TensorShape], prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)})
