"""Merge LoRA into the base tensor by tensor, and check the merge.

All names are those of the official layout. A merged weight is W + alpha / rank * B @ A, computed in float32 in blocks
of rows, and stored in a dtype that represents W, A and B exactly. PEFT merges in memory only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from vesalius.conversion.training_checkpoint import Lora, TrainingCheckpoint
from vesalius.errors import CheckpointError
from vesalius.models.presets import find_candidates
from vesalius.models.specs import TensorShape
from vesalius.models.stored_model import shapes_of
from vesalius.models.tensor_differences import list_differences
from vesalius.models.weights import TORCH_TYPES, Weights
from vesalius.tensorfiles import BLOCK_BYTES, Block, TensorType

NAMES_OF_TYPES = {dtype: name for name, dtype in TORCH_TYPES.items()}
PROBES = 4
"""Number of random inputs on which a merged weight is compared with weight plus adapter."""


class TensorWeights:
    """`Weights` of tensors in memory, or memory-mapped from a file."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self.tensors = {
            name: TensorType(NAMES_OF_TYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()
        }

    def read(self, name: str, first: int = 0, count: int | None = None) -> Iterator[Block]:
        for start, n_rows in chunks(self.tensors[name], first, count):
            yield to_bytes(torch.atleast_1d(self._tensors[name])[start : start + n_rows])


class MergedWeights:
    """The weights of a base with a training checkpoint applied: full tensors replace the base's, and LoRA is merged.

    Without `alpha`, LoRA is not merged, for a bundle that keeps it as an adapter. If the tensors do not fit,
    CheckpointError lists the differences and names the published models that fit.
    """

    def __init__(self, base: Weights, checkpoint: TrainingCheckpoint, alpha: float | None) -> None:
        _check_fit(shapes_of(base), checkpoint)
        self.base, self.checkpoint = base, checkpoint
        self.lora: Mapping[str, Lora] = {} if alpha is None else checkpoint.lora
        self.scale = 0.0 if alpha is None or checkpoint.rank is None else alpha / checkpoint.rank
        self._full = TensorWeights(checkpoint.full)
        self.tensors = {**base.tensors, **self._full.tensors}
        for name, lora in self.lora.items():
            self.tensors[name] = TensorType(self._promoted(name, lora), lora.shape)

    def _promoted(self, name: str, lora: Lora) -> str:
        dtype = TORCH_TYPES[self.tensors[name].dtype]
        for factor in lora:
            dtype = torch.promote_types(dtype, factor.dtype)
        return NAMES_OF_TYPES[dtype]

    def read(self, name: str, first: int = 0, count: int | None = None) -> Iterator[Block]:
        if name not in self.lora:
            yield from self.unmerged(name).read(name, first, count)
            return
        for start, n_rows in chunks(self.tensors[name], first, count):
            yield to_bytes(self._merge(name, start, n_rows))

    def unmerged(self, name: str) -> Weights:
        """The source of a tensor before LoRA: the checkpoint if it has the full tensor, else the base."""
        return self._full if name in self._full.tensors else self.base

    def _merge(self, name: str, first: int, count: int) -> torch.Tensor:
        lora, dtype = self.lora[name], TORCH_TYPES[self.tensors[name].dtype]
        exact = torch.promote_types(dtype, torch.float32)
        change = lora.b[first : first + count].to(exact) @ lora.a.to(exact)
        return change.mul_(self.scale).add_(read_rows(self.unmerged(name), name, first, count)).to(dtype)


def chunks(tensor: TensorType, first: int = 0, count: int | None = None) -> Iterator[tuple[int, int]]:
    """First row and number of rows of consecutive chunks of about `BLOCK_BYTES`."""
    end = tensor.rows if count is None else first + count
    step = max(BLOCK_BYTES // max(tensor.row_bytes, 1), 1)
    for start in range(first, end, step):
        yield start, min(step, end - start)


def read_rows(weights: Weights, name: str, first: int, count: int) -> torch.Tensor:
    """Rows `first` to `first + count` of a tensor, copied; a scalar counts as one row."""
    data = bytearray().join(weights.read(name, first, count))
    dtype, shape = weights.tensors[name]
    return torch.frombuffer(data, dtype=TORCH_TYPES[dtype]).reshape(count, *shape[1:])


def to_bytes(tensor: torch.Tensor) -> Block:
    """The raw bytes of a tensor of one or more dimensions."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True)
class MergeCheck:
    """Merge error, and the tensors that the checkpoint changes."""

    error: float
    """Largest output difference between merged weight and weight plus adapter, relative to the largest output."""
    worst: str | None
    """Weight with the largest difference; None if no LoRA was merged."""
    merged: tuple[str, ...]
    """Names of the weights with merged LoRA."""
    changed: tuple[str, ...]
    """Tensors of the checkpoint that differ from the base."""
    unchanged: tuple[str, ...]

    @property
    def remarks(self) -> list[str]:
        """Remarks on an ineffective training, one sentence each."""
        remarks = []
        unchanged = set(self.unchanged)
        if self.merged and unchanged.issuperset(self.merged):
            remarks.append(f"LoRA changes nothing: all {len(self.merged)} merged weights equal those of the base")
        if not self.changed:
            remarks.append("all tensors of the checkpoint equal those of the base")
        elif unchanged:
            n_all = len(self.changed) + len(unchanged)
            remarks.append(f"{len(unchanged)} of the checkpoint's {n_all} tensors equal those of the base")
        return remarks


def check_merge(weights: MergedWeights) -> MergeCheck:
    """Compare each merged weight, as it is read, with weight plus adapter on random inputs in float64.

    CheckpointError, naming the tensor, if a tensor of the checkpoint or a merged one is not finite.
    """
    errors: dict[str, float] = {}
    same: dict[str, bool] = {}
    for name in sorted(weights.checkpoint.full.keys() | weights.lora.keys()):
        probe = Probe(weights.lora[name], weights.scale) if name in weights.lora else None
        same[name] = _is_unchanged(weights, name, probe)
        if probe is not None:
            errors[name] = probe.relative_error
    worst = max(errors, key=errors.__getitem__, default=None)
    return MergeCheck(
        error=errors[worst] if worst else 0.0,
        worst=worst,
        merged=tuple(errors),
        changed=tuple(name for name, is_same in same.items() if not is_same),
        unchanged=tuple(name for name, is_same in same.items() if is_same),
    )


def _is_unchanged(weights: MergedWeights, name: str, probe: Probe | None) -> bool:
    """True if a tensor equals the base's; merged weights are also compared by the probe, chunk by chunk."""
    same = True
    for first, count in chunks(weights.tensors[name]):
        new, old = read_rows(weights, name, first, count), read_rows(weights.base, name, first, count)
        if not torch.isfinite(new).all():
            raise CheckpointError.at(
                weights.checkpoint.path,
                f"{name} has NaN or infinite values, so the training diverged; use an earlier checkpoint",
                code="not_finite_weights",
                field=name,
            )
        dtype = torch.promote_types(new.dtype, old.dtype)
        same = same and torch.equal(new.to(dtype), old.to(dtype))
        if probe is not None:
            under = weights.unmerged(name)
            probe.compare(first, old if under is weights.base else read_rows(under, name, first, count), new)
    return same


class Probe:
    """Compares the outputs of a merged weight with those of weight plus adapter, on random inputs."""

    def __init__(self, lora: Lora, scale: float) -> None:
        a, self._b = (factor.double() for factor in lora)
        generator = torch.Generator().manual_seed(0)
        self._x = torch.randn(PROBES, a.shape[1], dtype=torch.float64, generator=generator)
        self._low = scale * (self._x @ a.T)
        self._error = self._largest = 0.0

    def compare(self, first: int, weight: torch.Tensor, merged: torch.Tensor) -> None:
        """Compare the rows of `weight` and `merged`, which start at row `first`."""
        beside = self._x @ weight.double().T + self._low @ self._b[first : first + len(weight)].T
        error = (self._x @ merged.double().T - beside).abs().max().item()
        self._error, self._largest = max(self._error, error), max(self._largest, beside.abs().max().item())

    @property
    def relative_error(self) -> float:
        """Largest difference over all compared rows, relative to the largest output."""
        return self._error / self._largest if self._largest else self._error


def _check_fit(base: Mapping[str, TensorShape], checkpoint: TrainingCheckpoint) -> None:
    trained = checkpoint.shapes
    table = list_differences(trained, {name: base[name] for name in trained.keys() & base.keys()})
    if table:
        raise CheckpointError.at(
            checkpoint.path,
            f"the tensors do not fit the base: {table}; {_advice(find_candidates(trained), find_candidates(base))}",
            code="wrong_base",
        )


def _advice(checkpoint: list[str], base: list[str]) -> str:
    if not checkpoint:
        return "they fit no published model; name the model that training started from as the base"
    if checkpoint == base:
        return f"both have the size of {' or '.join(base)}; name the model that training started from"
    other = f", the base is {' or '.join(base)}" if base else ""
    return f"these weights fit {' or '.join(checkpoint)}{other}"
