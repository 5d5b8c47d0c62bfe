"""Streamed weights: named tensors that are read in blocks and never all in memory.

The classes read files, assemble tensors from rows of others, rename or hash tensors, and can be nested.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from vesalius.errors import CheckpointError, OutputError
from vesalius.lineage import TensorHash, hash_tensors
from vesalius.models.layout_mapping import Assembly, Rows
from vesalius.tensorfiles import Block, TensorLocation, TensorType, find_shards, locate_tensors, read_blocks

TORCH_TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""Name of a dtype in safetensors files -> torch dtype."""


class Weights(Protocol):
    """Named tensors that are read in blocks of rows."""

    @property
    def tensors(self) -> Mapping[str, TensorType]:
        """Name -> dtype and shape of each tensor."""
        ...

    def read(self, name: str, first: int = 0, count: int | None = None) -> Iterator[Block]:
        """The `count` rows (axis 0) of a tensor from row `first`, by default all remaining ones, in blocks.

        Each block is raw little-endian bytes and never splits an element; a scalar counts as one row.
        """
        ...


class FileWeights:
    """The tensors of safetensors files."""

    def __init__(self, locations: Mapping[str, TensorLocation]) -> None:
        self._locations = locations
        self.tensors = {name: location.type for name, location in locations.items()}

    def read(self, name: str, first: int = 0, count: int | None = None) -> Iterator[Block]:
        row_bytes = self.tensors[name].row_bytes
        count = _rows_to_read(self.tensors[name], first, count)
        yield from read_blocks(self._locations[name], first * row_bytes, count * row_bytes)


class AssembledWeights:
    """Tensors assembled on demand from rows of other weights."""

    def __init__(self, inner: Weights, assemblies: Mapping[str, Assembly]) -> None:
        self._inner = inner
        self._assemblies = assemblies
        self.tensors = {name: self._type_of(name) for name in assemblies}

    def _type_of(self, name: str) -> TensorType:
        """The dtype and shape of a tensor; CheckpointError if its sources have several dtypes."""
        assembly = self._assemblies[name]
        dtypes = {self._inner.tensors[rows.source].dtype for rows in assembly.rows}
        if len(dtypes) != 1:
            sources = ", ".join(sorted({rows.source for rows in assembly.rows}))
            raise CheckpointError(
                f"{name}: cannot be assembled from {sources}, which have several dtypes ({', '.join(sorted(dtypes))})",
                code="weights_mismatch",
                field=name,
            )
        return TensorType(dtypes.pop(), assembly.shape)

    def uses(self) -> dict[str, tuple[str, ...]]:
        """Name of a source tensor -> names of the tensors made from it."""
        made: dict[str, list[str]] = {}
        for name, assembly in self._assemblies.items():
            for source in dict.fromkeys(rows.source for rows in assembly.rows):
                made.setdefault(source, []).append(name)
        return {source: tuple(names) for source, names in made.items()}

    def read(self, name: str, first: int = 0, count: int | None = None) -> Iterator[Block]:
        count = _rows_to_read(self.tensors[name], first, count)
        for rows in rows_within(self._assemblies[name], first, count):
            yield from self._inner.read(rows.source, rows.first, rows.count)


class RenamedWeights:
    """Some tensors of other weights under new names."""

    def __init__(self, inner: Weights, names: Mapping[str, str]) -> None:
        self._inner = inner
        self._names = names
        self.tensors = {name: inner.tensors[inside] for name, inside in names.items()}

    def read(self, name: str, first: int = 0, count: int | None = None) -> Iterator[Block]:
        yield from self._inner.read(self._names[name], first, count)


class HashedWeights:
    """Weights hashed while they are read: a second thread hashes each tensor read from its first to its last row."""

    def __init__(self, inner: Weights) -> None:
        self._inner = inner
        self.tensors = inner.tensors
        self._digests = {name: hashlib.sha256() for name in inner.tensors}
        self._rows_hashed: dict[str, int | None] = dict.fromkeys(inner.tensors, 0)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None

    def read(self, name: str, first: int = 0, count: int | None = None) -> Iterator[Block]:
        count = _rows_to_read(self.tensors[name], first, count)
        if self._rows_hashed[name] != first:
            yield from self._inner.read(name, first, count)
            return
        self._rows_hashed[name] = None  # stays None if the reader stops halfway
        for block in self._inner.read(name, first, count):
            if self._last is not None:
                self._last.result()  # at most two blocks are in memory
            self._last = self._thread.submit(self._digests[name].update, block)
            yield block
        self._rows_hashed[name] = first + count

    def lines(self) -> dict[str, TensorHash]:
        """The hash of each tensor by name; tensors not yet read completely and in order are read now."""
        if self._last is not None:
            self._last.result()
        done = {name for name, tensor in self.tensors.items() if self._rows_hashed[name] == tensor.rows}
        rest = {name: tensor for name, tensor in self.tensors.items() if name not in done}
        lines = {name: (name, *self.tensors[name], self._digests[name].hexdigest()) for name in done}
        return lines | {line[0]: line for line in hash_tensors(rest, self._inner.read)}


def rows_within(assembly: Assembly, first: int, count: int) -> Iterator[Rows]:
    """The source rows of rows `first` to `first + count` of an assembled tensor.

    Example: for sources of 2, 3 and 2 rows, rows 1 to 4 are the last row of the first and the first two of the second.
    """
    start = 0
    for rows in assembly.rows:
        skipped = max(first - start, 0)
        taken = min(start + rows.count, first + count) - start - skipped
        if taken > 0:
            yield Rows(rows.source, rows.first + skipped, taken)
        start += rows.count


def _rows_to_read(tensor: TensorType, first: int, count: int | None) -> int:
    count = tensor.rows - first if count is None else count
    assert 0 <= first <= first + count <= tensor.rows, f"rows {first} to {first + count} of {tensor}"
    return count


def load_tensor(weights: Weights, name: str) -> torch.Tensor:
    """Read one tensor into memory."""
    dtype, shape = weights.tensors[name]
    buffer = torch.empty(weights.tensors[name].n_bytes, dtype=torch.uint8)
    view, at = buffer.numpy(), 0
    for block in weights.read(name):
        view[at : at + len(block)] = np.frombuffer(block, dtype=np.uint8)
        at += len(block)
    assert at == len(view), f"{name}: got {at} of {len(view)} bytes"
    return buffer.view(TORCH_TYPES[dtype]).reshape(shape)


def open_weights(folder: Path) -> FileWeights:
    """The weights in the safetensors files of a folder, under their names in the files.

    CheckpointError if there are none, or if a file or the shard index is damaged.
    """
    paths = find_shards(folder)
    if not paths:
        raise CheckpointError.at(folder, "has no weights (*.safetensors)", code="no_weights")
    return FileWeights(locate_tensors(paths))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of one small file; CheckpointError if it cannot be read or is damaged."""
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError.at(
            path, f"cannot be opened ({reason}); copy the model again", code="damaged_model"
        ) from error


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors to one small file; OutputError if that fails, for example on a full disk."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(contiguous, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OutputError.at(path.parent, f"cannot be written ({error})", code="write_failed") from error
