"""`Meter`: count the memory that a model allocates by running its code on the meta device, for any model family.

Float tensors have no values. Small integer and boolean tensors (token ids, image grids, padding) do, because model code
branches on them. torch's fake tensors and memory tracker are not used: they abort on a build without CUDA.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial, wraps
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

META = torch.device("meta")
COMPUTED = 2**20
"""Maximum number of elements of integer and boolean tensors with values."""
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
NARROWED = (
    *((functional, name) for name in ("linear", "conv2d", "conv3d", "conv_transpose2d")),
    *((torch, name) for name in ("matmul", "bmm")),
    *((torch.Tensor, name) for name in ("matmul", "__matmul__")),
)
"""Functions that autocast runs in half precision; it runs `WIDENED` in float32, and all others in their input dtype."""
WIDENED = tuple((functional, name) for name in ("layer_norm", "group_norm", "softmax"))


class Meter:
    """Counts the bytes of live tensors and their peak in each phase, within `running()`."""

    def __init__(self) -> None:
        self.live = 0
        self.peaks: dict[str, int] = {}
        """Phase -> peak bytes."""
        self.phase = ""
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._copies: dict[int, torch.Tensor] | None = {}
        """Autocast copies of trainable weights; they live until the end of the forward pass."""

    def ignore(self, module: torch.nn.Module) -> None:
        """Exclude the weights of a model, and views of them, from the count."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._remember(tensor.untyped_storage(), 0)

    def enter_with(self, phase: str, module: torch.nn.Module) -> None:
        """Begin a phase at each call of this module; it ends when another phase begins."""
        module.register_forward_pre_hook(lambda *_: self.enter(phase))

    def enter(self, phase: str) -> None:
        """Begin a phase; all tensors that are live now count in it."""
        self.phase = phase
        self.peaks[phase] = max(self.peaks.get(phase, 0), self.live)

    @contextmanager
    def running(self, autocast: torch.dtype | None = None) -> Iterator[None]:
        """Count allocations in the block, emulating CUDA autocast to the dtype `autocast` if it is set."""
        with _Counted(self), _fused_attention(), _autocast(autocast, self):
            yield

    def end_forward(self) -> None:
        """Drop the autocast copies of weights, as autocast does after the forward pass."""
        self._copies = None

    def narrow(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Cast a meta tensor as autocast does: trainable weights once, other tensors at each use."""
        if tensor.device != META or not tensor.is_floating_point() or tensor.dtype == dtype:
            return tensor
        if self._copies is None or not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(dtype)
        if id(tensor) not in self._copies:
            self._copies[id(tensor)] = tensor.to(dtype)
        return self._copies[id(tensor)]

    def count(self, tensor: torch.Tensor) -> None:
        """Count a meta tensor until it is freed; views cost nothing."""
        storage = tensor.untyped_storage()
        if tensor.device == META and id(storage) not in self._known:
            self._remember(storage, storage.nbytes())

    def _remember(self, storage: torch.UntypedStorage, size: int) -> None:
        key = id(storage)

        def forget(_: Any) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, forget)
        self.add(size)

    def add(self, size: int) -> None:
        """Count bytes that stay allocated."""
        self.live += size
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.live)


class _Counted(TorchDispatchMode):
    """Runs each operation and counts its output tensors."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if func in INDEXING:
            args = (args[0], _as_indices(args[1]), *args[2:])
        on_meta = any(tensor.device == META for tensor in inputs)
        if on_meta:
            args, kwargs = tree_map_only(torch.Tensor, _without_values, (args, kwargs))
        made = func(*args, **kwargs)
        on_request = isinstance(made, torch.Tensor) and made.device == META and not on_meta
        if on_request and not made.is_floating_point() and made.numel() <= COMPUTED:
            made = func(*args, **(kwargs | {"device": torch.device("cpu")}))  # all inputs have values
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.meter.count(tensor)
        return made


def _as_indices(indices: Any) -> list[Any]:
    """Replace boolean masks by the indices of their true elements, because a mask alone gives no result size."""
    found: list[Any] = []
    for index in indices:
        masked = index is not None and index.dtype == torch.bool and index.device != META
        found.extend(index.nonzero(as_tuple=True) if masked else (index,))
    return found


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device == META:
        return tensor
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=META)


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Count attention as fused kernels allocate it: without the scores of all token pairs.

    On the meta device torch uses the kernel that stores these scores. A `TorchFunctionMode` cannot replace it, because
    torch leaves the mode in the backward pass, where gradient checkpointing calls attention again.
    """
    original = functional.scaled_dot_product_attention

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *more: Any, **named: Any) -> Any:
        if query.device != META:
            return original(query, key, value, *more, **named)
        mask = named.get("attn_mask")
        if mask is not None and mask.dtype == torch.bool:  # the kernels add their mask as floats
            mask = query.new_empty(mask.shape)
        return _Attention.apply(query, key, value, mask)

    with patch.object(functional, "scaled_dot_product_attention", attend):
        yield


@contextmanager
def _autocast(dtype: torch.dtype | None, meter: Meter) -> Iterator[None]:
    """Emulate `torch.autocast`, which does not support the meta device."""
    if dtype is None:
        yield
        return
    with ExitStack() as patches:
        for owner, name in (*NARROWED, (functional, "scaled_dot_product_attention")):
            patches.enter_context(_casting(owner, name, dtype, meter))
        for owner, name in WIDENED:
            patches.enter_context(_casting(owner, name, torch.float32, meter))
        yield


def _casting(owner: Any, name: str, dtype: torch.dtype, meter: Meter) -> AbstractContextManager[Any]:
    """Make a function cast its floating-point meta tensors to `dtype` first."""
    original = getattr(owner, name)

    @wraps(original)
    def run(*args: Any, **named: Any) -> Any:
        args, named = tree_map_only(torch.Tensor, partial(meter.narrow, dtype=dtype), (args, named))
        return original(*args, **named)

    return patch.object(owner, name, run)


class _Attention(torch.autograd.Function):
    """Attention that saves inputs, output and a float per token and head for the backward pass, like fused kernels."""

    @staticmethod
    def forward(
        context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        # a token's heads are adjacent in memory, so concatenating them allocates nothing
        tokens_first = query.transpose(1, 2).shape[:-1]
        made = query.new_empty(*tokens_first, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        context.save_for_backward(query, key, value, mask, made, sums)
        return made

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        query, key, value = context.saved_tensors[:3]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None
