"""An official Sa2VA folder, read without running any of its code: `config.json` and tensor shapes to a `ModelSpec`.

The official code builds SAM 2 in Python, so `config.json` says nothing about it: its sizes are read from the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vesalius.errors import CheckpointError
from vesalius.models.config_files import CONFIG
from vesalius.models.layout_mapping import Shape
from vesalius.models.prompts import CHATS, PromptTemplate
from vesalius.models.specs import IMAGE_TOKEN, PRESETS, ModelSpec, sam2
from vesalius.models.tokenizers import official_tokenizer

TRUNK = "grounding_encoder.sam2_model.image_encoder.trunk."
MEMORY = "grounding_encoder.sam2_model.memory_"
DECODER = "grounding_encoder.sam2_model.sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight"

# https://github.com/facebookresearch/sam2/tree/main/sam2/configs/sam2, and the miniature of small test models
TRUNKS: dict[tuple[int, ...], dict[str, Any]] = {
    (2, 6, 36, 4): {"heads": 2, "windows": [8, 4, 16, 8], "global": [23, 33, 43]},
    (2, 3, 16, 3): {"heads": 2, "windows": [8, 4, 14, 7], "global": [12, 16, 20]},
    (1, 2, 11, 2): {"heads": 1, "windows": [8, 4, 14, 7], "global": [7, 10, 13]},
    (1, 2, 7, 2): {"heads": 1, "windows": [8, 4, 14, 7], "global": [5, 7, 9]},
    (1, 2, 2, 1): {"heads": 1, "windows": [8, 4, 16, 8], "global": [4]},
}
"""Blocks of each stage of Hiera -> what the shapes of its tensors do not show."""

TEXT_FIELDS = (
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "vocab_size",
)
QWEN_TEXT_FIELDS = (*TEXT_FIELDS, "attention_bias", "head_dim")
QWEN_VISION_FIELDS = (
    "depth",
    "deepstack_visual_indexes",
    "fullatt_block_indexes",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "num_position_embeddings",
    "out_hidden_size",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "tokens_per_second",
    "window_size",
)
QWEN_FIELDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def read_spec(folder: Path, shapes: Mapping[str, Shape]) -> ModelSpec:
    """What the folder holds, from its `config.json` and the shapes of its tensors under their official names.

    The name is that of the published model of these sizes, whatever the folder is called. CheckpointError, naming
    the file and the field, for what is missing or of a kind that cannot be opened natively.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); is {folder} a model?") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON; copy the model again") from error
    try:
        return _read_spec(config, folder, shapes)
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{path}: lacks {error}, without which the model cannot be built") from error
    except Exception as error:  # whatever a value of another kind leads to
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(f"{path}: describes no model that can be built ({reason})") from error


def _read_spec(config: dict[str, Any], folder: Path, shapes: Mapping[str, Shape]) -> ModelSpec:
    path = folder / CONFIG
    chat: Any = str(config.get("template", "")).replace("-", "_")
    if chat not in CHATS:
        raise CheckpointError(f"{path}: template {chat!r} is not one of {', '.join(CHATS)}")
    vlm = _internvl(config, folder) if "llm_config" in config else _qwen_vl(config)
    family = vlm["model_type"]
    spec = ModelSpec(
        name="",
        family=family,
        vlm=vlm,
        sam=_sam(shapes, path),
        seg_before_norm=family == "qwen3_vl",
        prompt=PromptTemplate(chat=chat),
    )
    return spec.changed(name=identify(spec) or "Sa2VA of an unpublished size")


def identify(spec: ModelSpec) -> str | None:
    """The published model that has the sizes of this one: layers, widths, vocabulary; None where none has."""
    for name, make in PRESETS.items():
        if sizes(make()) == sizes(spec):
            return name
    return None


def sizes(spec: ModelSpec) -> dict[str, Any]:
    """The numbers that tell one published model from another."""
    vision = spec.vlm["vision_config"]
    language = {name: spec.text.get(name) for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
    return {
        "family": spec.family,
        "language_model": spec.text.get("model_type"),
        **language,
        "vision_hidden_size": vision["hidden_size"],
        "vision_layers": vision.get("depth", vision.get("num_hidden_layers")),
        "segmenter_hidden_size": spec.sam["vision_config"]["backbone_config"]["hidden_size"],
    }


def _internvl(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    vision, text = config["vision_config"], config["llm_config"]
    expected = {"select_layer": -1, "ps_version": "v2", "downsample_ratio": 0.5}
    for field, value in expected.items():
        if config.get(field, value) != value:
            raise CheckpointError(
                f"{folder / CONFIG}: {field} {config[field]!r} is not supported, only {value!r}"
            )
    if vision["norm_type"] not in ("layer_norm", "rms_norm"):
        raise CheckpointError(
            f"{folder / CONFIG}: vision_config.norm_type {vision['norm_type']!r} is not known"
        )
    image, patch = vision["image_size"], vision.get("patch_size", 14)
    return {
        "model_type": "internvl",
        "vision_config": {
            "model_type": "internvl_vision",
            "hidden_size": vision["hidden_size"],
            "num_hidden_layers": vision["num_hidden_layers"],
            "num_attention_heads": vision["num_attention_heads"],
            "intermediate_size": vision["intermediate_size"],
            "image_size": [image, image],
            "patch_size": [patch, patch],
            "layer_norm_eps": vision.get("layer_norm_eps", 1e-6),
            "hidden_act": vision.get("hidden_act", "gelu"),
            "attention_bias": vision["qkv_bias"],
            "norm_type": vision["norm_type"],
            "use_qk_norm": vision["qk_normalization"],
            # no norm after the last layer, as in InternViT; False would add one that no weights have
            "use_mean_pooling": True,
        },
        "text_config": _language_model(text, folder / CONFIG),
        "image_token_id": official_tokenizer(folder).convert_tokens_to_ids(IMAGE_TOKEN),
        "image_seq_length": (image // patch) ** 2 // 4,
        "downsample_ratio": 0.5,
        "tie_word_embeddings": False,
    }


def _language_model(text: dict[str, Any], path: Path) -> dict[str, Any]:
    kinds = {"Qwen2ForCausalLM": "qwen2", "InternLM2ForCausalLM": "llama", "Phi3ForCausalLM": "phi3"}
    architecture = text["architectures"][0]
    if architecture not in kinds:
        raise CheckpointError(
            f"{path}: the language model {architecture} has no native class; known: {', '.join(kinds)}"
        )
    for field in ("bias", "use_sliding_window"):
        if text.get(field):
            raise CheckpointError(f"{path}: llm_config.{field} {text[field]!r} is not supported")
    own = {
        "model_type": kinds[architecture],
        "rope_parameters": _rope(text),
        # the class default True would overwrite the head with the embeddings in silence
        "tie_word_embeddings": False,
    }
    if architecture == "Phi3ForCausalLM":
        phi3 = ("original_max_position_embeddings", "sliding_window", "partial_rotary_factor", "pad_token_id")
        own |= {name: text[name] for name in phi3 if name in text}
    return {**_only(text, TEXT_FIELDS), **own}


def _qwen_vl(config: dict[str, Any]) -> dict[str, Any]:
    text, vision = config["text_config"], config["vision_config"]
    kind = text["model_type"].removesuffix("_text")
    if kind not in ("qwen2_5_vl", "qwen3_vl"):
        raise CheckpointError(f"the language model {text['model_type']} is neither Qwen2.5-VL nor Qwen3-VL")
    own_text = {"model_type": f"{kind}_text", "rope_parameters": _rope(text)}
    return {
        "model_type": kind,
        "vision_config": {"model_type": f"{kind}_vision", **_only(vision, QWEN_VISION_FIELDS)},
        "text_config": {**_only(text, QWEN_TEXT_FIELDS), **own_text},
        **{name: config[name] for name in QWEN_FIELDS},
        "tie_word_embeddings": False,
    }


def _rope(text: dict[str, Any]) -> dict[str, Any]:
    # transformers 5 writes `rope_parameters`, earlier ones `rope_scaling` and `rope_theta` beside it
    scaling = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    theta = scaling.pop("rope_theta", None) or text.get("rope_theta")
    if theta is None:
        raise KeyError("rope_theta")
    kind = scaling.pop("rope_type", None) or scaling.get("type") or "default"
    scaling.pop("type", None)
    if kind == "su":  # the older name of the same method
        kind = "longrope"
    return {"rope_type": kind, "rope_theta": float(theta), **scaling}


def _only(config: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: config[name] for name in names if name in config}


def _sam(shapes: Mapping[str, Shape], path: Path) -> dict[str, Any]:
    """The configuration of SAM 2 whose tensors have these shapes."""
    try:
        hidden = shapes[f"{TRUNK}patch_embed.proj.weight"][0]
        width = shapes["grounding_encoder.sam2_model.image_encoder.neck.convs.0.conv.weight"][0]
        memory_mlp = shapes[f"{MEMORY}attention.layers.0.linear1.weight"][0]
        decoder_mlp = shapes[DECODER][0]
    except KeyError as error:
        raise CheckpointError(
            f"{path.parent}: the tensor {error} is missing, so there is no whole SAM 2 in this folder"
        ) from error
    blocks = _count(shapes, f"{TRUNK}blocks.")
    starts = [i for i in range(blocks) if f"{TRUNK}blocks.{i}.proj.weight" in shapes]
    stages = tuple(end - start for start, end in zip([0, *starts], [*starts, blocks], strict=True))
    if stages not in TRUNKS:
        raise CheckpointError(f"{path.parent}: a SAM 2 encoder of {stages} blocks is not known")
    trunk = TRUNKS[stages]
    return sam2(
        image_size=1024,
        hiera={
            "hidden_size": hidden,
            "num_attention_heads": trunk["heads"],
            "blocks_per_stage": list(stages),
            "embed_dim_per_stage": [hidden << i for i in range(4)],
            "num_attention_heads_per_stage": [trunk["heads"] << i for i in range(4)],
            "window_size_per_stage": trunk["windows"],
            "global_attention_blocks": trunk["global"],
            "window_positional_embedding_background_size": list(shapes[f"{TRUNK}pos_embed"][-2:]),
        },
        width=width,
        memory={
            "layers": _count(shapes, f"{MEMORY}attention.layers."),
            "mlp": memory_mlp,
            "fuser_layers": _count(shapes, f"{MEMORY}encoder.fuser.layers."),
        },
        decoder={"mlp_dim": decoder_mlp, "num_attention_heads": 8},
    )


def _count(shapes: Mapping[str, Shape], prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)})
