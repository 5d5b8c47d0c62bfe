"""Count the memory that a model allocates, by running its own code on the meta device, where tensors have no values.

Floats are on the meta device. Small integers and booleans (token ids, image grids, padding) have values, because the
code branches on them. The count follows the code of any model family without changes here. It is written here because
torch's fake tensors and its memory tracker abort on a build without CUDA, and a plan must work on any machine.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

META = torch.device("meta")
COMPUTED = 2**20
"""Largest number of elements for which integers and booleans get values."""
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
NARROWED = (
    *((functional, name) for name in ("linear", "conv2d", "conv3d", "conv_transpose2d")),
    *((torch, name) for name in ("matmul", "bmm")),
    *((torch.Tensor, name) for name in ("matmul", "__matmul__")),
)
"""Functions that autocast computes in 16 bits; it computes `WIDENED` in 32 bits, and all others in their input dtype."""
WIDENED = tuple((functional, name) for name in ("layer_norm", "group_norm", "softmax"))


class Meter:
    """Counts the bytes of live tensors, and their peak in each phase, within `running()`."""

    def __init__(self) -> None:
        self.live = 0
        self.peaks: dict[str, int] = {}
        """Phase -> peak bytes."""
        self.phase = ""
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._copies: dict[int, torch.Tensor] | None = {}
        """Autocast copies of trainable weights, which live until the end of the forward pass."""

    def ignore(self, module: torch.nn.Module) -> None:
        """Do not count the weights of a model, or views of them."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._remember(tensor.untyped_storage(), 0)

    def enter_with(self, phase: str, module: torch.nn.Module) -> None:
        """Begin a phase whenever this module is called; it ends when the next phase begins."""
        module.register_forward_pre_hook(lambda *_: self.enter(phase))

    def enter(self, phase: str) -> None:
        """Begin a phase; tensors that are live now count in it."""
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
        """A meta tensor cast like autocast does it: trainable weights once, other tensors at each use."""
        if tensor.device != META or not tensor.is_floating_point() or tensor.dtype == dtype:
            return tensor
        if self._copies is None or not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(dtype)
        if id(tensor) not in self._copies:
            self._copies[id(tensor)] = tensor.to(dtype)
        return self._copies[id(tensor)]

    def count(self, tensor: torch.Tensor) -> None:
        """Count a meta tensor as long as it lives; a view of another tensor costs nothing."""
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
        """Count bytes that are never freed."""
        self.live += size
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.live)


class _Counted(TorchDispatchMode):
    """Runs each operation and counts its results."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if func in INDEXING:
            args = (args[0], _as_indices(args[1]), *args[2:])
        if any(tensor.device == META for tensor in inputs):
            args, kwargs = tree_map_only(torch.Tensor, _without_values, (args, kwargs))
            made = func(*args, **kwargs)
        else:
            made = func(*args, **kwargs)
            if isinstance(made, torch.Tensor) and _is_small_integer(made) and made.device == META:
                # requested on the meta device, but computed from known values or from none
                made = func(*args, **(kwargs | {"device": torch.device("cpu")}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.meter.count(tensor)
        return made


def _is_small_integer(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.numel() <= COMPUTED


def _as_indices(indices: Any) -> list[Any]:
    """The same indices, with masks replaced by the indices of their true elements: a mask alone gives no result size."""
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
    """Count attention like the fused kernels, which never store the scores of all token pairs.

    On the meta device torch itself uses the kernel that stores them. A `TorchFunctionMode` would not do: torch leaves
    it during the backward pass, where activation checkpointing calls attention. Tensors with values are not affected.
    """
    original = functional.scaled_dot_product_attention

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *more: Any, **named: Any) -> Any:
        if query.device != META:
            return original(query, key, value, *more, **named)
        mask = named.get("attn_mask")
        if mask is not None and mask.dtype == torch.bool:  # the kernels add their mask as floats
            mask = query.new_empty(mask.shape)
        return _Attention.apply(query, key, value, mask)

    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


@contextmanager
def _autocast(dtype: torch.dtype | None, meter: Meter) -> Iterator[None]:
    """Emulate `torch.autocast`, which does not exist for the meta device."""
    if dtype is None:
        yield
        return
    with ExitStack() as patches:
        for owner, name in (*NARROWED, (functional, "scaled_dot_product_attention")):
            patches.enter_context(_casting(owner, name, dtype, meter))
        for owner, name in WIDENED:
            patches.enter_context(_casting(owner, name, torch.float32, meter))
        yield


@contextmanager
def _casting(owner: Any, name: str, dtype: torch.dtype, meter: Meter) -> Iterator[None]:
    """Let a function cast its meta tensors of floats first."""
    original, inherited = getattr(owner, name), name not in vars(owner)

    @wraps(original)
    def run(*args: Any, **named: Any) -> Any:
        args, named = tree_map_only(torch.Tensor, partial(meter.narrow, dtype=dtype), (args, named))
        return original(*args, **named)

    setattr(owner, name, run)
    try:
        yield
    finally:
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


class _Attention(torch.autograd.Function):
    """Attention with the tensors that fused kernels keep for the backward pass: inputs, output, a float per token and head."""

    @staticmethod
    def forward(
        context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        # the heads of a token are adjacent in memory, so that joining them costs nothing
        tokens_first = query.transpose(1, 2).shape[:-1]
        made = query.new_empty(*tokens_first, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        context.save_for_backward(query, key, value, mask, made, sums)
        return made

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        query, key, value = context.saved_tensors[:3]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None
