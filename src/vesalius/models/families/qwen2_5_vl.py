"""Qwen2.5-VL: images of any aspect ratio as patches of 14 x 14 pixels, with positions in time, height and width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import PreTrainedModel, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from vesalius.errors import SettingError
from vesalius.masks import Size
from vesalius.models.batch import Batch
from vesalius.models.families.base import Family, ImageFeatures, KnownModel, count_positions, pick, read_rope
from vesalius.models.keymaps import QWEN2_5_VL, KeyRule
from vesalius.models.pixels import Pixels, resize_bicubic
from vesalius.models.specs import ModelSpec

# limits in pixels; as in the official code, multiples of 28 x 28 for every patch size
FIRST_RESIZE = {"factor": 28, "min_pixels": 4 * 28 * 28, "max_pixels": 16384 * 28 * 28}
SECOND_RESIZE = {"min_pixels": 512 * 28 * 28, "max_pixels": 2048 * 28 * 28}

TEXT_FIELDS = (
    "attention_bias head_dim hidden_act hidden_size intermediate_size max_position_embeddings num_attention_heads "
    "num_hidden_layers num_key_value_heads rms_norm_eps vocab_size"
)
VISION_FIELDS = (
    "depth deepstack_visual_indexes fullatt_block_indexes hidden_act hidden_size intermediate_size num_heads "
    "num_position_embeddings out_hidden_size patch_size spatial_merge_size temporal_patch_size tokens_per_second "
    "window_size"
)
TOKEN_IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}


def _config(hidden: int, layers: int, heads: int, kv_heads: int, mlp: int) -> dict[str, Any]:
    return {
        "template": "qwen_chat",
        **TOKEN_IDS,
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": mlp,
            "vocab_size": 151670,
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]},
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "out_hidden_size": hidden,
            "intermediate_size": 3420,
            "num_heads": 16,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
    }


class Qwen2_5VL(Family):
    """Qwen2.5-VL: each 2 x 2 patches of an image become one token."""

    name = "qwen2_5_vl"
    model_class: ClassVar[Any] = Qwen2_5_VLForConditionalGeneration
    image_marks = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
    vision_modules = ("model.visual",)
    vision_layers = "model.visual.blocks."
    saved_prefixes: ClassVar[tuple[tuple[str, str], ...]] = (
        ("model.visual.", "visual."),
        ("model.language_model.", "model."),
    )
    system_prompt = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    presets: ClassVar[Mapping[str, KnownModel]] = {
        "Sa2VA-Qwen2_5-VL-3B": KnownModel(_config(2048, 36, 16, 2, 11008)),
        "Sa2VA-Qwen2_5-VL-7B": KnownModel(_config(3584, 28, 28, 4, 18944)),
    }
    table: ClassVar[Sequence[KeyRule]] = QWEN2_5_VL
    image_mean: ClassVar[tuple[float, ...]] = (0.48145466, 0.4578275, 0.40821073)
    image_std: ClassVar[tuple[float, ...]] = (0.26862954, 0.26130258, 0.27577711)

    def recognizes(self, config: Mapping[str, Any]) -> bool:
        return config.get("text_config", {}).get("model_type") == f"{self.name}_text"

    def read_config(self, config: Mapping[str, Any], source: str) -> dict[str, Any]:
        text = {"model_type": f"{self.name}_text", "rope_parameters": read_rope(config["text_config"])}
        return {
            "model_type": self.name,
            "vision_config": {"model_type": f"{self.name}_vision", **pick(config["vision_config"], VISION_FIELDS)},
            "text_config": pick(config["text_config"], TEXT_FIELDS) | text,
            **{name: config[name] for name in TOKEN_IDS},
            # the class default True would silently replace the head by the embeddings
            "tie_word_embeddings": False,
        }

    def rules(self, spec: ModelSpec) -> Sequence[KeyRule]:
        return self.table

    def read_image(self, image: Image.Image, spec: ModelSpec) -> Pixels:
        """float32 (patches, values per patch), and the grid int64 (1, 3)."""
        return self.read_frames([image], spec)

    def read_frames(self, frames: Sequence[Image.Image], spec: ModelSpec) -> Pixels:
        """float32 (patches, values per patch) of all frames, each processed as an image; grids int64 (frames, 3)."""
        vision = spec.vlm["vision_config"]
        merge = vision.get("spatial_merge_size", 2)
        reader = Qwen2VLImageProcessorPil(
            do_resize=False,
            patch_size=vision["patch_size"],
            merge_size=merge,
            temporal_patch_size=vision.get("temporal_patch_size", 2),
            image_mean=list(self.image_mean),
            image_std=list(self.image_std),
        )
        images = [_resize(frame, vision["patch_size"] * merge) for frame in frames]
        read = reader(images=images, return_tensors="pt")
        grid = read["image_grid_thw"]
        return Pixels(read["pixel_values"], grid, tuple((grid.prod(dim=1) // merge**2).tolist()))

    def largest_image(self, spec: ModelSpec) -> Size:
        side = int((SECOND_RESIZE["max_pixels"] // 2) ** 0.5)
        return side, 2 * side

    def image_features(self, vlm: PreTrainedModel, batch: Batch) -> ImageFeatures:
        read = vlm.model.get_image_features(batch.pixel_values, image_grid_thw=batch.image_grid_thw)
        deep = getattr(read, "deepstack_features", None) or []
        return ImageFeatures(_by_image(read.pooler_output, batch), [_by_image(layer, batch) for layer in deep])

    def positions(self, vlm: PreTrainedModel, batch: Batch, is_image: torch.Tensor) -> torch.Tensor:
        """Position ids int64 (3, b, t) in time, height and width."""
        grids = batch.image_grid_thw.split(batch.tiles_of_image)
        positions: torch.Tensor
        positions, _ = vlm.model.get_rope_index(
            batch.input_ids,
            mm_token_type_ids=is_image.int(),
            image_grid_thw=torch.cat([grids[i] for i in batch.image_of_row.tolist()]),
            attention_mask=batch.attention_mask,
        )
        return positions

    def text_positions(self, attention: torch.Tensor) -> torch.Tensor:
        """Position ids int64 (3, b, t), equal in time, height and width."""
        return count_positions(attention).expand(3, -1, -1)


def _by_image(frames: Sequence[torch.Tensor], batch: Batch) -> list[torch.Tensor]:
    ends = torch.tensor(batch.tiles_of_image).cumsum(0).tolist()
    return [torch.cat(list(frames[end - count : end])) for end, count in zip(ends, batch.tiles_of_image, strict=True)]


def _resize(image: Image.Image, factor: int) -> Image.Image:
    """Resize twice, as in the official code: by Pillow, then by torch's antialiased bicubic filter on uint8."""
    try:
        first = smart_resize(image.height, image.width, **FIRST_RESIZE)
        second = smart_resize(*first, factor, **SECOND_RESIZE)
    except ValueError as error:
        raise SettingError(
            f"an image of {image.width} x {image.height} pixels is too elongated for Qwen-VL: {error}",
            code="extreme_aspect_ratio",
        ) from error
    pixels = torch.from_numpy(np.array(resize_bicubic(image, first))).permute(2, 0, 1)
    pixels = functional.interpolate(pixels[None], size=second, mode="bicubic", antialias=True)[0]
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
