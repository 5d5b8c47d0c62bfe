"""Matrices of 8 or 4 bits a value, by bitsandbytes: a vision-language half of a half or a quarter of the bytes.

8 bits: LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339), a scale for each row; for prediction. 4 bits: NF4 of QLoRA
(Dettmers et al. 2023, arXiv 2305.14314), a scale for each 64 values, themselves not quantized; gradients pass through
it to what trains below. A model is opened whole and becomes smaller matrix by matrix.
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
"""Values of a matrix of 4 bits that share a scale."""
OUTLIER = 6.0
"""Inputs beyond it are multiplied in 16 bits by LLM.int8()."""


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose matrix is bytes and scales."""

    scales: torch.Tensor
    """float32 (out,) of 8 bits; float32 (ceil(out * in / 64),) of 4 bits."""

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
        """As of a linear layer, in the dtype of the input, or of autocast."""
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
        # it takes inputs of float16 alone, and remarks at each call that it makes them so
        return bitsandbytes.matmul(x.to(torch.float16), self.weight.data, state=state).to(x.dtype)

    def plain(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """(out, in): the numbers that the bytes stand for."""
        if self.kind == "8bit":
            return (self.weight.float() * (self.scales / 127)[:, None]).to(dtype)
        functional = load_bitsandbytes().functional
        # as one row: on CPUs bitsandbytes 0.50 takes the wrong scales where 64 does not divide the length of a row
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
    """x W^T with W in 4 bits: the backward pass makes the numbers of W again, and none are kept for it."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, layer: QuantizedLinear) -> torch.Tensor:
        """float (.., in) to (.., out)."""
        context.layer = layer
        return linear(x, layer.plain(x.dtype))

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Of x; W is frozen."""
        return gradient @ context.layer.plain(gradient.dtype), None


def quantize(vlm: PreTrainedModel, kind: Quantized, device: str | torch.device | int = "cpu") -> None:
    """Turn the matrices of a vision-language half into bytes on `device`, one after the other.

    Embeddings, head and norms stay. MissingExtraError where bitsandbytes is not installed.
    """
    for path, module in list(vlm.model.named_modules()):
        if isinstance(module, nn.Linear):
            replace_module(vlm.model, path, QuantizedLinear(module, kind, device))


def dequantize(vlm: PreTrainedModel) -> None:
    """Turn bytes back into the numbers that they stand for, in float32; the half computes what it did."""
    for path, module in list(vlm.model.named_modules()):
        if isinstance(module, QuantizedLinear):
            replace_module(vlm.model, path, as_linear(module.plain(), module.bias))


def kind_of(vlm: PreTrainedModel) -> Quantized | None:
    """What the matrices of a vision-language half were turned into; None of a plain one."""
    return next((each.kind for each in vlm.model.modules() if isinstance(each, QuantizedLinear)), None)


def as_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A linear layer of these numbers."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(weight.dtype))
    return layer


def load_bitsandbytes() -> Any:
    """The library; MissingExtraError where it is not installed."""
    with no_kernels_fetched():
        return require("bitsandbytes", "quantization", "models of 8 or 4 bits")


@contextmanager
def no_kernels_fetched() -> Iterator[None]:
    """While bitsandbytes is imported: on some CPUs it asks the hub for a faster kernel, which would be run unseen."""
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
