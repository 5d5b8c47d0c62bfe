"""The relieved image encoder gives the numbers, and the gradients, of transformers' own."""

import copy

import torch
from transformers import Sam2VideoModel
from transformers.models.sam2.modeling_sam2 import Sam2MultiScaleAttention

from vesalius.models.hiera import WindowAttention, relieve


def test_relieved_encoder_equals_that_of_transformers_to_the_bit(small_sam: Sam2VideoModel) -> None:
    theirs, ours = copy.deepcopy(small_sam), copy.deepcopy(small_sam)
    kinds = [type(module) for module in theirs.modules()]
    assert kinds.count(Sam2MultiScaleAttention) >= 4
    relieve(ours)
    assert [type(module) for module in ours.modules()].count(WindowAttention) == kinds.count(
        Sam2MultiScaleAttention
    )
    side = small_sam.config.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    for model in (theirs, ours):
        sum(level.square().mean() for level in model.vision_encoder(pixels).fpn_hidden_states).backward()
    for (name, a), (_, b) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and b.grad is not None:
            assert torch.equal(a.grad, b.grad), name
    with torch.no_grad():
        for a, b in zip(
            theirs.vision_encoder(pixels).fpn_hidden_states,
            ours.vision_encoder(pixels).fpn_hidden_states,
            strict=True,
        ):
            assert torch.equal(a, b)


def test_every_model_is_built_relieved(small_sam: Sam2VideoModel) -> None:
    from vesalius.models.checkpoint import find_model, open_model

    kinds = {type(module) for module in open_model(find_model("tiny")).model.sam.modules()}
    assert WindowAttention in kinds
    assert Sam2MultiScaleAttention not in kinds
