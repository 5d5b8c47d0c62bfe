"""Qwen3-VL: Qwen2.5-VL plus DeepStack features of several encoder layers; [SEG] is taken before the final norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import Qwen3VLForConditionalGeneration

from vesalius.models.families.base import KnownModel
from vesalius.models.families.qwen2_5_vl import TOKEN_IDS, Qwen2_5VL
from vesalius.models.keymaps import QWEN3_VL

SIZE_4B: dict[str, Any] = {
    "template": "qwen_chat",
    **TOKEN_IDS,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 9728,
        "vocab_size": 151674,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e6,
        "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
    },
    "vision_config": {
        "depth": 24,
        "hidden_size": 1024,
        "out_hidden_size": 2560,
        "intermediate_size": 4096,
        "num_heads": 16,
        "patch_size": 16,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    },
}


class Qwen3VL(Qwen2_5VL):
    """Qwen3-VL, with patches of 16 x 16 pixels and its own normalization and weight names."""

    name = "qwen3_vl"
    model_class = Qwen3VLForConditionalGeneration
    saved_prefixes = ()
    seg_before_norm = True
    system_prompt = ""
    presets: ClassVar[Mapping[str, KnownModel]] = {"Sa2VA-Qwen3-VL-4B": KnownModel(SIZE_4B)}
    table = QWEN3_VL
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
