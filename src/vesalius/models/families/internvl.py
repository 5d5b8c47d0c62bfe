"""InternVL 2.5 and 3: InternViT on tiles of 448 x 448 pixels, with Qwen2.5, InternLM2.5 or Phi-3 as language model.

The preset `tiny` has the same architecture. All other presets have the sizes of ByteDance/Sa2VA on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers import InternVLForConditionalGeneration, PreTrainedModel

from vesalius.errors import CheckpointError
from vesalius.masks import Size
from vesalius.models.batch import Batch
from vesalius.models.families.base import Family, ImageFeatures, KnownModel, pick, read_rope
from vesalius.models.keymaps import INTERN_VIT, LANGUAGE, KeyRule
from vesalius.models.pixels import Pixels, normalize, resize_bicubic, tile_image
from vesalius.models.sam_config import sam2
from vesalius.models.specs import IMAGE_TOKEN, ModelSpec

# transformers has no InternLM2 class; the weights fit Llama once `wqkv` is split by key-value heads
LANGUAGE_MODELS = {"Qwen2ForCausalLM": "qwen2", "InternLM2ForCausalLM": "llama", "Phi3ForCausalLM": "phi3"}
TEXT_FIELDS = (
    "hidden_act hidden_size intermediate_size max_position_embeddings num_attention_heads num_hidden_layers "
    "num_key_value_heads rms_norm_eps vocab_size"
)
PHI3_FIELDS = "original_max_position_embeddings sliding_window partial_rotary_factor pad_token_id"
VISION_SIZES = "hidden_size num_hidden_layers num_attention_heads intermediate_size"
TEXT_SIZES = "hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size"
EXPECTED = {"select_layer": -1, "ps_version": "v2", "downsample_ratio": 0.5}


def _vision(sizes: tuple[int, ...], patch: int = 14, rms_norm: bool = False) -> dict[str, Any]:
    """An official `vision_config`; `sizes`: hidden size, layers, attention heads, width of the MLP."""
    return {
        **dict(zip(VISION_SIZES.split(), sizes, strict=True)),
        "image_size": 448,
        "patch_size": patch,
        "norm_type": "rms_norm" if rms_norm else "layer_norm",
        "qkv_bias": not rms_norm,
        "qk_normalization": rms_norm,
    }


def _qwen2(
    vision: dict[str, Any], *sizes: int, vocab: int = 151679, context: int = 32768, image_token: int = 151667
) -> dict[str, Any]:
    """An official configuration; `sizes`: hidden size, layers, attention heads, key-value heads, width of the MLP."""
    text = {"architectures": ["Qwen2ForCausalLM"], "rms_norm_eps": 1e-6, "rope_theta": 1e6}
    text |= {"vocab_size": vocab, "max_position_embeddings": context}
    text |= dict(zip(TEXT_SIZES.split(), sizes, strict=True))
    return {"template": "qwen_chat", "image_token_id": image_token, "vision_config": vision, "llm_config": text}


def _internlm2(vision: dict[str, Any], *sizes: int) -> dict[str, Any]:
    config = _qwen2(vision, *sizes, vocab=92558, image_token=92546)
    text = {
        "architectures": ["InternLM2ForCausalLM"],
        "rms_norm_eps": 1e-5,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    return config | {"template": "internlm2_chat", "llm_config": config["llm_config"] | text}


INTERN_VIT_300M = _vision((1024, 24, 16, 4096))
INTERN_VIT_6B = _vision((3200, 45, 25, 12800), rms_norm=True)


def _tiny_sam() -> dict[str, Any]:
    sizes: dict[str, Any] = {"hidden": 24, "heads": 1, "blocks": (1, 2, 3, 1), "windows": (8, 8, 16, 16)}
    return sam2(512, **sizes, global_blocks=(5,), width=128, memory=(1, 128, 1), decoder=(256, 4))


TINY_CONFIG = _qwen2(_vision((64, 2, 2, 128), patch=56), 128, 3, 4, 2, 256, vocab=272, context=4096, image_token=260)


class InternVL(Family):
    """InternVL: each tile of 448 x 448 becomes 256 tokens; positions are counted along the text."""

    name = "internvl"
    model_class = InternVLForConditionalGeneration
    image_marks = ("<img>", IMAGE_TOKEN, "</img>")
    frame_separator = "\n"
    vision_modules = ("model.vision_tower", "model.multi_modal_projector")
    vision_layers = "model.vision_tower.encoder.layer."
    saved_prefixes = (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head.", "language_model.lm_head."),
    )
    tiled = True
    image_tag = True
    presets: ClassVar[Mapping[str, KnownModel]] = {
        # one tile, since its language model is too small for the tokens of thirteen
        "tiny": KnownModel(TINY_CONFIG, _tiny_sam, max_tiles=1),
        "Sa2VA-1B": KnownModel(_qwen2(INTERN_VIT_300M, 896, 24, 14, 2, 4864)),
        "Sa2VA-4B": KnownModel(_qwen2(INTERN_VIT_300M, 2048, 36, 16, 2, 11008)),
        "Sa2VA-8B": KnownModel(_internlm2(INTERN_VIT_300M, 4096, 32, 32, 8, 14336)),
        "Sa2VA-26B": KnownModel(_internlm2(INTERN_VIT_6B, 6144, 48, 48, 8, 16384)),
        "Sa2VA-InternVL3-2B": KnownModel(_qwen2(INTERN_VIT_300M, 1536, 28, 12, 2, 8960)),
        "Sa2VA-InternVL3-8B": KnownModel(_qwen2(INTERN_VIT_300M, 3584, 28, 28, 4, 18944)),
        "Sa2VA-InternVL3-14B": KnownModel(_qwen2(INTERN_VIT_300M, 5120, 48, 40, 8, 13824)),
    }

    def recognizes(self, config: Mapping[str, Any]) -> bool:
        return "llm_config" in config

    def read_config(self, config: Mapping[str, Any], source: str) -> dict[str, Any]:
        vision = config["vision_config"]
        for name, value in EXPECTED.items():
            if config.get(name, value) != value:
                raise CheckpointError(
                    f"{source}: {name} {config[name]!r} is not supported, only {value!r}",
                    code="invalid_model_config",
                    field=name,
                )
        if vision["norm_type"] not in ("layer_norm", "rms_norm"):
            raise CheckpointError(
                f"{source}: vision_config.norm_type {vision['norm_type']!r} is not supported",
                code="invalid_model_config",
                field="vision_config.norm_type",
            )
        image, patch = vision["image_size"], vision.get("patch_size", 14)
        return {
            "model_type": self.name,
            "vision_config": {
                "model_type": "internvl_vision",
                **{name: vision[name] for name in (*VISION_SIZES.split(), "norm_type")},
                "image_size": [image, image],
                "patch_size": [patch, patch],
                "layer_norm_eps": vision.get("layer_norm_eps", 1e-6),
                "hidden_act": vision.get("hidden_act", "gelu"),
                "attention_bias": vision["qkv_bias"],
                "use_qk_norm": vision["qk_normalization"],
                # InternViT has no norm after the last layer; False would add one without weights
                "use_mean_pooling": True,
            },
            "text_config": _language_model(config["llm_config"], source),
            "image_token_id": config["image_token_id"],
            "image_seq_length": (image // patch) ** 2 // 4,  # pixel shuffle merges 2 x 2 patches
            "downsample_ratio": 0.5,
            # the class default True would silently replace the head by the embeddings
            "tie_word_embeddings": False,
        }

    def rules(self, spec: ModelSpec) -> Sequence[KeyRule]:
        return (*INTERN_VIT, *LANGUAGE[spec.text["model_type"]])

    def read_image(self, image: Image.Image, spec: ModelSpec) -> Pixels:
        """float32 (tiles, 3, 448, 448): the tiles of the image, then a thumbnail if there are several."""
        tiles = tile_image(image, spec.tile_size, spec.max_tiles)
        return _stack(tiles, (len(tiles) * spec.vlm["image_seq_length"],))

    def read_frames(self, frames: Sequence[Image.Image], spec: ModelSpec) -> Pixels:
        """float32 (frames, 3, 448, 448): each frame resized to one tile."""
        square = (spec.tile_size, spec.tile_size)
        return _stack(
            [resize_bicubic(frame, square) for frame in frames], (spec.vlm["image_seq_length"],) * len(frames)
        )

    def largest_image(self, spec: ModelSpec) -> Size:
        return spec.tile_size, spec.tile_size * spec.max_tiles

    def image_features(self, vlm: PreTrainedModel, batch: Batch) -> ImageFeatures:
        """Features of each image, followed by those of the regions in `batch.regions`."""
        tiles = vlm.get_image_features(pixel_values=batch.pixel_values).pooler_output
        images = [tiles_of_image.flatten(0, 1) for tiles_of_image in tiles.split(batch.tiles_of_image)]
        if batch.regions is not None:
            images = [torch.cat([images[0], *(tiles[-1][region.flatten()] for region in batch.regions)])]
        return ImageFeatures(images)

    def region_cells(self, spec: ModelSpec) -> int | None:
        return int(spec.vlm["image_seq_length"])


def _stack(tiles: Sequence[Image.Image], tokens: tuple[int, ...]) -> Pixels:
    values = torch.stack([normalize(tile) for tile in tiles])
    return Pixels(values, torch.zeros(0, 3, dtype=torch.int64), tokens)


def _language_model(text: Mapping[str, Any], source: str) -> dict[str, Any]:
    architecture = text["architectures"][0]
    if architecture not in LANGUAGE_MODELS:
        raise CheckpointError(
            f"{source}: the language model {architecture} is not supported; supported: {', '.join(LANGUAGE_MODELS)}",
            code="invalid_model_config",
            field="llm_config.architectures",
        )
    for name in ("bias", "use_sliding_window"):
        if text.get(name):
            raise CheckpointError(
                f"{source}: llm_config.{name} {text[name]!r} is not supported",
                code="invalid_model_config",
                field=f"llm_config.{name}",
            )
    kind = LANGUAGE_MODELS[architecture]
    return {
        **pick(text, TEXT_FIELDS),
        **(pick(text, PHI3_FIELDS) if kind == "phi3" else {}),
        "model_type": kind,
        "rope_parameters": read_rope(text),
        "tie_word_embeddings": False,
    }
