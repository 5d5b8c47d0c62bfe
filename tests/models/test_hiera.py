"""The faster image encoder gives the outputs and gradients of the one in transformers."""

import copy

import torch
from transformers import Sam2VideoModel
from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModel, Sam2MultiScaleAttention, Sam2PatchEmbeddings

from vesalius.models.hiera import Hiera, PatchEmbeddings, WindowAttention, use_own_encoder

REPLACED: dict[type, type] = {
    Sam2HieraDetModel: Hiera,
    Sam2MultiScaleAttention: WindowAttention,
    Sam2PatchEmbeddings: PatchEmbeddings,
}


def test_faster_encoder_equals_that_of_transformers(small_sam: Sam2VideoModel) -> None:
    theirs = copy.deepcopy(small_sam)
    kinds = [type(module) for module in theirs.modules()]
    assert kinds.count(Sam2MultiScaleAttention) >= 4
    trunk = theirs.vision_encoder.backbone
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # they begin at 0
        for embedding in (trunk.pos_embed, trunk.pos_embed_window):
            embedding.normal_(generator=draw)
    ours = copy.deepcopy(theirs)
    parameters = dict(ours.named_parameters())
    use_own_encoder(ours)
    assert all(parameters[name] is each for name, each in ours.named_parameters())
    found = [type(module) for module in ours.modules()]
    for theirs_kind, ours_kind in REPLACED.items():
        assert found.count(ours_kind) == kinds.count(theirs_kind) > found.count(theirs_kind) == 0
    side = small_sam.config.image_size
    pixels = torch.randn(2, 3, side, side, generator=draw)
    for model in (theirs, ours):
        sum(level.square().mean() for level in model.vision_encoder(pixels).fpn_hidden_states).backward()
    for (name, a), (_, b) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)
    with torch.no_grad():
        for a, b in zip(
            theirs.vision_encoder(pixels).fpn_hidden_states, ours.vision_encoder(pixels).fpn_hidden_states, strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_positions_are_those_of_transformers_in_any_precision(small_sam: Sam2VideoModel) -> None:
    theirs = copy.deepcopy(small_sam).vision_encoder.backbone
    with torch.no_grad():
        for embedding in (theirs.pos_embed, theirs.pos_embed_window):
            embedding.normal_(generator=torch.Generator().manual_seed(0))
    sam = copy.deepcopy(small_sam)
    use_own_encoder(sam)
    ours = sam.vision_encoder.backbone
    ours.load_state_dict(theirs.state_dict())
    side = theirs.pos_embed_window.shape[-1]
    for size in ((side, side), (4 * side, 2 * side), (3 * side, 5 * side)):
        whole = theirs._get_pos_embed(size)
        torch.testing.assert_close(ours._get_pos_embed(size), whole, rtol=1e-5, atol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(ours._get_pos_embed(size), whole, rtol=1e-5, atol=1e-6)
    half = copy.deepcopy(ours).to(torch.bfloat16)._get_pos_embed(size)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), whole, rtol=0.02, atol=0.02)


def test_every_model_is_built_with_the_faster_encoder(small_sam: Sam2VideoModel) -> None:
    from vesalius.models.checkpoint import open_model

    kinds = {type(module) for module in open_model("tiny").model.sam.modules()}
    assert kinds >= set(REPLACED.values())
    assert not kinds & set(REPLACED)
