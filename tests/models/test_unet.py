"""U-Nets are unchanged by writing and opening, damaged ones are refused, and channels stay with their phrases."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tests.codes import raises_code

from vesalius.errors import CheckpointError
from vesalius.lineage import fingerprint_weights
from vesalius.models.cards import CARD, read_card
from vesalius.models.checkpoint import open_model
from vesalius.models.info import describe, summarize
from vesalius.models.reference import resolve_model
from vesalius.models.specs import UNetShape
from vesalius.models.unet import WEIGHTS, OpenedUNet, new_unet, open_unet, standardize, with_phrases, write_unet

SHAPE = UNetShape(widths=(4, 8, 8), patch=32)


@pytest.fixture
def opened() -> OpenedUNet:
    return new_unet(SHAPE, ("vessel", "catheter"), seed=3)


@pytest.fixture
def bundle(opened: OpenedUNet, tmp_path: Path) -> Path:
    write_unet(tmp_path / "bundle", opened, opened.card)
    return tmp_path / "bundle"


def answer(opened: OpenedUNet) -> torch.Tensor:
    pixels = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return opened.model.eval()(pixels)


def test_an_opened_unet_gives_the_maps_of_the_written_one(opened: OpenedUNet, bundle: Path) -> None:
    again = open_unet(bundle)
    assert again.card.spec == opened.card.spec
    assert not again.model.training
    maps = answer(again)
    assert maps.shape == (1, 2, 32, 64)
    assert torch.equal(maps, answer(opened))
    write_unet(bundle.with_name("copy"), again, again.card)
    assert fingerprint_weights(bundle.with_name("copy")) == fingerprint_weights(bundle)


def test_the_seed_decides_the_weights_and_the_global_generator_is_unchanged() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one, two, other = (new_unet(SHAPE, ("vessel",), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(answer(one), answer(two))
    assert not torch.equal(answer(one), answer(other))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: weights.popitem(), "1 missing: "),
        (lambda weights: weights.update(more=torch.zeros(2)), "1 unknown: more"),
        (
            lambda weights: weights.update({"output_block.conv.conv.bias": torch.zeros(3)}),
            "output_block.conv.conv.bias torch.float32 [3] instead of torch.float32 [2]",
        ),
        (
            lambda weights: weights.update({"output_block.conv.conv.bias": torch.zeros(2).half()}),
            "output_block.conv.conv.bias torch.float16 [2] instead of torch.float32 [2]",
        ),
    ],
)
def test_weights_that_do_not_fit_the_card_are_refused(bundle: Path, change: object, named: str) -> None:
    weights = safetensors.torch.load_file(bundle / WEIGHTS)
    change(weights)  # type: ignore[operator]
    safetensors.torch.save_file(weights, bundle / WEIGHTS)
    with raises_code(CheckpointError, "weights_mismatch", named):
        open_unet(bundle)


def test_a_file_cut_short_and_a_missing_one_are_refused(bundle: Path) -> None:
    whole = (bundle / WEIGHTS).read_bytes()
    (bundle / WEIGHTS).write_bytes(whole[:-10])
    with raises_code(CheckpointError, "damaged_model", "unet.safetensors"):
        open_unet(bundle)
    (bundle / WEIGHTS).unlink()
    with raises_code(CheckpointError, "damaged_model", "unet.safetensors"):
        open_unet(bundle)


def test_a_model_of_the_wrong_kind_is_refused(bundle: Path) -> None:
    assert (resolve_model(bundle).kind, resolve_model("tiny").kind) == ("unet", "textseg")
    with raises_code(CheckpointError, "wrong_model_kind"):
        read_card(bundle)
    with raises_code(CheckpointError, "wrong_model_kind"):
        open_unet(resolve_model("tiny").folder)
    card = json.loads((bundle / CARD).read_text())
    (bundle / CARD).write_text(json.dumps({**card, "kind": "forest"}))
    with raises_code(CheckpointError, "invalid_card", "'forest'", "textseg, unet"):
        open_unet(bundle)


def test_channels_follow_their_phrases_and_the_note_says_which_are_new(opened: OpenedUNet) -> None:
    changed, note = with_phrases(opened, ("stenosis", "vessel"), seed=9)
    assert note == "channels of the U-Net: 1 kept; new: stenosis; removed: catheter"
    assert changed.card.spec.phrases == ("stenosis", "vessel")
    before, after = answer(opened), answer(changed)
    torch.testing.assert_close(after[:, 1], before[:, 0])
    assert not torch.allclose(after[:, 0], before[:, 1])
    turned, note = with_phrases(opened, ("catheter", "vessel"), seed=9)
    assert note == "channels of the U-Net: 2 kept; in another order"
    torch.testing.assert_close(answer(turned), before.flip(1))
    assert with_phrases(opened, ("vessel", "catheter"), seed=9) == (opened, "")


def test_images_are_standardized_by_channel_and_flat_ones_are_zero() -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    frame[:, :, 2] = 90
    planes = standardize(frame)
    assert planes.shape == (3, 5, 7)
    assert planes.dtype == np.float32
    np.testing.assert_allclose(planes[:2].mean(axis=(1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(planes[:2].std(axis=(1, 2)), 1, atol=1e-6)
    assert not planes[2].any()


@pytest.mark.parametrize(("patch", "message"), [(36, "cannot be halved 3 times"), (16, None), (18, "halved")])
def test_a_patch_must_be_halved_at_each_level(patch: int, message: str | None) -> None:
    if message is None:
        assert UNetShape(widths=(4, 4, 4, 4), patch=patch).patch == patch
        return
    with pytest.raises(ValueError, match=message):
        UNetShape(widths=(4, 4, 4, 4), patch=patch)


def test_info_lists_phrases_and_size(opened: OpenedUNet, bundle: Path) -> None:
    facts = describe(bundle)
    assert facts["parameters"]["total"] == sum(each.numel() for each in opened.model.parameters())
    assert facts["unet"]["phrases"] == ["vessel", "catheter"]
    assert facts["fingerprint"] == fingerprint_weights(bundle)
    lines = summarize(facts)
    assert lines[0].endswith("parameters, no text")
    assert "phrases: vessel, catheter" in lines


def test_the_filter_cannot_be_opened_as_a_model() -> None:
    with raises_code(CheckpointError, "wrong_model_kind"):
        open_model("frangi")


def test_a_unet_without_phrases_is_refused() -> None:
    with pytest.raises(ValueError, match="phrases"):
        new_unet(SHAPE, (), seed=0)
