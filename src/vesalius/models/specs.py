"""What to build: the presets by name, as plain configurations of the two native models.

A `ModelSpec` is stored in each bundle. Nothing here imports torch or transformers.
Sizes of the real models: the published configurations of ByteDance/Sa2VA on the Hugging Face hub.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from vesalius.config import Settings
from vesalius.errors import SettingError
from vesalius.models.prompts import PromptTemplate

SEG = "[SEG]"
IMAGE_TOKEN = "<IMG_CONTEXT>"
IMAGE_MARKS = {
    "internvl": ("<img>", IMAGE_TOKEN, "</img>"),
    "qwen2_5_vl": ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"),
    "qwen3_vl": ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"),
}
"""Family -> what stands in the text before an image's tokens, for each of them, and after."""
ADDED_TOKENS = ("<img>", "</img>", IMAGE_TOKEN, SEG, "<p>", "</p>", "<vp>", "</vp>")


class ModelSpec(Settings):
    """What to build. `vlm` and `sam` are the configurations that transformers writes to `config.json`."""

    name: str
    family: Literal["internvl", "qwen2_5_vl", "qwen3_vl"]
    """Which vision-language family: how images become tokens."""
    vlm: dict[str, Any]
    sam: dict[str, Any]
    tile_size: int = 448
    max_tiles: int = 12
    """InternVL: most tiles of one image for the language model; a thumbnail is added when there is more than one."""
    seg_before_norm: bool = False
    """Whether the state of [SEG] is taken before the last norm, as Sa2VA on Qwen3-VL was trained."""
    prompt: PromptTemplate = Field(default_factory=PromptTemplate)

    @property
    def sam_size(self) -> int:
        """Side of the square image that the segmenter sees, in pixels."""
        return self.sam["image_size"]

    @property
    def text(self) -> dict[str, Any]:
        """The configuration of the language model."""
        return self.vlm["text_config"]

    @property
    def context(self) -> int:
        """Most tokens of a question with its answer; a language model with dynamic RoPE scaling reads further."""
        rope = self.text["rope_parameters"]
        stretch = rope.get("factor", 1) if rope["rope_type"] == "dynamic" else 1
        return int(stretch * self.text["max_position_embeddings"])


class UNetShape(Settings):
    """How large a U-Net is. The defaults are those of nnU-Net with half of its widths, for two cores."""

    widths: tuple[Annotated[int, Field(ge=2)], ...] = Field(default=(16, 32, 64, 128, 128), min_length=3)
    """Channels at each level, from the resolution of the image down; each level halves the sides."""
    patch: int = Field(default=256, ge=16)
    """Side in pixels of the square crops that it is trained on, and of the windows that it predicts in."""

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        least = 2 * 2 ** (len(self.widths) - 1)
        if self.patch % (least // 2) or self.patch < least:
            raise ValueError(
                f"a patch of {self.patch} cannot be halved {len(self.widths) - 1} times; take a multiple of "
                f"{least // 2} from {least} on, or fewer widths"
            )
        return self


class UNetSpec(UNetShape):
    """A U-Net, and what each of its output channels is."""

    phrases: tuple[str, ...] = Field(min_length=1)


def find_spec(name: str) -> ModelSpec:
    """The preset of that name; SettingError with the nearest name where there is none."""
    by_name = {known.lower(): make for known, make in PRESETS.items()}
    make = by_name.get(name.removeprefix("ByteDance/").lower())
    if make is None:
        close = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(PRESETS)}"
        raise SettingError(f"unknown model name {name!r}; {hint}")
    return make()


def tiny() -> ModelSpec:
    """About 3 M parameters: every command on a laptop, in tests and in the demo."""
    vision = _vision(hidden=64, layers=2, heads=2, mlp=128, patch=56, drop_bias=False)
    text = _qwen2(hidden=128, layers=3, heads=4, kv_heads=2, mlp=256, vocab=272, context=4096)
    sam = sam2(
        image_size=512,
        hiera={
            "hidden_size": 24,
            "blocks_per_stage": [1, 2, 3, 1],
            "embed_dim_per_stage": [24, 48, 96, 192],
            "num_attention_heads_per_stage": [1, 2, 4, 8],
            "window_size_per_stage": [8, 8, 16, 16],
            "global_attention_blocks": [5],
        },
        width=128,
        memory={"layers": 1, "mlp": 128, "fuser_layers": 1},
        decoder={"mlp_dim": 256, "num_attention_heads": 4},
    )
    # one tile: its language model is too small to read the tokens of thirteen
    vlm = _internvl(vision, text, image_token=260)
    return ModelSpec(name="tiny", family="internvl", vlm=vlm, sam=sam, max_tiles=1)


def _internvl(vision: dict[str, Any], text: dict[str, Any], image_token: int) -> dict[str, Any]:
    patches = (vision["image_size"][0] // vision["patch_size"][0]) ** 2
    return {
        "model_type": "internvl",
        "vision_config": vision,
        "text_config": text,
        "image_token_id": image_token,
        "image_seq_length": patches // 4,  # pixel shuffle joins 2 x 2 patches
        "downsample_ratio": 0.5,
        # the class default True would overwrite the head with the embeddings in silence
        "tie_word_embeddings": False,
    }


def _vision(
    hidden: int, layers: int, heads: int, mlp: int, patch: int = 14, drop_bias: bool = False
) -> dict[str, Any]:
    return {
        "model_type": "internvl_vision",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
        "image_size": [448, 448],
        "patch_size": [patch, patch],
        "attention_bias": not drop_bias,
        "norm_type": "rms_norm" if drop_bias else "layer_norm",
        "use_qk_norm": drop_bias,
        # no norm after the last layer, as in InternViT; False would add one that no weights have
        "use_mean_pooling": True,
    }


INTERN_VIT_300M = {"hidden": 1024, "layers": 24, "heads": 16, "mlp": 4096}
INTERN_VIT_6B = {"hidden": 3200, "layers": 45, "heads": 25, "mlp": 12800, "drop_bias": True}


def _qwen2(
    hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, vocab: int = 151679, context: int = 32768
) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": False,
    }


def _internlm2(hidden: int, layers: int, heads: int, kv_heads: int, mlp: int) -> dict[str, Any]:
    """InternLM2 has no native class; its weights are those of a Llama once `wqkv` is split by groups."""
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": 92558,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0},
        "tie_word_embeddings": False,
    }


def sam2(
    image_size: int, hiera: dict[str, Any], width: int, memory: dict[str, int], decoder: dict[str, int]
) -> dict[str, Any]:
    """The configuration of a SAM 2.0 with memory, of these sizes."""
    grid = image_size // 16
    return {
        "model_type": "sam2_video",
        "image_size": image_size,
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "image_size": [image_size, image_size],
                "window_positional_embedding_background_size": [7, 7],
                **hiera,
            },
            "backbone_channel_list": hiera["embed_dim_per_stage"][::-1],
            "backbone_feature_sizes": [[4 * grid, 4 * grid], [2 * grid, 2 * grid], [grid, grid]],
            "fpn_hidden_size": width,
        },
        "prompt_encoder_config": {"hidden_size": width, "image_size": image_size, "patch_size": 16},
        "mask_decoder_config": {
            "hidden_size": width,
            "iou_head_hidden_dim": width,
            # in eval mode this swaps the single mask for another token's; Sa2VA always asks for three
            "dynamic_multimask_via_stability": False,
            **decoder,
        },
        "memory_attention_hidden_size": width,
        "memory_attention_num_layers": memory["layers"],
        "memory_attention_feed_forward_hidden_size": memory["mlp"],
        "memory_attention_rope_feat_sizes": [grid, grid],
        "memory_encoder_hidden_size": width,
        # what the native memory attention reads, whatever the width
        "memory_encoder_output_channels": 64,
        "mask_downsampler_embed_dim": width,
        "memory_fuser_embed_dim": width,
        "memory_fuser_intermediate_dim": 4 * width,
        "memory_fuser_num_layers": memory["fuser_layers"],
        # SAM 2.0, which all of Sa2VA uses, has neither of these two of SAM 2.1
        "enable_temporal_pos_encoding_for_object_pointers": False,
        "enable_occlusion_spatial_embedding": False,
    }


def _sam2_large() -> dict[str, Any]:
    return sam2(
        image_size=1024,
        hiera={
            "hidden_size": 144,
            "num_attention_heads": 2,
            "blocks_per_stage": [2, 6, 36, 4],
            "embed_dim_per_stage": [144, 288, 576, 1152],
            "num_attention_heads_per_stage": [2, 4, 8, 16],
            "window_size_per_stage": [8, 4, 16, 8],
            "global_attention_blocks": [23, 33, 43],
        },
        width=256,
        memory={"layers": 4, "mlp": 2048, "fuser_layers": 2},
        decoder={"mlp_dim": 2048, "num_attention_heads": 8},
    )


def _qwen_vl(vision: dict[str, Any], text: dict[str, Any], kind: str) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vision_config": {"model_type": f"{kind}_vision", "out_hidden_size": text["hidden_size"], **vision},
        "text_config": {"model_type": f"{kind}_text", **text},
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "tie_word_embeddings": False,
    }


def _qwen2_5_vl(hidden: int, layers: int, heads: int, kv_heads: int, mlp: int) -> dict[str, Any]:
    text = _qwen2(hidden, layers, heads, kv_heads, mlp, vocab=151670, context=128000)
    del text["model_type"], text["tie_word_embeddings"]
    text["rope_parameters"] |= {"mrope_section": [16, 24, 24]}
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
    }
    return _qwen_vl(vision, text, "qwen2_5_vl")


def _qwen3_vl_4b() -> dict[str, Any]:
    text = {
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 9728,
        "vocab_size": 151674,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "patch_size": 16,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    return _qwen_vl(vision, text, "qwen3_vl")


def _published_qwen(name: str, vlm: dict[str, Any]) -> ModelSpec:
    return ModelSpec(
        name=name,
        family=vlm["model_type"],
        vlm=vlm,
        sam=_sam2_large(),
        seg_before_norm=vlm["model_type"] == "qwen3_vl",
    )


def _published(name: str, vision: dict[str, Any], text: dict[str, Any]) -> ModelSpec:
    llama = text["model_type"] == "llama"
    return ModelSpec(
        name=name,
        family="internvl",
        vlm=_internvl(_vision(**vision), text, image_token=92546 if llama else 151667),
        sam=_sam2_large(),
        prompt=PromptTemplate(chat="internlm2_chat" if llama else "qwen_chat"),
    )


PRESETS = {
    "tiny": tiny,
    "Sa2VA-1B": lambda: _published("Sa2VA-1B", INTERN_VIT_300M, _qwen2(896, 24, 14, 2, 4864)),
    "Sa2VA-4B": lambda: _published("Sa2VA-4B", INTERN_VIT_300M, _qwen2(2048, 36, 16, 2, 11008)),
    "Sa2VA-8B": lambda: _published("Sa2VA-8B", INTERN_VIT_300M, _internlm2(4096, 32, 32, 8, 14336)),
    "Sa2VA-26B": lambda: _published("Sa2VA-26B", INTERN_VIT_6B, _internlm2(6144, 48, 48, 8, 16384)),
    "Sa2VA-InternVL3-2B": lambda: _published(
        "Sa2VA-InternVL3-2B", INTERN_VIT_300M, _qwen2(1536, 28, 12, 2, 8960)
    ),
    "Sa2VA-InternVL3-8B": lambda: _published(
        "Sa2VA-InternVL3-8B", INTERN_VIT_300M, _qwen2(3584, 28, 28, 4, 18944)
    ),
    "Sa2VA-InternVL3-14B": lambda: _published(
        "Sa2VA-InternVL3-14B", INTERN_VIT_300M, _qwen2(5120, 48, 40, 8, 13824)
    ),
    "Sa2VA-Qwen2_5-VL-3B": lambda: _published_qwen(
        "Sa2VA-Qwen2_5-VL-3B", _qwen2_5_vl(2048, 36, 16, 2, 11008)
    ),
    "Sa2VA-Qwen2_5-VL-7B": lambda: _published_qwen(
        "Sa2VA-Qwen2_5-VL-7B", _qwen2_5_vl(3584, 28, 28, 4, 18944)
    ),
    "Sa2VA-Qwen3-VL-4B": lambda: _published_qwen("Sa2VA-Qwen3-VL-4B", _qwen3_vl_4b()),
}
