"""Fingerprints of files, pixels, weights and data sets; versions and commit: where a result came from.

A fingerprint is a SHA-256 in hexadecimal. Nothing here imports torch, and weights are never held in memory.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
import subprocess
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vesalius.errors import CheckpointError, ImageError
from vesalius.types import Absent, MaskFile, MaskReference, Polygons, RleMask, Sample

BLOCK_BYTES = 1 << 20
PACKAGE = Path(__file__).resolve().parent

PARTS = {
    "vlm.": "vlm/*.safetensors",
    "sam.": "sam/*.safetensors",
    "projector.": "projector.safetensors",
    "adapter.": "adapter/*.safetensors",
}
"""Canonical prefix -> files of a bundle. Without an adapter a bundle has the fingerprint of its base."""

LIBRARIES = (
    "vesalius",
    "torch",
    "transformers",
    "accelerate",
    "numpy",
    "scipy",
    "pillow",
    "pycocotools",
    "safetensors",
)

# https://github.com/huggingface/safetensors/blob/main/safetensors/src/tensor.rs: MAX_HEADER_SIZE and Dtype
MAX_HEADER_BYTES = 100_000_000
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}

TensorLine = tuple[str, str, tuple[int, ...], str]
"""Name, dtype, shape and SHA-256 of the bytes of one tensor."""


def hash_file(path: Path) -> str:
    """SHA-256 of the file's bytes; OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_pixels(array: np.ndarray) -> str:
    """SHA-256 over dtype, shape and values, so that the same pixels agree whatever file they came from."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def fingerprint_weights(bundle: Path) -> str:
    """SHA-256 over canonical name, dtype, shape and bytes of each tensor of a bundle; errors as in `list_tensors`."""
    digest = hashlib.sha256()
    for name, line in sorted(list_tensors(bundle).items()):
        digest.update(json.dumps([name, *line[1:]]).encode() + b"\n")
    return digest.hexdigest()


def list_tensors(bundle: Path) -> dict[str, TensorLine]:
    """Canonical name -> each tensor of a bundle, hashed.

    Independent of sharding, of the order of keys and of everything that is not a tensor. Raises CheckpointError,
    naming the file, where one is missing, cut short or damaged, or where two hold the same tensor.
    """
    found: dict[str, tuple[TensorLine, Path]] = {}
    for prefix, pattern in PARTS.items():
        for path in sorted(bundle.glob(pattern)):
            for line in _tensors(path):
                name = prefix + line[0]
                if name in found:
                    raise CheckpointError(
                        f"{path}: holds the tensor {line[0]}, and so does {found[name][1].name}"
                    )
                found[name] = (line, path)
        _check_index(bundle / pattern)
    if not found:
        raise CheckpointError(f"{bundle}: has no weights; a bundle has vlm/, sam/ and projector.safetensors")
    return {name: line for name, (line, _) in found.items()}


def fingerprint_samples(samples: Iterable[Sample]) -> str:
    """SHA-256 over ids, prompts, mask references and image bytes; independent of the order and of folders.

    Raises ImageError, naming the file, where an image or a mask file cannot be read.
    """
    lines = sorted(json.dumps(_sample_line(sample)) for sample in samples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Version of Python and of the libraries that decide about results, or `not installed`."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit(package: Path = PACKAGE) -> str | None:
    """Commit of the working tree that the package runs from, ending in `-dirty` where tracked files differ.

    None if it runs from elsewhere, for instance installed into an environment inside another project's tree.
    """
    root = _git(package, "rev-parse", "--show-toplevel")
    if root is None or Path(root).resolve() / "src" / package.name != package.resolve():
        return None
    return _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _sample_line(sample: Sample) -> list[Any]:
    masks = sample.masks
    objects = None if masks is None else [[_mask_line(each) for each in group] for group in masks]
    return [sample.id, list(sample.prompts), objects, _hash_readable(sample.image)]


def _mask_line(reference: MaskReference) -> list[Any]:
    match reference:
        case Polygons(parts):
            return ["polygons", [[float(number) for number in part] for part in parts]]
        case RleMask(rle):
            return ["rle", list(rle["size"]), rle["counts"]]
        case MaskFile(path):
            return ["file", _hash_readable(path)]
        case Absent():
            return ["absent"]


def _hash_readable(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error


def _check_index(pattern: Path) -> None:
    """Refuse a sharded half of which a shard is missing."""
    for index in sorted(pattern.parent.glob("*.safetensors.index.json")):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: is not an index of shards ({error})") from error
        missing = sorted(shard for shard in shards if not (index.parent / shard).is_file())
        if missing:
            raise CheckpointError(f"{index}: names {missing[0]}, which is missing; copy the model again")


def _tensors(path: Path) -> tuple[TensorLine, ...]:
    try:
        stat = path.stat()
        return _read_tensors(path.resolve(), stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


# a file of the same path, size and time is not hashed twice: predictor and run both ask for it
@lru_cache(maxsize=256)
def _read_tensors(path: Path, n_bytes: int, time_ns: int) -> tuple[TensorLine, ...]:
    with path.open("rb") as file:
        header, start = _read_header(file, path, n_bytes)
        lines = []
        for name, dtype, shape, (first, last) in _checked(header, path, n_bytes - start):
            file.seek(start + first)
            digest = hashlib.sha256()
            for block in _blocks(file, last - first, path):
                digest.update(block)
            lines.append((name, dtype, shape, digest.hexdigest()))
    return tuple(lines)


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


def _blocks(file: BinaryIO, n_bytes: int, path: Path) -> Iterator[bytes]:
    while n_bytes:
        block = file.read(min(BLOCK_BYTES, n_bytes))
        if not block:
            raise CheckpointError(f"{path}: ended early while it was read")
        n_bytes -= len(block)
        yield block
