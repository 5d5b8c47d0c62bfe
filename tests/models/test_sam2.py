"""The segmenter on one image: equal to the official code, batched, differentiable."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.numbers import close, random
from transformers import Sam2Config, Sam2Model, Sam2VideoModel

from vesalius.masks import resize_bilinear
from vesalius.models.hiera import use_own_encoder
from vesalius.models.mask_decoder import use_own_decoder
from vesalius.models.sam2 import Decoded, decode, decode_with_points, encode_images, object_pointers, take_best

IMAGES = {"img_odd": "odd_517x389.png", "img_sq400": "square_400.png", "img_sq700_2seg": "square_700.png"}
CASES = [
    ("internvl_qwen2", "img_odd"),
    ("internvl_qwen2", "img_sq400"),
    ("internvl_qwen2", "img_sq700_2seg"),
    ("internvl_internlm2", "img_odd"),
    ("internvl_internlm2", "img_sq700_2seg"),
    ("qwen2_5_vl", "img_odd"),
    ("qwen2_5_vl", "img_sq400"),
    ("qwen3_vl", "img_odd"),
    ("qwen3_vl", "img_sq700_2seg"),
]

# largest absolute difference that another float32 implementation may have; logits are up to 35
FEATURES, POINTERS, LOGITS = 1e-4, 1e-4, 1e-3


@pytest.mark.parametrize(("family", "case"), CASES)
@torch.no_grad()
def test_image_masks_equal_the_official_code(
    oracle: Path,
    official_sam: Callable[[str], Sam2VideoModel],
    square: Callable[[Path], torch.Tensor],
    family: str,
    case: str,
) -> None:
    expected = np.load(oracle / family / "expected.npz")
    noted = json.loads((oracle / family / "expected.json").read_text())[case]
    sam = official_sam(family)
    features = encode_images(sam, square(oracle / "inputs" / IMAGES[case]))
    close(features.stride_4[0, :, 3::16, 3::16], expected[f"{case}/frame0_fpn0_sample"], FEATURES)
    close(features.stride_8[0, :, 3::16, 3::16], expected[f"{case}/frame0_fpn1_sample"], FEATURES)
    close(features.stride_16[0, ::4, 1::4, 1::4], expected[f"{case}/frame0_fpn2_sample"], FEATURES)
    decoded = decode(sam, features, torch.from_numpy(expected[f"{case}/seg_embeds"])[None])
    logits, pointers = take_best(decoded.candidates, decoded.scores)[0], object_pointers(sam, decoded)[0]
    for i in range(len(logits)):
        seg = f"{case}/seg{i}"
        close(decoded.scores[0, i], expected[f"{seg}/ious"][0], LOGITS)
        close(decoded.object_scores[0, i], expected[f"{seg}/object_score_logits"][0], LOGITS)
        assert decoded.scores[0, i].argmax() == expected[f"{seg}/best_idx"][0]
        close(logits[i], expected[f"{seg}/lowres_best"][0], LOGITS)
        close(pointers[i], expected[f"{seg}/obj_ptr"][0], POINTERS)
        if f"{seg}/frame0_lowres_multimasks_sample" in expected:  # not stored of the Qwen families
            close(decoded.candidates[0, i, :, ::4, ::4], expected[f"{seg}/frame0_lowres_multimasks_sample"], LOGITS)
        _, *size = noted[f"seg{i}"]["mask_shape"]
        full = resize_bilinear(resize_bilinear(logits[i].numpy(), (1024, 1024)), tuple(size))
        close(full[::8, ::8], expected[f"{seg}/mask_logits_sample"][0], LOGITS)
        mask = np.unpackbits(expected[f"{seg}/mask_packed"][0], count=full.size).reshape(size)
        # only pixels whose official logit is within 1e-3 of zero may fall on the other side
        assert ((full > 0) != mask).sum() <= noted[f"seg{i}"]["near_zero_pixels_1e3"][0]


def test_the_entry_of_highest_score_is_taken_from_any_leading_axes() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    scores = torch.tensor([[0.1, 0.9, 0.2], [0.8, 0.3, 0.4]])
    assert take_best(values, scores).tolist() == [2.0, 4.0]
    maps = values[..., None, None].expand(2, 3, 5, 7)
    assert take_best(maps, scores).shape == (2, 5, 7)
    assert take_best(maps[None], scores[None])[0, :, 4, 6].tolist() == [2.0, 4.0]


@torch.no_grad()
def test_images_and_prompts_in_one_call_equal_each_alone(small_sam: Sam2VideoModel) -> None:
    pixels, prompts = random(2, 3, 128, 128), random(2, 3, 128, seed=1)
    together = decode(small_sam, encode_images(small_sam, pixels), prompts)
    assert together.candidates.shape == (2, 3, 3, 32, 32)
    assert (together.scores.shape, together.tokens.shape) == ((2, 3, 3), (2, 3, 3, 128))
    assert together.object_scores.shape == (2, 3)
    for i in range(2):
        features = encode_images(small_sam, pixels[i : i + 1])
        for j in range(3):
            alone = decode(small_sam, features, prompts[i : i + 1, j : j + 1])
            for name in ("candidates", "scores", "object_scores", "tokens"):
                torch.testing.assert_close(
                    getattr(together, name)[i, j], getattr(alone, name)[0, 0], atol=1e-4, rtol=1e-4
                )
    assert not torch.allclose(together.candidates[0, 0], together.candidates[0, 1], atol=1e-2)


@torch.no_grad()
def test_features_hold_nothing_of_a_memory_and_decoding_adds_that_there_is_none(small_sam: Sam2VideoModel) -> None:
    pixels, prompts = random(1, 3, 128, 128), random(1, 1, 128)
    before = encode_images(small_sam, pixels)
    masks = decode(small_sam, before, prompts).candidates
    small_sam.no_memory_embedding.add_(1)
    after = encode_images(small_sam, pixels)
    torch.testing.assert_close(before.stride_16, after.stride_16, atol=0, rtol=0)
    assert not torch.allclose(masks, decode(small_sam, after, prompts).candidates)


@torch.no_grad()
def test_absent_object_keeps_its_mask_and_loses_its_pointer(small_sam: Sam2VideoModel) -> None:
    features, prompts = encode_images(small_sam, random(1, 3, 128, 128)), random(1, 2, 128)

    def score_all(bias: float) -> Decoded:
        last = small_sam.mask_decoder.pred_obj_score_head.proj_out
        last.weight.zero_()
        last.bias.fill_(bias)
        return decode(small_sam, features, prompts)

    present, absent = score_all(1.0), score_all(0.0)
    torch.testing.assert_close(present.candidates, absent.candidates, atol=0, rtol=0)
    assert not torch.allclose(*object_pointers(small_sam, present)[0])
    nothing = small_sam.no_object_pointer.expand(2, -1)
    torch.testing.assert_close(object_pointers(small_sam, absent)[0], nothing, atol=0, rtol=0)


def test_gradient_reaches_prompts_encoder_and_decoder(small_sam: Sam2VideoModel) -> None:
    prompts = random(1, 2, 128).requires_grad_()
    decoded = decode(small_sam, encode_images(small_sam, random(1, 3, 128, 128)), prompts)
    take_best(decoded.candidates, decoded.scores).square().mean().backward()
    reached = {
        "prompts": prompts,
        "encoder": small_sam.vision_encoder.backbone.patch_embed.projection.weight,
        "high-resolution convolution": small_sam.mask_decoder.conv_s0.weight,
        "mask tokens": small_sam.mask_decoder.mask_tokens.weight,
        "no-memory embedding": small_sam.no_memory_embedding,
    }
    assert [name for name, tensor in reached.items() if tensor.grad is None or not tensor.grad.any()] == []


@torch.no_grad()
def test_half_precision_stays_near(small_sam: Sam2VideoModel) -> None:
    pixels, prompts = random(1, 3, 128, 128), random(1, 2, 128)
    full = decode(small_sam, encode_images(small_sam, pixels), prompts)
    small_sam.to(torch.bfloat16)
    # prompts may come in the precision of another part
    half = decode(small_sam, encode_images(small_sam, pixels.to(torch.bfloat16)), prompts)
    assert half.candidates.dtype == torch.bfloat16
    spread = full.candidates.std()
    assert (half.candidates.float() - full.candidates).abs().mean() < 0.1 * spread


@pytest.mark.parametrize("with_mask", [False, True])
@torch.no_grad()
def test_points_without_seg_equal_the_image_model_of_transformers(small_sam: Sam2VideoModel, with_mask: bool) -> None:
    config = small_sam.config
    theirs = Sam2Model(
        Sam2Config(
            vision_config=config.vision_config.to_dict(),
            prompt_encoder_config=config.prompt_encoder_config.to_dict(),
            mask_decoder_config=config.mask_decoder_config.to_dict(),
        )
    ).eval()
    # in float64, because random weights amplify rounding errors
    theirs.double()
    small_sam.double()
    assert theirs.load_state_dict(small_sam.state_dict(), strict=False).missing_keys == []
    ours = copy.deepcopy(small_sam).eval()
    use_own_encoder(ours)
    use_own_decoder(ours)
    pixels = random(1, 3, 128, 128).double()
    logits = 5 * random(32, 32).double() if with_mask else None
    points, positive = (
        torch.tensor([[10.0, 20.0], [100.5, 64.25], [127.0, 0.0]]).double(),
        torch.tensor([True, False, True]),
    )
    features = encode_images(ours, pixels)
    coarse = features.stride_16 + ours.no_memory_embedding.reshape(1, -1, 1, 1)
    embeddings = [features.stride_4, features.stride_8, coarse]
    for found, wanted in zip(embeddings, theirs.get_image_embeddings(pixels), strict=True):
        close(found, wanted, 1e-5)
    expected = theirs(
        image_embeddings=embeddings,
        input_points=points[None, None],
        input_labels=positive[None, None].int(),
        input_masks=None if logits is None else logits[None, None],
    )
    decoded = decode_with_points(ours, features, torch.zeros(0, 128), points, positive, logits)
    close(decoded.candidates, expected.pred_masks, 1e-5)
    close(decoded.scores, expected.iou_scores, 1e-5)
    close(decoded.object_scores, expected.object_score_logits[..., 0], 1e-5)
    other = decode_with_points(ours, features, torch.zeros(0, 128), points, ~positive, logits)
    assert (other.candidates - decoded.candidates).abs().max() > 1e-4
