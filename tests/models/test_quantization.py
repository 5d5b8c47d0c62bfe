"""Quantization to 8 and 4 bits: dequantized values, gradients, sizes, and quantized models."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.codes import raises_code
from torch import nn
from torch.nn.functional import linear

from vesalius.errors import CheckpointError, MissingExtraError, SettingError
from vesalius.inference.footprint import quantize_empty, weight_bytes
from vesalius.jobs.opening import load_predictor
from vesalius.models.cards import read_card
from vesalius.models.checkpoint import new_model, open_model, save_bundle
from vesalius.models.presets import find_spec
from vesalius.models.quantization import (
    Quantized,
    QuantizedLinear,
    as_linear,
    dequantize,
    kind_of,
    load_bitsandbytes,
    no_kernels_fetched,
    quantize,
)
from vesalius.models.stored_model import empty_model

pytest.importorskip("bitsandbytes", reason="needs the extra quantization")

BELOW = (-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004)
ABOVE = (0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)
NF4 = torch.tensor([*BELOW, 0.0, *ABOVE])
"""The 16 values of arXiv 2305.14314, appendix E."""


def layer(rows: int, columns: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(columns, rows, bias=bias)


# 64 divides neither the rows of the third nor of the fourth, nor all values of the last
@pytest.mark.parametrize("shape", [(16, 64), (48, 128), (64, 160), (6, 96), (3, 22)])
def test_four_bits_are_the_nearest_values_at_any_row_length(shape: tuple[int, int]) -> None:
    plain = layer(*shape)
    weight = plain.weight.detach()
    blocks = torch.cat([weight.flatten(), torch.zeros(-weight.numel() % 64)]).view(-1, 64)
    scales = blocks.abs().amax(dim=1, keepdim=True)
    nearest = NF4[(blocks[..., None] / scales[..., None] - NF4).abs().argmin(dim=-1)] * scales
    expected = nearest.flatten()[: weight.numel()].view(shape)
    small = QuantizedLinear(plain, "4bit", "cpu")
    assert torch.allclose(small.plain(), expected, atol=1e-6)
    x = torch.randn(2, 5, shape[1], requires_grad=True)
    made = small(x)
    assert torch.allclose(made, linear(x, expected, plain.bias), atol=1e-5)
    (gradient,) = torch.autograd.grad(made.square().sum(), x)
    (wanted,) = torch.autograd.grad(linear(x, expected, plain.bias).square().sum(), x)
    assert torch.allclose(gradient, wanted, atol=1e-4)
    assert not any(each.requires_grad for each in small.parameters())
    again = QuantizedLinear(as_linear(small.plain(), small.bias), "4bit", "cpu")
    assert torch.equal(again.weight, small.weight)
    assert torch.equal(again.scales, small.scales)


def test_eight_bits_are_within_half_a_step_of_each_row() -> None:
    plain = layer(24, 96)
    small = QuantizedLinear(plain, "8bit", "cpu")
    step = plain.weight.abs().amax(dim=1, keepdim=True) / 127
    # the matrix is rounded to 16 bits first
    assert ((small.plain() - plain.weight).abs() <= 0.5 * step + 1e-3 * plain.weight.abs()).all()
    x = torch.randn(7, 96)
    with torch.inference_mode():
        # inputs are of 8 bits too
        assert (small(x) - plain(x)).abs().max() <= 0.02 * plain(x).abs().max()


def test_autocast_takes_the_product_to_16_bits() -> None:
    small = QuantizedLinear(layer(8, 64), "4bit", "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert small(torch.randn(2, 64)).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_a_quantized_model_has_the_planned_size_and_can_be_dequantized(kind: Quantized) -> None:
    vlm = new_model("tiny", seed=0).model.vlm
    names = set(vlm.state_dict())
    head = vlm.lm_head.weight
    quantize(vlm, kind)
    assert kind_of(vlm) == kind
    assert vlm.lm_head.weight is head
    planned = weight_bytes(quantize_empty(empty_model(find_spec("tiny")), kind))
    scales = sum(each.nbytes for name, each in vlm.named_buffers() if name.endswith(".scales"))
    there = sum(each.nbytes for each in vlm.parameters()) + scales
    assert there == sum(planned[part] for part in ("vision encoder", "language model", "language head"))
    dequantize(vlm)
    assert kind_of(vlm) is None
    assert set(vlm.state_dict()) == names


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_a_quantized_predictor_reports_its_quantization(kind: Quantized) -> None:
    image = np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    plain = load_predictor("tiny", answer="force", device="cpu")
    small = load_predictor("tiny", answer="force", device="cpu", quantization=kind)
    assert "quantization" not in plain.description.settings
    assert small.description.settings["quantization"] == kind
    maps = [predictor(image, "blood vessel").logits for predictor in (plain, small)]
    assert maps[0].shape == maps[1].shape
    difference = np.abs(maps[0] - maps[1]).max() / np.abs(maps[0]).max()
    assert 0 < difference < {"8bit": 0.01, "4bit": 0.05}[kind]


def test_a_device_map_places_quantized_parts_and_scales_stay_float32(tmp_path: Path) -> None:
    save_bundle(tmp_path / "bundle", new_model("tiny", seed=0))
    whole = open_model(tmp_path / "bundle", dtype=torch.bfloat16, quantized="4bit")
    spread = open_model(tmp_path / "bundle", {"vlm": "cpu", "projector": "cpu", "sam": "cpu"}, torch.bfloat16, "4bit")
    for opened in (whole, spread):
        kinds = {name: each.dtype for name, each in opened.model.named_buffers() if name.endswith(".scales")}
        assert set(kinds.values()) == {torch.float32}
        assert opened.model.vlm.lm_head.weight.dtype == torch.bfloat16
    ids = torch.arange(2, 14)[None]
    with torch.no_grad():
        assert torch.equal(whole.model.vlm(input_ids=ids).logits, spread.model.vlm(input_ids=ids).logits)


def test_quantized_weights_cannot_be_offloaded(tmp_path: Path) -> None:
    save_bundle(tmp_path / "bundle", new_model("tiny", seed=0))
    with raises_code(CheckpointError, "invalid_device_map"):
        open_model(
            tmp_path / "bundle",
            {"vlm": "cpu", "vlm.lm_head": "disk", "projector": "cpu", "sam": "cpu"},
            quantized="4bit",
        )


def test_a_model_trained_over_4_bits_opens_in_4_bits_only(tmp_path: Path) -> None:
    opened = new_model("tiny", seed=0)
    quantize(opened.model.vlm, "4bit")
    save_bundle(tmp_path / "bundle", opened)
    assert read_card(tmp_path / "bundle").quantized == "4bit"
    again = open_model(tmp_path / "bundle")
    ids = torch.arange(2, 14)[None]
    with torch.no_grad():
        difference = again.model.vlm(input_ids=ids).logits - opened.model.eval().vlm(input_ids=ids).logits
    assert difference.abs().max() <= 1e-5
    with raises_code(CheckpointError, "unsupported_quantization", "4bit", "8bit"):
        open_model(tmp_path / "bundle", quantized="8bit")
    dequantize(opened.model.vlm)
    quantize(opened.model.vlm, "8bit")
    with raises_code(CheckpointError, "unsupported_quantization", "8-bit"):
        save_bundle(tmp_path / "bundle", opened)


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with raises_code(MissingExtraError, "missing_extra", "vesalius[quantization]"):
        load_bitsandbytes()


def test_importing_the_library_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    before = sys.modules.get("kernels")
    with no_kernels_fetched(), pytest.raises(ImportError):
        import kernels  # noqa: F401
    assert sys.modules.get("kernels") is before


def test_a_baseline_cannot_be_quantized() -> None:
    with pytest.raises(SettingError, match="quantization is for text-prompted models"):
        load_predictor("frangi", quantization="4bit")
