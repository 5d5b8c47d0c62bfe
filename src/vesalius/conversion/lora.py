"""A training checkpoint merged into its base, tensor by tensor, and the proof that the merge is right.

Everything is in the official layout. A merged weight is W + alpha / rank times B @ A, computed in float32 over a few rows
at a time, and kept in a dtype that loses nothing of either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from vesalius.conversion.training_checkpoint import Lora, TrainingCheckpoint
from vesalius.errors import CheckpointError
from vesalius.models.presets import find_candidates
from vesalius.models.specs import Shape
from vesalius.models.weights import TORCH_TYPES, Weights
from vesalius.tensorfiles import BLOCK_BYTES, Block, TensorType

NAMES_OF_TYPES = {dtype: name for name, dtype in TORCH_TYPES.items()}
PROBES = 4
"""Random inputs on which a merged weight is compared with weight and adapter."""


class TensorWeights:
    """Tensors, in memory or mapped from a file, as weights."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self.tensors = {
            name: TensorType(NAMES_OF_TYPES[tensor.dtype], tuple(tensor.shape))
            for name, tensor in tensors.items()
        }

    def read(self, name: str, first: int = 0, count: int | None = None) -> Iterator[Block]:
        for start, n_rows in chunks(self.tensors[name], first, count):
            yield to_bytes(torch.atleast_1d(self._tensors[name])[start : start + n_rows])


class MergedWeights:
    """A base with the tensors of a training checkpoint in the place of its own, LoRA merged.

    Without an alpha the LoRA is left out, for a bundle that keeps it as an adapter. CheckpointError where the two do
    not fit, with the differences, and with the published size that would fit where there is one.
    """

    def __init__(self, base: Weights, checkpoint: TrainingCheckpoint, alpha: float | None) -> None:
        _check_fit(base, checkpoint)
        self.base, self.checkpoint = base, checkpoint
        self.lora: Mapping[str, Lora] = {} if alpha is None else checkpoint.lora
        self.scale = 0.0 if alpha is None or checkpoint.rank is None else alpha / checkpoint.rank
        self._full = TensorWeights(checkpoint.full)
        self.tensors = {**base.tensors, **self._full.tensors}
        for name, lora in self.lora.items():
            self.tensors[name] = TensorType(self._promoted(name, lora), lora.shape)

    def _promoted(self, name: str, lora: Lora) -> str:
        dtype = TORCH_TYPES[self.tensors[name].dtype]
        for half in lora:
            dtype = torch.promote_types(dtype, half.dtype)
        return NAMES_OF_TYPES[dtype]

    def read(self, name: str, first: int = 0, count: int | None = None) -> Iterator[Block]:
        if name not in self.lora:
            yield from self.unmerged(name).read(name, first, count)
            return
        for start, n_rows in chunks(self.tensors[name], first, count):
            yield to_bytes(self._merge(name, start, n_rows))

    def unmerged(self, name: str) -> Weights:
        """Where a tensor is before LoRA: the checkpoint, where it has the whole tensor, else the base."""
        return self._full if name in self._full.tensors else self.base

    def _merge(self, name: str, first: int, count: int) -> torch.Tensor:
        lora, dtype = self.lora[name], TORCH_TYPES[self.tensors[name].dtype]
        exact = torch.promote_types(dtype, torch.float32)
        change = lora.b[first : first + count].to(exact) @ lora.a.to(exact)
        return change.mul_(self.scale).add_(read_rows(self.unmerged(name), name, first, count)).to(dtype)


def chunks(tensor: TensorType, first: int = 0, count: int | None = None) -> Iterator[tuple[int, int]]:
    """First row and number of rows of parts that hold about a block."""
    end = tensor.rows if count is None else first + count
    step = max(BLOCK_BYTES // max(tensor.row_bytes, 1), 1)
    for start in range(first, end, step):
        yield start, min(step, end - start)


def read_rows(weights: Weights, name: str, first: int, count: int) -> torch.Tensor:
    """Rows `first` to `first + count` of a tensor, in memory of their own; a scalar is one row."""
    data = bytearray().join(weights.read(name, first, count))
    dtype, shape = weights.tensors[name]
    return torch.frombuffer(data, dtype=TORCH_TYPES[dtype]).reshape(count, *shape[1:])


def to_bytes(tensor: torch.Tensor) -> Block:
    """The numbers of a tensor of one or more dimensions, as they lie in a file."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True)
class MergeProof:
    """What merging did, measured on the tensors that came out."""

    error: float
    """Largest difference of outputs, merged against weight plus adapter, relative to the largest output."""
    worst: str | None
    """Weight of that difference; None where no LoRA was merged."""
    merged: tuple[str, ...]
    """Weights into which LoRA was merged."""
    changed: tuple[str, ...]
    """Tensors of the checkpoint that differ from the base's."""
    unchanged: tuple[str, ...]

    @property
    def remarks(self) -> list[str]:
        """What a reader should know, a sentence each."""
        remarks = []
        still = set(self.unchanged)
        if self.merged and still.issuperset(self.merged):
            remarks.append(
                f"LoRA changes nothing: none of the {len(self.merged)} merged weights differs from the base's"
            )
        if not self.changed:
            remarks.append("the checkpoint equals the base in every tensor that it holds")
        elif still:
            n_all = len(self.changed) + len(still)
            remarks.append(f"{len(still)} of the checkpoint's {n_all} tensors equal the base's")
        return remarks


def prove_merge(weights: MergedWeights, seed: int = 0) -> MergeProof:
    """Compare each merged weight, as it is read, with weight and adapter on random inputs, in float64.

    CheckpointError, naming the tensor, where one of the checkpoint or a merged one is not finite.
    """
    errors: dict[str, float] = {}
    same: dict[str, bool] = {}
    for name in sorted(weights.checkpoint.full.keys() | weights.lora.keys()):
        probe = Probe(weights.lora[name], weights.scale, seed) if name in weights.lora else None
        same[name] = _is_unchanged(weights, name, probe)
        if probe is not None:
            errors[name] = probe.relative_error
    worst = max(errors, key=errors.__getitem__, default=None)
    return MergeProof(
        error=errors[worst] if worst else 0.0,
        worst=worst,
        merged=tuple(errors),
        changed=tuple(name for name, is_same in same.items() if not is_same),
        unchanged=tuple(name for name, is_same in same.items() if is_same),
    )


def _is_unchanged(weights: MergedWeights, name: str, probe: Probe | None) -> bool:
    """Whether a tensor equals the base's; a merged weight is shown to the probe on the way."""
    same = True
    for first, count in chunks(weights.tensors[name]):
        new, old = read_rows(weights, name, first, count), read_rows(weights.base, name, first, count)
        if not torch.isfinite(new).all():
            raise CheckpointError(
                f"{weights.checkpoint.path}: {name} holds numbers that are not finite; "
                "the training diverged: use an earlier checkpoint"
            )
        dtype = torch.promote_types(new.dtype, old.dtype)
        same = same and torch.equal(new.to(dtype), old.to(dtype))
        if probe is not None:
            under = weights.unmerged(name)
            probe.compare(first, old if under is weights.base else read_rows(under, name, first, count), new)
    return same


class Probe:
    """Random inputs, and how far the outputs of a merged weight are from those of weight plus adapter."""

    def __init__(self, lora: Lora, scale: float, seed: int) -> None:
        a, self._b = (half.double() for half in lora)
        self._x = torch.randn(
            PROBES, a.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        self._low = scale * (self._x @ a.T)
        self._error = self._largest = 0.0

    def compare(self, first: int, weight: torch.Tensor, merged: torch.Tensor) -> None:
        """See the rows from `first` on of both."""
        beside = self._x @ weight.double().T + self._low @ self._b[first : first + len(weight)].T
        error = (self._x @ merged.double().T - beside).abs().max().item()
        self._error, self._largest = max(self._error, error), max(self._largest, beside.abs().max().item())

    @property
    def relative_error(self) -> float:
        """Largest difference of all rows seen, relative to the largest output."""
        return self._error / self._largest if self._largest else self._error


def _check_fit(base: Weights, checkpoint: TrainingCheckpoint) -> None:
    here = trained_shapes(checkpoint)
    shapes = {name: tensor.shape for name, tensor in base.tensors.items()}
    wrong = {name: shape for name, shape in here.items() if shapes.get(name) != shape}
    if not wrong:
        return
    lines = [
        f"{name}: {shape} in the checkpoint, {shapes.get(name, 'absent')} in the base"
        for name, shape in sorted(wrong.items())[:10]
    ]
    if len(wrong) > 10:
        lines.append(f"and {len(wrong) - 10} more")
    lines.append(_advice(find_candidates(here), find_candidates(shapes)))
    message = f"{checkpoint.path}: {len(wrong)} of its {len(here)} tensors do not fit the base"
    raise CheckpointError("\n  ".join([message, *lines]))


def _advice(checkpoint: list[str], base: list[str]) -> str:
    if not checkpoint:
        return "they are of no published size; give the model that the training started from as the base"
    if checkpoint == base:
        return (
            f"both are of the size of {' or '.join(base)}; give the very model that the training started from"
        )
    other = f", the base is {' or '.join(base)}" if base else ""
    return f"these weights fit {' or '.join(checkpoint)}{other}"


def trained_shapes(checkpoint: TrainingCheckpoint) -> dict[str, Shape]:
    """Official name -> shape of each tensor of the model that the checkpoint replaces or changes."""
    whole = {name: tuple(tensor.shape) for name, tensor in checkpoint.full.items()}
    return whole | {name: lora.shape for name, lora in checkpoint.lora.items()}
