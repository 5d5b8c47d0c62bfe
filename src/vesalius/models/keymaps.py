"""Key tables: official Sa2VA weight names and their names in a bundle, one table per component, for both directions.

A name may contain `{}` (a number), `{p}` (`weight` or `bias`), `{a}` (`q`, `k` or `v`) and `{*}` (any suffix, if the official
code uses the native class). The official names are those of ByteDance/Sa2VA on the Hugging Face hub; names in a bundle
are those of transformers' `save_pretrained`, prefixed by `vlm.`, `sam.` or `projector.`. The tables are explicit so that
conversion is strict in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

RowMapping = Literal["whole", "thirds", "groups", "copies", "row 0", "row 1", "row 2", "row 3"]
"""How the rows of an official tensor map to bundle tensors.

`whole`: copied unchanged. `thirds`: split into query, key and value, in this order. `groups`: InternLM2's `wqkv`, split
within each key-value head into queries, key and value. `copies`: copied unchanged under each bundle name. `row i`: the
official tensor becomes row i of the bundle tensor.
"""


@dataclass(frozen=True)
class KeyRule:
    """One entry of a key table: an official name, its bundle names and the row mapping."""

    official: str
    bundle: tuple[str, ...]
    layout: RowMapping = "whole"


def _rules(official: str, bundle: str, lines: str) -> list[KeyRule]:
    """One rule per line `official -> bundle [bundle ...] [: layout]`; `official` and `bundle` are name prefixes."""
    rules = []
    for line in filter(None, map(str.strip, lines.splitlines())):
        names, _, layout = line.partition(" : ")
        left, _, right = names.partition(" -> ")
        rules.append(
            KeyRule(
                official + left.strip(),
                tuple(bundle + name for name in right.split()),
                cast(RowMapping, layout or "whole"),
            )
        )
    return rules


INTERN_VIT = _rules(
    "vision_model.",
    "vlm.vision_tower.",
    """
    embeddings.class_embedding -> embeddings.cls_token
    embeddings.position_embedding -> embeddings.position_embeddings
    embeddings.patch_embedding.{p} -> embeddings.patch_embeddings.projection.{p}
    encoder.layers.{}.ls1 -> encoder.layer.{}.lambda_1
    encoder.layers.{}.ls2 -> encoder.layer.{}.lambda_2
    encoder.layers.{}.norm1.{p} -> encoder.layer.{}.layernorm_before.{p}
    encoder.layers.{}.norm2.{p} -> encoder.layer.{}.layernorm_after.{p}
    encoder.layers.{}.attn.qkv.{p} -> encoder.layer.{}.attention.q_proj.{p} encoder.layer.{}.attention.k_proj.{p} encoder.layer.{}.attention.v_proj.{p} : thirds
    encoder.layers.{}.attn.q_norm.weight -> encoder.layer.{}.attention.q_norm.weight
    encoder.layers.{}.attn.k_norm.weight -> encoder.layer.{}.attention.k_norm.weight
    encoder.layers.{}.attn.proj.{p} -> encoder.layer.{}.attention.projection_layer.{p}
    encoder.layers.{}.mlp.fc1.{p} -> encoder.layer.{}.mlp.fc1.{p}
    encoder.layers.{}.mlp.fc2.{p} -> encoder.layer.{}.mlp.fc2.{p}
    """,
) + _rules(
    "mlp1.",
    "vlm.multi_modal_projector.",
    """
    0.{p} -> layer_norm.{p}
    1.{p} -> linear_1.{p}
    3.{p} -> linear_2.{p}
    """,
)

# Qwen2 and Phi-3: the official code uses transformers' own classes
NATIVE_LANGUAGE = _rules("language_model.", "vlm.language_model.", "{*} -> {*}")

INTERNLM2 = _rules(
    "language_model.",
    "vlm.language_model.",
    """
    model.tok_embeddings.weight -> model.embed_tokens.weight
    model.layers.{}.attention.wqkv.weight -> model.layers.{}.self_attn.q_proj.weight model.layers.{}.self_attn.k_proj.weight model.layers.{}.self_attn.v_proj.weight : groups
    model.layers.{}.attention.wo.weight -> model.layers.{}.self_attn.o_proj.weight
    model.layers.{}.feed_forward.w1.weight -> model.layers.{}.mlp.gate_proj.weight
    model.layers.{}.feed_forward.w3.weight -> model.layers.{}.mlp.up_proj.weight
    model.layers.{}.feed_forward.w2.weight -> model.layers.{}.mlp.down_proj.weight
    model.layers.{}.attention_norm.weight -> model.layers.{}.input_layernorm.weight
    model.layers.{}.ffn_norm.weight -> model.layers.{}.post_attention_layernorm.weight
    model.norm.weight -> model.norm.weight
    output.weight -> lm_head.weight
    """,
)

QWEN2_5_VL = _rules(
    "model.",
    "vlm.",
    """
    model.visual.{*} -> visual.{*}
    model.language_model.{*} -> model.{*}
    lm_head.weight -> lm_head.weight
    """,
)

QWEN3_VL = _rules(
    "model.",
    "vlm.",
    """
    model.visual.{*} -> model.visual.{*}
    model.language_model.{*} -> model.language_model.{*}
    lm_head.weight -> lm_head.weight
    """,
)

PROJECTOR = _rules(
    "text_hidden_fcs.",
    "projector.",
    """
    0.{p} -> linear_1.{p}
    2.{p} -> linear_2.{p}
    """,
)

SAM2 = (
    _rules(
        "grounding_encoder.sam2_model.",
        "sam.",
        """
    maskmem_tpos_enc -> memory_temporal_positional_encoding
    no_mem_embed -> no_memory_embedding
    no_mem_pos_enc -> no_memory_positional_encoding
    no_obj_ptr -> no_object_pointer
    mask_downsample.{p} -> mask_downsample.{p}
    obj_ptr_proj.layers.0.{p} -> object_pointer_proj.proj_in.{p}
    obj_ptr_proj.layers.1.{p} -> object_pointer_proj.layers.0.{p}
    obj_ptr_proj.layers.2.{p} -> object_pointer_proj.proj_out.{p}
    """,
    )
    + _rules(
        "grounding_encoder.sam2_model.image_encoder.",
        "sam.vision_encoder.",
        """
    trunk.pos_embed -> backbone.pos_embed
    trunk.pos_embed_window -> backbone.pos_embed_window
    trunk.patch_embed.proj.{p} -> backbone.patch_embed.projection.{p}
    trunk.blocks.{}.norm1.{p} -> backbone.blocks.{}.layer_norm1.{p}
    trunk.blocks.{}.norm2.{p} -> backbone.blocks.{}.layer_norm2.{p}
    trunk.blocks.{}.attn.qkv.{p} -> backbone.blocks.{}.attn.qkv.{p}
    trunk.blocks.{}.attn.proj.{p} -> backbone.blocks.{}.attn.proj.{p}
    trunk.blocks.{}.mlp.layers.0.{p} -> backbone.blocks.{}.mlp.proj_in.{p}
    trunk.blocks.{}.mlp.layers.1.{p} -> backbone.blocks.{}.mlp.proj_out.{p}
    trunk.blocks.{}.proj.{p} -> backbone.blocks.{}.proj.{p}
    neck.convs.{}.conv.{p} -> neck.convs.{}.{p}
    """,
    )
    + _rules(
        "grounding_encoder.sam2_model.memory_",
        "sam.memory_",
        """
    attention.norm.{p} -> attention.layer_norm.{p}
    attention.layers.{}.self_attn.out_proj.{p} -> attention.layers.{}.self_attn.o_proj.{p}
    attention.layers.{}.self_attn.{a}_proj.{p} -> attention.layers.{}.self_attn.{a}_proj.{p}
    attention.layers.{}.cross_attn_image.out_proj.{p} -> attention.layers.{}.cross_attn_image.o_proj.{p}
    attention.layers.{}.cross_attn_image.{a}_proj.{p} -> attention.layers.{}.cross_attn_image.{a}_proj.{p}
    attention.layers.{}.linear1.{p} -> attention.layers.{}.linear1.{p}
    attention.layers.{}.linear2.{p} -> attention.layers.{}.linear2.{p}
    attention.layers.{}.norm{}.{p} -> attention.layers.{}.layer_norm{}.{p}
    encoder.mask_downsampler.encoder.0.{p} -> encoder.mask_downsampler.layers.0.conv.{p}
    encoder.mask_downsampler.encoder.1.{p} -> encoder.mask_downsampler.layers.0.layer_norm.{p}
    encoder.mask_downsampler.encoder.3.{p} -> encoder.mask_downsampler.layers.1.conv.{p}
    encoder.mask_downsampler.encoder.4.{p} -> encoder.mask_downsampler.layers.1.layer_norm.{p}
    encoder.mask_downsampler.encoder.6.{p} -> encoder.mask_downsampler.layers.2.conv.{p}
    encoder.mask_downsampler.encoder.7.{p} -> encoder.mask_downsampler.layers.2.layer_norm.{p}
    encoder.mask_downsampler.encoder.9.{p} -> encoder.mask_downsampler.layers.3.conv.{p}
    encoder.mask_downsampler.encoder.10.{p} -> encoder.mask_downsampler.layers.3.layer_norm.{p}
    encoder.mask_downsampler.encoder.12.{p} -> encoder.mask_downsampler.final_conv.{p}
    encoder.pix_feat_proj.{p} -> encoder.feature_projection.{p}
    encoder.fuser.layers.{}.g_weight -> encoder.memory_fuser.layers.{}.scale
    encoder.fuser.layers.{}.dwconv.{p} -> encoder.memory_fuser.layers.{}.depthwise_conv.{p}
    encoder.fuser.layers.{}.norm.{p} -> encoder.memory_fuser.layers.{}.layer_norm.{p}
    encoder.fuser.layers.{}.pwconv1.{p} -> encoder.memory_fuser.layers.{}.pointwise_conv1.{p}
    encoder.fuser.layers.{}.pwconv2.{p} -> encoder.memory_fuser.layers.{}.pointwise_conv2.{p}
    encoder.out_proj.{p} -> encoder.projection.{p}
    """,
    )
    + _rules(
        "grounding_encoder.sam2_model.sam_prompt_encoder.",
        "sam.",
        """
    pe_layer.positional_encoding_gaussian_matrix -> shared_image_embedding.positional_embedding prompt_encoder.shared_embedding.positional_embedding : copies
    point_embeddings.0.weight -> prompt_encoder.point_embed.weight : row 0
    point_embeddings.1.weight -> prompt_encoder.point_embed.weight : row 1
    point_embeddings.2.weight -> prompt_encoder.point_embed.weight : row 2
    point_embeddings.3.weight -> prompt_encoder.point_embed.weight : row 3
    not_a_point_embed.weight -> prompt_encoder.not_a_point_embed.weight
    no_mask_embed.weight -> prompt_encoder.no_mask_embed.weight
    mask_downscaling.0.{p} -> prompt_encoder.mask_embed.conv1.{p}
    mask_downscaling.1.{p} -> prompt_encoder.mask_embed.layer_norm1.{p}
    mask_downscaling.3.{p} -> prompt_encoder.mask_embed.conv2.{p}
    mask_downscaling.4.{p} -> prompt_encoder.mask_embed.layer_norm2.{p}
    mask_downscaling.6.{p} -> prompt_encoder.mask_embed.conv3.{p}
    """,
    )
    + _rules(
        "grounding_encoder.sam2_model.sam_mask_decoder.",
        "sam.mask_decoder.",
        """
    iou_token.weight -> iou_token.weight
    mask_tokens.weight -> mask_tokens.weight
    obj_score_token.weight -> obj_score_token.weight
    conv_s0.{p} -> conv_s0.{p}
    conv_s1.{p} -> conv_s1.{p}
    output_upscaling.0.{p} -> upscale_conv1.{p}
    output_upscaling.1.{p} -> upscale_layer_norm.{p}
    output_upscaling.3.{p} -> upscale_conv2.{p}
    output_hypernetworks_mlps.{}.layers.0.{p} -> output_hypernetworks_mlps.{}.proj_in.{p}
    output_hypernetworks_mlps.{}.layers.1.{p} -> output_hypernetworks_mlps.{}.layers.0.{p}
    output_hypernetworks_mlps.{}.layers.2.{p} -> output_hypernetworks_mlps.{}.proj_out.{p}
    iou_prediction_head.layers.0.{p} -> iou_prediction_head.proj_in.{p}
    iou_prediction_head.layers.1.{p} -> iou_prediction_head.layers.0.{p}
    iou_prediction_head.layers.2.{p} -> iou_prediction_head.proj_out.{p}
    pred_obj_score_head.layers.0.{p} -> pred_obj_score_head.proj_in.{p}
    pred_obj_score_head.layers.1.{p} -> pred_obj_score_head.layers.0.{p}
    pred_obj_score_head.layers.2.{p} -> pred_obj_score_head.proj_out.{p}
    transformer.norm_final_attn.{p} -> transformer.layer_norm_final_attn.{p}
    transformer.final_attn_token_to_image.out_proj.{p} -> transformer.final_attn_token_to_image.o_proj.{p}
    transformer.final_attn_token_to_image.{a}_proj.{p} -> transformer.final_attn_token_to_image.{a}_proj.{p}
    transformer.layers.{}.self_attn.out_proj.{p} -> transformer.layers.{}.self_attn.o_proj.{p}
    transformer.layers.{}.self_attn.{a}_proj.{p} -> transformer.layers.{}.self_attn.{a}_proj.{p}
    transformer.layers.{}.cross_attn_token_to_image.out_proj.{p} -> transformer.layers.{}.cross_attn_token_to_image.o_proj.{p}
    transformer.layers.{}.cross_attn_token_to_image.{a}_proj.{p} -> transformer.layers.{}.cross_attn_token_to_image.{a}_proj.{p}
    transformer.layers.{}.cross_attn_image_to_token.out_proj.{p} -> transformer.layers.{}.cross_attn_image_to_token.o_proj.{p}
    transformer.layers.{}.cross_attn_image_to_token.{a}_proj.{p} -> transformer.layers.{}.cross_attn_image_to_token.{a}_proj.{p}
    transformer.layers.{}.mlp.layers.0.{p} -> transformer.layers.{}.mlp.proj_in.{p}
    transformer.layers.{}.mlp.layers.1.{p} -> transformer.layers.{}.mlp.proj_out.{p}
    transformer.layers.{}.norm{}.{p} -> transformer.layers.{}.layer_norm{}.{p}
    """,
    )
)

LANGUAGE = {"qwen2": NATIVE_LANGUAGE, "phi3": NATIVE_LANGUAGE, "llama": INTERNLM2}
"""Type of the language model in a bundle -> its key table."""

DROPPED = {
    "language_model.model.layers.{}.attention.rotary_emb.inv_freq": "computed from the configuration",
    "language_model.model.layers.{}.self_attn.rotary_emb.inv_freq": "computed from the configuration",
}
"""Official names without a counterpart in a bundle -> reason."""

# tensors of InternLM2 under their official names
INTERNLM2_NAME = re.compile(r"\.(tok_embeddings|wqkv|wo|w[123])\.|^language_model\.output\.")


def language_models(names: Iterable[str]) -> set[str] | None:
    """Possible types of the language model, by official tensor names; None without tensors of a language model."""
    names = list(names)
    if any(name.startswith("model.") for name in names):
        return {"qwen2_5_vl_text", "qwen3_vl_text"}
    if any(INTERNLM2_NAME.search(name) for name in names):
        return {"llama"}
    if any(name.startswith("language_model.") for name in names):
        return {"qwen2", "phi3"}
    return None
