"""Safetensors files: headers are read without torch, and tensors are read and written in blocks.

The safetensors library reads and validates each header (JSON, dtypes, shapes, contiguous data). It cannot read or
write a tensor in blocks of bounded size; this module can.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from vesalius.errors import CheckpointError

BLOCK_BYTES = 8 << 20
"""Block size in bytes: a multiple of all element sizes, so that a block never splits an element."""

SHARD_BYTES = 5 * 10**9
"""Maximum bytes of tensors per file, unless a single tensor has more; the same limit as in transformers."""

# https://github.com/huggingface/safetensors/blob/main/safetensors/src/tensor.rs: Dtype
ITEM_BYTES = {
    **dict.fromkeys(["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"], 1),
    **dict.fromkeys(["I16", "U16", "F16", "BF16"], 2),
    **dict.fromkeys(["I32", "U32", "F32"], 4),
    **dict.fromkeys(["I64", "U64", "F64", "C64"], 8),
}

Block = bytes | memoryview
"""Consecutive bytes of a tensor; requesting the next block does not change them."""

Report = Callable[[int], None]
"""Progress callback: receives the number of bytes processed since the last call."""


def ignore(n_bytes: int) -> None:
    """A `Report` callback that does nothing."""


class TensorType(NamedTuple):
    """Dtype and shape of a tensor. `dtype` is a key of `ITEM_BYTES`: `F32`, `BF16`, ..."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def rows(self) -> int:
        """Length of the first dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]


class TensorLocation(NamedTuple):
    """Dtype, shape and location of a tensor on disk: `n_bytes` bytes of the file `path` from `offset` on."""

    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    n_bytes: int

    @property
    def type(self) -> TensorType:
        return TensorType(self.dtype, self.shape)


def locate_tensors(paths: Iterable[Path]) -> dict[str, TensorLocation]:
    """Name -> location of each tensor in the files, in file order.

    Raises CheckpointError, naming the file, if one is truncated or damaged, or if two contain the same tensor.
    """
    found: dict[str, TensorLocation] = {}
    for path in paths:
        for name, location in read_header(path).items():
            if name in found:
                other = found[name].path.name
                message = f"{path}: contains the tensor {name}, and so does {other}; remove one of the files"
                raise CheckpointError(message, code="repeated_tensor", path=path, field=name)
            found[name] = location
    return found


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder, checked against its shard index, if any.

    Raises CheckpointError if the index and the files disagree on a file or a tensor.
    """
    paths = sorted(folder.glob("*.safetensors"))
    for index in sorted(folder.glob("*.safetensors.index.json")):
        _check_index(index, paths)
    return paths


def _check_index(index: Path, paths: list[Path]) -> None:
    def refuse(reason: str, shard: str | None = None) -> CheckpointError:
        message = f"{index}: {reason}; copy the model again"
        return CheckpointError(message, code="shard_index_mismatch", path=index, field=shard)

    try:
        shard_of = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        named = set(shard_of.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise refuse(f"is not a shard index ({error})") from error
    present = {path.name: path for path in paths}
    if missing := sorted(str(shard) for shard in named if shard not in present):
        raise refuse(f"names {missing[0]}, which is missing", missing[0])
    if unnamed := sorted(present.keys() - named):
        raise refuse(f"does not name {unnamed[0]}, which is in the same folder", unnamed[0])
    held = {(name, shard) for shard, path in present.items() for name in read_header(path)}
    if astray := sorted(held ^ set(shard_of.items())):
        name, shard = astray[0]
        has = "contains" if (name, shard) in held else "lacks"
        raise refuse(f"disagrees with {shard}, which {has} the tensor {name}", shard)


def read_header(path: Path) -> dict[str, TensorLocation]:
    """Name -> location of each tensor of one file, in file order.

    Raises CheckpointError, naming the file, if it cannot be read, is truncated, or has an invalid header.
    """
    try:
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
        with safe_open(path, "numpy") as opened:
            types = {}
            for name in opened.offset_keys():
                tensor = opened.get_slice(name)
                types[name] = TensorType(tensor.get_dtype(), tuple(tensor.get_shape()))
    except OSError as error:
        raise _not_readable(path, error) from error
    except SafetensorError as error:
        message = f"{path}: is not a safetensors file, or is truncated or damaged ({error}); copy it again"
        raise CheckpointError(message, code="damaged_weights", path=path) from error
    locations = {}
    for name, tensor_type in types.items():
        if tensor_type.dtype not in ITEM_BYTES:
            message = f"{path}: tensor {name} has the unsupported dtype {tensor_type.dtype}"
            raise CheckpointError(message, code="unknown_dtype", path=path, field=name)
        locations[name] = TensorLocation(*tensor_type, path, start, tensor_type.n_bytes)
        start += tensor_type.n_bytes  # the library has checked that tensors are contiguous
    return locations


def _not_readable(path: Path, error: OSError) -> CheckpointError:
    message = f"{path}: cannot be read ({error.strerror})"
    return CheckpointError(message, code="unreadable_file", path=path)


def read_blocks(location: TensorLocation, first: int, n_bytes: int) -> Iterator[bytes]:
    """`n_bytes` bytes of a tensor from its byte `first` on, in blocks; CheckpointError if the file is truncated."""
    try:
        with location.path.open("rb", buffering=0) as file:
            file.seek(location.offset + first)
            while n_bytes:
                block = file.read(min(BLOCK_BYTES, n_bytes))
                if not block:
                    message = f"{location.path}: is truncated; copy it again"
                    raise CheckpointError(message, code="damaged_weights", path=location.path)
                n_bytes -= len(block)
                yield block
    except OSError as error:
        raise _not_readable(location.path, error) from error


def write_shards(
    folder: Path,
    tensors: Mapping[str, TensorType],
    read: Callable[[str], Iterable[Block]],
    *,
    shard_bytes: int = SHARD_BYTES,
    on_bytes: Report = ignore,
    on_file: Callable[[Path], None] = lambda path: None,
) -> None:
    """Write tensors to `folder` with the file names of transformers, and a shard index if there are several files.

    `read(name)` yields the bytes of a tensor. `on_file` receives the path of each complete file. Raises the errors of
    `write_tensors`.
    """
    shards = _split_shards(tensors, shard_bytes)
    if len(shards) == 1:
        path = folder / "model.safetensors"
        write_tensors(path, tensors, read, on_bytes=on_bytes)
        on_file(path)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        path = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(path, shard, read, on_bytes=on_bytes)
        on_file(path)
        weight_map |= dict.fromkeys(shard, path.name)
    total = sum(tensor.n_bytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _split_shards(tensors: Mapping[str, TensorType], shard_bytes: int) -> list[dict[str, TensorType]]:
    """The tensors of each shard, in order; a tensor that would exceed the limit begins a new shard."""
    shards: list[dict[str, TensorType]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.n_bytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.n_bytes
    return shards


def write_tensors(
    path: Path, tensors: Mapping[str, TensorType], read: Callable[[str], Iterable[Block]], *, on_bytes: Report = ignore
) -> None:
    """Write one new safetensors file and sync it to disk.

    Raises CheckpointError if the number of bytes of a tensor differs from its type. OSError is not caught, because the
    caller that created the folder reports it.
    """
    # widest dtypes first: a float32 after an odd number of float16 would be misaligned
    ordered = dict(sorted(tensors.items(), key=lambda item: -ITEM_BYTES[item[1].dtype]))
    with path.open("xb") as file:
        file.write(_header(ordered))
        for name, tensor in ordered.items():
            written = 0
            for block in read(name):
                written += file.write(block)
                on_bytes(len(block))
            if written != tensor.n_bytes:
                needed = f"{tensor.dtype} {list(tensor.shape)} needs {tensor.n_bytes}"
                message = f"{name}: got {written} bytes, but {needed}"
                raise CheckpointError(message, code="wrong_shape", path=path, field=name)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # verification then reads the disk, not the page cache
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _header(tensors: Mapping[str, TensorType]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        first, end = end, end + tensor.n_bytes
        header[name] = {**tensor._asdict(), "data_offsets": [first, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the data in a memory-mapped file
    return len(text).to_bytes(8, "little") + text
