"""The container of weights: safetensors files read with distrust, and written in a stream.

A header is checked against the file before anything is believed: lengths, dtypes, and that the tensors fill the
data exactly. Nothing here knows what a model is, imports torch, or holds more than a block of a tensor.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from vesalius.errors import CheckpointError

BLOCK_BYTES = 8 << 20
"""A multiple of every item's size, so that a block never cuts a number."""

SHARD_BYTES = 5 * 10**9
"""Most bytes of tensors in one file, unless a single tensor has more: transformers' own limit is the same."""

# https://github.com/huggingface/safetensors/blob/main/safetensors/src/tensor.rs: MAX_HEADER_SIZE and Dtype
MAX_HEADER_BYTES = 100_000_000
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}

Block = bytes | memoryview
"""Bytes of a tensor, which stay as they are after the next block was asked for."""

Report = Callable[[int], None]
"""Told how many bytes more are done."""


def ignore(n_bytes: int) -> None:
    """A report that nobody reads."""


class TensorType(NamedTuple):
    """What a tensor is, without its numbers. `dtype` is a name of `ITEM_BYTES`: `F32`, `BF16`, ..."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def rows(self) -> int:
        """Length of the first dimension; a scalar is one row."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]


class TensorPlace(NamedTuple):
    """Where the bytes of a tensor lie: `n_bytes` from `offset` on in the file `path`."""

    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    n_bytes: int

    @property
    def type(self) -> TensorType:
        return TensorType(self.dtype, self.shape)


def find_places(paths: Iterable[Path]) -> dict[str, TensorPlace]:
    """Name -> place of each tensor of some files, in the order of the bytes.

    Raises CheckpointError, naming the file, where one is cut short or damaged, or where two hold the same tensor.
    """
    places: dict[str, TensorPlace] = {}
    for path in paths:
        for name, place in read_places(path).items():
            if name in places:
                raise CheckpointError(
                    f"{path}: holds the tensor {name}, and so does {places[name].path.name}"
                )
            places[name] = place
    return places


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder, which agree with its index of shards where it has one.

    Raises CheckpointError where the index names a file or a tensor that is not there, or does not name one that is.
    """
    paths = sorted(folder.glob("*.safetensors"))
    for index in sorted(folder.glob("*.safetensors.index.json")):
        _check_index(index, paths)
    return paths


def _check_index(index: Path, paths: list[Path]) -> None:
    try:
        shard_of = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        named = set(shard_of.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: is not an index of shards ({error})") from error
    present = {path.name: path for path in paths}
    if missing := sorted(str(shard) for shard in named if shard not in present):
        raise CheckpointError(f"{index}: names {missing[0]}, which is missing; copy the model again")
    if unnamed := sorted(present.keys() - named):
        raise CheckpointError(
            f"{index}: does not name {unnamed[0]}, which is beside it; remove the file or copy the model again"
        )
    held = {(name, shard) for shard, path in present.items() for name in read_places(path)}
    if astray := sorted(held ^ set(shard_of.items())):
        name, shard = astray[0]
        verb = "holds" if (name, shard) in held else "lacks"
        raise CheckpointError(
            f"{index}: disagrees with {shard}, which {verb} the tensor {name}; copy the model again"
        )


def read_places(path: Path) -> dict[str, TensorPlace]:
    """Name -> place of each tensor of one file, in the order of its bytes, which they fill exactly.

    Raises CheckpointError, naming the file, where it cannot be read, is cut short, or its header is wrong.
    """
    try:
        with path.open("rb") as file:
            n_bytes = os.fstat(file.fileno()).st_size
            header, start = _read_header(file, path, n_bytes)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return {
        name: TensorPlace(dtype, shape, path, start + first, last - first)
        for name, dtype, shape, (first, last) in _checked(header, path, n_bytes - start)
    }


def read_blocks(place: TensorPlace, first: int, n_bytes: int) -> Iterator[bytes]:
    """`n_bytes` of a tensor from its byte `first` on, in blocks; CheckpointError where the file ends early."""
    try:
        with place.path.open("rb", buffering=0) as file:
            file.seek(place.offset + first)
            while n_bytes:
                block = file.read(min(BLOCK_BYTES, n_bytes))
                if not block:
                    raise CheckpointError(f"{place.path}: ended early while it was read")
                n_bytes -= len(block)
                yield block
    except OSError as error:
        raise CheckpointError(f"{place.path}: cannot be read ({error.strerror})") from error


def _read_header(file: BinaryIO, path: Path, n_bytes: int) -> tuple[dict[str, Any], int]:
    """The JSON header of a safetensors file, and where its data begin."""
    length = int.from_bytes(file.read(8), "little")
    if n_bytes < 8 or length > min(MAX_HEADER_BYTES, n_bytes - 8):
        raise CheckpointError(f"{path}: is cut short or no safetensors file ({n_bytes} bytes); copy it again")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the safetensors header is not JSON; copy it again") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is not a JSON object; copy it again")
    header.pop("__metadata__", None)
    return header, 8 + length


def _checked(
    header: dict[str, Any], path: Path, data_bytes: int
) -> Iterator[tuple[str, str, tuple[int, ...], tuple[int, int]]]:
    """Name, dtype, shape and place of each tensor in the order of the data, which they must fill exactly."""
    entries = [(*_entry(name, value, path), name) for name, value in header.items()]
    end = 0
    for (first, last), dtype, shape, name in sorted(entries):
        if dtype not in ITEM_BYTES:
            raise CheckpointError(f"{path}: tensor {name} has the unknown dtype {dtype}")
        expected = math.prod(shape) * ITEM_BYTES[dtype]
        if first != end or last - first != expected:
            raise CheckpointError(
                f"{path}: tensor {name} should fill bytes {end} to {end + expected}; "
                f"its header says {first} to {last}"
            )
        end = last
        yield name, dtype, shape, (first, last)
    if end != data_bytes:
        raise CheckpointError(
            f"{path}: should hold {end} bytes of tensors but holds {data_bytes}; copy it again"
        )


def _entry(name: str, value: Any, path: Path) -> tuple[tuple[int, int], str, tuple[int, ...]]:
    try:
        dtype, shape, (first, last) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: tensor {name} needs dtype, shape and data_offsets in the header"
        ) from error
    if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in (*shape, first, last)):
        raise CheckpointError(f"{path}: tensor {name} has a dtype, shape or offset that no tensor has")
    return (first, last), dtype, shape


def write_shards(
    folder: Path,
    tensors: Mapping[str, TensorType],
    read: Callable[[str], Iterable[Block]],
    *,
    shard_bytes: int = SHARD_BYTES,
    on_bytes: Report = ignore,
    on_file: Callable[[Path], None] = lambda path: None,
) -> None:
    """Write tensors to `folder` in files named as transformers names them; several files have an index.

    `read` is asked for the bytes of each tensor when its turn comes, `on_file` is told each file that is complete.
    Errors as for `write_file`.
    """
    shards = _cut(tensors, shard_bytes)
    if len(shards) == 1:
        path = folder / "model.safetensors"
        write_file(path, tensors, read, on_bytes=on_bytes)
        on_file(path)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        path = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(path, shard, read, on_bytes=on_bytes)
        on_file(path)
        weight_map |= dict.fromkeys(shard, path.name)
    total = sum(tensor.n_bytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _cut(tensors: Mapping[str, TensorType], shard_bytes: int) -> list[dict[str, TensorType]]:
    """The tensors in order, a new file wherever the next one would make the last too large."""
    shards: list[dict[str, TensorType]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.n_bytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.n_bytes
    return shards


def write_file(
    path: Path,
    tensors: Mapping[str, TensorType],
    read: Callable[[str], Iterable[Block]],
    *,
    on_bytes: Report = ignore,
) -> None:
    """Write one new safetensors file and push it to the disk.

    Raises CheckpointError where the bytes of a tensor are not as many as its type says. OSError passes through:
    who makes the folder knows what to call it.
    """
    # wide numbers first: a float32 behind an odd number of float16 would lie where no float32 may
    ordered = dict(sorted(tensors.items(), key=lambda item: -ITEM_BYTES[item[1].dtype]))
    with path.open("xb") as file:
        file.write(_header(ordered))
        for name, tensor in ordered.items():
            written = 0
            for block in read(name):
                written += file.write(block)
                on_bytes(len(block))
            if written != tensor.n_bytes:
                raise CheckpointError(
                    f"{name}: {written} bytes came where {tensor.dtype} {list(tensor.shape)} needs {tensor.n_bytes}"
                )
        file.flush()
        os.fsync(file.fileno())
        if hasattr(
            os, "posix_fadvise"
        ):  # the next reader gets what the disk holds, not what memory remembers
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _header(tensors: Mapping[str, TensorType]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        first, end = end, end + tensor.n_bytes
        header[name] = {**tensor._asdict(), "data_offsets": [first, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned when the file is mapped
    return len(text).to_bytes(8, "little") + text
