"""The faster mask decoder gives the outputs and gradients of the one in transformers."""

import copy
from typing import Any

import pytest
import torch
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoMaskDecoder

from vesalius.models.mask_decoder import MaskDecoder, use_own_decoder


def make_inputs(sam: Sam2VideoModel, images: int, prompts: int, tokens: int, size: tuple[int, int]) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    channels, (height, width) = sam.config.mask_decoder_config.hidden_size, size

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()

    return {
        "image_embeddings": random(images, channels, height, width),
        "image_positional_embeddings": random(1, channels, height, width).expand(images, -1, -1, -1),
        "sparse_prompt_embeddings": random(images, prompts, tokens, channels),
        "dense_prompt_embeddings": random(1, channels, 1, 1).expand(images, -1, height, width),
        "high_resolution_features": [
            random(images, channels // 8, 4 * height, 4 * width),
            random(images, channels // 4, 2 * height, 2 * width),
        ],
    }


@pytest.fixture
def both(small_sam: Sam2VideoModel) -> tuple[Sam2VideoMaskDecoder, Sam2VideoMaskDecoder]:
    theirs = copy.deepcopy(small_sam.mask_decoder).double()
    sam = copy.deepcopy(small_sam).double()
    use_own_decoder(sam)
    ours = sam.mask_decoder
    assert (type(theirs), type(ours)) == (Sam2VideoMaskDecoder, MaskDecoder)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():  # as drawn, biases are 0 and a lost one is not seen
        for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
            noise = 0.3 * torch.randn(one.shape, generator=draw, dtype=one.dtype)
            one.add_(noise)
            other.copy_(one)
    return theirs, ours


@pytest.mark.parametrize(
    ("images", "prompts", "tokens", "size"),
    [(1, 1, 3, (8, 8)), (2, 3, 3, (4, 6)), (3, 1, 2, (6, 4)), (1, 4, 5, (5, 7))],
)
def test_masks_scores_tokens_and_gradients_are_those_of_transformers(
    small_sam: Sam2VideoModel,
    both: tuple[Sam2VideoMaskDecoder, Sam2VideoMaskDecoder],
    images: int,
    prompts: int,
    tokens: int,
    size: tuple[int, int],
) -> None:
    results, gradients = [], []
    for decoder in both:
        inputs = make_inputs(small_sam, images, prompts, tokens, size)
        decoder.zero_grad()
        found = decoder(**inputs, multimask_output=True)
        sum((each * torch.arange(each.numel()).reshape(each.shape).cos()).sum() for each in found).backward()
        results.append(found)
        leaves = [inputs["image_embeddings"], inputs["sparse_prompt_embeddings"], *inputs["high_resolution_features"]]
        gradients.append([leaf.grad for leaf in leaves] + [p.grad for p in decoder.parameters()])
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    moved = 0
    for one, other in zip(*gradients, strict=True):
        if other is None:  # of the single mask's map, and of a bias that adds the same to all logits of a softmax
            assert one is None or one.abs().max() < 1e-8
            continue
        moved += bool(one.any())
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)
    assert moved > 60


def test_a_single_mask_is_that_of_transformers_to_the_bit(
    small_sam: Sam2VideoModel, both: tuple[Sam2VideoMaskDecoder, Sam2VideoMaskDecoder]
) -> None:
    inputs = make_inputs(small_sam, 2, 1, 2, (8, 8))
    for one, other in zip(*(decoder(**inputs, multimask_output=False) for decoder in both), strict=True):
        assert torch.equal(one, other)


def test_every_model_is_built_with_the_faster_decoder() -> None:
    from vesalius.models.checkpoint import open_model

    assert type(open_model("tiny").model.sam.mask_decoder) is MaskDecoder
