"""Quantization of the vision-language model to 8 or 4 bits per value, by bitsandbytes.

8 bits: LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339), with a scale per row, for prediction. 4 bits: NF4 of QLoRA
(Dettmers et al. 2023, arXiv 2305.14314), with an unquantized scale per 64 values; gradients pass through to trainable
layers below. A model is opened in full precision and quantized matrix by matrix. The layer classes are our own, since those
of bitsandbytes hide the tensors saved for the backward pass from the memory estimate.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from vesalius.extras import require
from vesalius.models.module_replacement import replace_module

Quantized = Literal["8bit", "4bit"]
BLOCK = 64
"""Number of 4-bit values that share a scale."""
OUTLIER = 6.0
"""Absolute value of an input above which LLM.int8() multiplies in 16 bits."""


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with a quantized matrix and its scales."""

    scales: torch.Tensor
    """float32 (out,) for 8 bits; float32 (ceil(out * in / 64),) for 4 bits."""

    def __init__(self, layer: nn.Linear, kind: Quantized, device: str | torch.device | int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.kind = layer.in_features, layer.out_features, kind
        functional = load_bitsandbytes().functional
        weight = layer.weight.detach().to(device)
        if kind == "4bit":
            values, state = functional.quantize_4bit(
                weight, blocksize=BLOCK, quant_type="nf4", compress_statistics=False
            )
            scales = state.absmax
        else:
            values, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        self.weight = nn.Parameter(values, requires_grad=False)
        self.register_buffer("scales", scales.float())
        bias = layer.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(device), requires_grad=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The layer's output, in the dtype of autocast or, without autocast, of the input."""
        device = input.device.type
        x = input.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else input
        bias = None if self.bias is None else self.bias.to(x.dtype)
        product = Product4bit.apply(x, self) if self.kind == "4bit" else self._multiply_8bit(x)
        return product if bias is None else product + bias

    def _multiply_8bit(self, x: torch.Tensor) -> torch.Tensor:
        bitsandbytes = load_bitsandbytes()
        state = bitsandbytes.MatmulLtState()
        state.CB, state.SCB = self.weight.data, self.scales
        state.threshold, state.has_fp16_weights, state.is_training = OUTLIER, False, False
        # LLM.int8() needs float16 inputs, and bitsandbytes warns whenever it has to convert them
        return bitsandbytes.matmul(x.to(torch.float16), self.weight.data, state=state).to(x.dtype)

    def plain(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The dequantized matrix (out, in)."""
        if self.kind == "8bit":
            return (self.weight.float() * (self.scales / 127)[:, None]).to(dtype)
        functional = load_bitsandbytes().functional
        # as one row, since on CPUs bitsandbytes 0.50 uses wrong scales if 64 does not divide the length of a row
        state = functional.QuantState(
            absmax=self.scales,
            shape=torch.Size((1, self.out_features * self.in_features)),
            dtype=dtype,
            blocksize=BLOCK,
            code=functional.get_4bit_type("nf4", device=self.scales.device),
            quant_type="nf4",
        )
        return functional.dequantize_4bit(self.weight, state).view(self.out_features, self.in_features)


class Product4bit(torch.autograd.Function):
    """x W^T with W in 4 bits; the backward pass dequantizes W again instead of keeping it."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, layer: QuantizedLinear) -> torch.Tensor:
        """float (.., in) to float (.., out)."""
        context.layer = layer
        return linear(x, layer.plain(x.dtype))

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient of x; W is frozen."""
        return gradient @ context.layer.plain(gradient.dtype), None


def quantize(vlm: PreTrainedModel, kind: Quantized, device: str | torch.device | int = "cpu") -> None:
    """Quantize the matrices of a vision-language model on `device`, one after the other.

    Embeddings, head and norms are not quantized. MissingExtraError if bitsandbytes is not installed.
    """
    for path, module in list(vlm.model.named_modules()):
        if isinstance(module, nn.Linear):
            replace_module(vlm.model, path, QuantizedLinear(module, kind, device))


def dequantize(vlm: PreTrainedModel) -> None:
    """Dequantize all matrices to float32; the outputs stay the same."""
    for path, module in list(vlm.model.named_modules()):
        if isinstance(module, QuantizedLinear):
            replace_module(vlm.model, path, as_linear(module.plain(), module.bias))


def kind_of(vlm: PreTrainedModel) -> Quantized | None:
    """The quantization of a vision-language model, None if it is not quantized."""
    return next((each.kind for each in vlm.model.modules() if isinstance(each, QuantizedLinear)), None)


def as_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A linear layer with this matrix and bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(weight.dtype))
    return layer


def load_bitsandbytes() -> Any:
    """The module bitsandbytes; MissingExtraError if it is not installed."""
    with no_kernels_fetched():
        return require("bitsandbytes", "quantization", "8-bit and 4-bit models")


@contextmanager
def no_kernels_fetched() -> Iterator[None]:
    """Prevent bitsandbytes, if imported within the block, from downloading and running a CPU kernel of the hub."""
    if "bitsandbytes" in sys.modules:
        yield
        return
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, kernels = log.level, sys.modules.get("kernels")
    log.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        log.setLevel(level)
        if kernels is None:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = kernels
