"""What a model allocates, counted while its own code runs on the meta device, where tensors have sizes but no numbers.

Floats are on the meta device. Small integers and booleans (token ids, image grids, padding) are computed, because the
code branches on them. So the count follows the code, whatever the family, and nothing has to be kept in step with it.
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
"""Values up to which integers and booleans are computed."""
INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
)
NARROWED = (
    *((functional, name) for name in ("linear", "conv2d", "conv3d", "conv_transpose2d")),
    *((torch, name) for name in ("matmul", "bmm")),
    *((torch.Tensor, name) for name in ("matmul", "__matmul__")),
)
"""What autocast computes in 16 bits; in 32 bits `KEPT`, and all else in the dtype of its inputs."""
KEPT = tuple((functional, name) for name in ("layer_norm", "group_norm", "softmax"))


class Meter:
    """Counts the bytes of tensors that are alive, and the most of them in each phase, within `running()`."""

    def __init__(self) -> None:
        self.live = 0
        self.peaks: dict[str, int] = {}
        """Phase -> most bytes that were alive in it."""
        self.phase = ""
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._copies: dict[int, torch.Tensor] | None = {}
        """What autocast made of the weights that train, which it keeps until the forward pass ends."""

    def ignore(self, module: torch.nn.Module) -> None:
        """Leave the weights of a model out of the count, and all views of them."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._remember(tensor.untyped_storage(), 0)

    def enter_with(self, phase: str, module: torch.nn.Module) -> None:
        """Let a phase begin whenever this module is called; it ends where the next one begins."""
        module.register_forward_pre_hook(lambda *_: self.enter(phase))

    def enter(self, phase: str) -> None:
        """Begin a phase, in which what is alive now still is."""
        self.phase = phase
        self.peaks[phase] = max(self.peaks.get(phase, 0), self.live)

    @contextmanager
    def running(self, autocast: torch.dtype | None = None) -> Iterator[None]:
        """Count within the block, in which autocast is as on a GPU, where a dtype of it is given."""
        with _Counted(self), _fused_attention(), _autocast(autocast, self):
            yield

    def end_forward(self) -> None:
        """Let go of what autocast keeps for the length of a forward pass."""
        self._copies = None

    def narrow(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A tensor of the meta device as autocast casts it: weights that train once, all else at each use."""
        if tensor.device != META or not tensor.is_floating_point() or tensor.dtype == dtype:
            return tensor
        if self._copies is None or not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(dtype)
        if id(tensor) not in self._copies:
            self._copies[id(tensor)] = tensor.to(dtype)
        return self._copies[id(tensor)]

    def count(self, tensor: torch.Tensor) -> None:
        """Add a tensor of the meta device for as long as it lives; a view of another costs nothing."""
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
        """Count bytes that stay alive."""
        self.live += size
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.live)


class _Counted(TorchDispatchMode):
    """Runs each operation and shows its results to a meter."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if func in INDEXING:
            args = (args[0], _as_places(args[1]), *args[2:])
        if any(tensor.device == META for tensor in inputs):
            args, kwargs = tree_map_only(torch.Tensor, _without_numbers, (args, kwargs))
            made = func(*args, **kwargs)
        else:
            made = func(*args, **kwargs)
            if isinstance(made, torch.Tensor) and _is_small_integer(made) and made.device == META:
                # asked for on the meta device, but made of nothing, or of numbers that are known
                made = func(*args, **(kwargs | {"device": torch.device("cpu")}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.meter.count(tensor)
        return made


def _is_small_integer(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.numel() <= COMPUTED


def _as_places(indices: Any) -> list[Any]:
    """The same indices with the places of what is true instead of a mask, whose count of places has no size."""
    places: list[Any] = []
    for index in indices:
        masked = index is not None and index.dtype == torch.bool and index.device != META
        places.extend(index.nonzero(as_tuple=True) if masked else (index,))
    return places


def _without_numbers(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device == META:
        return tensor
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=META)


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as the fused kernels do it, which never hold the scores of all pairs of tokens.

    On the meta device torch itself takes the way that holds them. Not a `TorchFunctionMode`: torch leaves it while a
    backward pass runs, and activation checkpointing calls attention there. Tensors with numbers are left alone.
    """
    original = functional.scaled_dot_product_attention

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *more: Any, **named: Any) -> Any:
        if query.device != META:
            return original(query, key, value, *more, **named)
        mask = named.get("attn_mask")
        if mask is not None and mask.dtype == torch.bool:  # the kernels add their mask, as floats
            mask = query.new_empty(mask.shape)
        return _Attention.apply(query, key, value, mask)

    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


@contextmanager
def _autocast(dtype: torch.dtype | None, meter: Meter) -> Iterator[None]:
    """What `torch.autocast` does, of which there is none on the meta device."""
    if dtype is None:
        yield
        return
    with ExitStack() as patches:
        for owner, name in (*NARROWED, (functional, "scaled_dot_product_attention")):
            patches.enter_context(_casting(owner, name, dtype, meter))
        for owner, name in KEPT:
            patches.enter_context(_casting(owner, name, torch.float32, meter))
        yield


@contextmanager
def _casting(owner: Any, name: str, dtype: torch.dtype, meter: Meter) -> Iterator[None]:
    """A function that casts its floats on the meta device first."""
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
    """What the fused kernels keep for the backward pass: their inputs, their output and one float a token and head."""

    @staticmethod
    def forward(
        context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        # in memory the heads of a token lie together, so that joining them costs nothing
        tokens_first = query.transpose(1, 2).shape[:-1]
        made = query.new_empty(*tokens_first, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        context.save_for_backward(query, key, value, mask, made, sums)
        return made

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        query, key, value = context.saved_tensors[:3]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None
