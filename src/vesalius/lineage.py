"""Provenance of results: fingerprints of files, pixels, weights and datasets, library versions, and the commit.

A fingerprint is a SHA-256 in hexadecimal. This module does not import torch, and weights are hashed in blocks.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vesalius.errors import CheckpointError, ImageError, OutputError
from vesalius.files import write_json
from vesalius.tensorfiles import (
    Block,
    TensorLocation,
    TensorType,
    find_shards,
    locate_tensors,
    read_blocks,
    read_header,
)
from vesalius.types import Absent, MaskFile, MaskReference, Polygons, RleMask, Sample

PACKAGE = Path(__file__).resolve().parent

HASH_SIDE = 16
NEAR_BITS = 24
"""Maximum number of differing bits (of 256) between near-duplicate images. On 300 angiograms of ARCADE, different
images differ in at least 40 bits (median 118). The same image brightened by a fifth, cropped by 2 pixels, resized, with
noise, or at JPEG quality 50 differs in at most 22 bits in 99 % of cases."""

WEIGHT_FILES = {
    "vlm.": "vlm/*.safetensors",
    "sam.": "sam/*.safetensors",
    "projector.": "projector.safetensors",
    "adapter.": "adapter/*.safetensors",
    "unet.": "unet.safetensors",
}
"""Canonical prefix -> weight files of a bundle. A U-Net bundle has only `unet.safetensors`. A bundle without an
adapter has the same fingerprint as its base."""

LIBRARIES = [
    "vesalius",
    "torch",
    "transformers",
    "bitsandbytes",
    "accelerate",
    "peft",
    "numpy",
    "scipy",
    "scikit-image",
    "pillow",
    "sentencepiece",
    "pycocotools",
    "safetensors",
]

TensorHash = tuple[str, str, tuple[int, ...], str]
"""Name, dtype, shape and SHA-256 of the bytes of one tensor."""

Stamp = tuple[str, int, int]
"""Path, size in bytes and modification time in ns of a file; a file with the same stamp is not hashed again."""

CACHED_FROM_BYTES = 32 << 20  # smaller files are hashed faster than the cache is read
SETTLED_NS = 2 * 10**9


def hash_file(path: Path) -> str:
    """SHA-256 of the file's bytes; OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_pixels(array: np.ndarray) -> str:
    """SHA-256 over dtype, shape and values of an array; independent of file format and memory layout."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def perceptual_hash(pixels: np.ndarray) -> str:
    """Perceptual hash of an image uint8 (h, w, 3), 64 hexadecimal digits; small changes flip few of its 256 bits.

    Difference hash (dHash): the gray image at 17 x 16; each bit says whether a cell's right neighbor is brighter.
    Source: N. Krawetz 2013, Kind of like that.
    """
    small = Image.fromarray(pixels).convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.int16)
    return np.packbits(values[:, 1:] > values[:, :-1]).tobytes().hex()


def fingerprint_weights(bundle: Path) -> str:
    """SHA-256 over canonical name, dtype, shape and bytes of each tensor of a bundle; errors as in `hash_bundle`."""
    return fingerprint_hashes(hash_bundle(bundle))


def fingerprint_hashes(tensors: Mapping[str, TensorHash]) -> str:
    """SHA-256 over canonical name -> hash of each tensor, independent of their order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, *tensor[1:]]).encode() + b"\n")
    return digest.hexdigest()


def hash_bundle(bundle: Path) -> dict[str, TensorHash]:
    """Canonical name -> hash of each tensor of a bundle.

    The result does not depend on sharding, key order or other files. Raises CheckpointError, naming the file, if one is
    missing, truncated or damaged, or if two files hold the same tensor.
    """
    locate_bundle_tensors(bundle)  # checks all files before the first one is hashed
    return {
        prefix + tensor[0]: tensor
        for prefix, paths in _weight_files(bundle).items()
        for path in paths
        for tensor in _hash_tensors(*_stamp(path))
    }


def locate_bundle_tensors(bundle: Path) -> dict[str, TensorLocation]:
    """Canonical name -> location of each tensor of a bundle; errors as in `hash_bundle`."""
    found = {
        prefix + name: location
        for prefix, paths in _weight_files(bundle).items()
        for name, location in locate_tensors(paths).items()
    }
    if not found:
        message = f"{bundle}: has no weights; a bundle has vlm/, sam/ and projector.safetensors"
        raise CheckpointError(message, code="no_weights", path=bundle)
    return found


def fingerprint_samples(samples: Iterable[Sample]) -> str:
    """SHA-256 over ids, prompts, mask references and image bytes; independent of sample order and folders.

    Raises ImageError, naming the file, if an image or a mask file cannot be read.
    """
    lines = sorted(json.dumps(_sample_entry(sample)) for sample in samples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that affect results; `not installed` for absent ones."""
    return {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}}


@cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit(package: Path = PACKAGE) -> str | None:
    """Commit of the git working tree of the package, ending in `-dirty` if tracked files differ.

    None if the package is not in its own repository, for example if it is installed into another project.
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


def _sample_entry(sample: Sample) -> list[Any]:
    masks = sample.masks
    objects = None if masks is None else [[_mask_entry(each) for each in group] for group in masks]
    return [sample.id, sample.frame, list(sample.prompts), objects, _hash_readable(sample.image)]


def _mask_entry(reference: MaskReference) -> list[Any]:
    match reference:
        case Polygons(parts):
            return ["polygons", [[float(number) for number in part] for part in parts]]
        case RleMask(rle):
            return ["rle", list(rle["size"]), rle["counts"]]
        case MaskFile(path, values):
            return ["file", _hash_readable(path), *([] if values is None else [list(values)])]
        case Absent():
            return ["absent"]


def _hash_readable(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})", code="unreadable_file", path=path) from error


def _weight_files(bundle: Path) -> dict[str, list[Path]]:
    return {
        prefix: [path for path in find_shards((bundle / pattern).parent) if path.match(pattern)]
        for prefix, pattern in WEIGHT_FILES.items()
    }


# a file with the same path, size and time is hashed once, though predictor and run both need its hashes
@lru_cache(maxsize=256)
def _hash_tensors(path: str, n_bytes: int, time_ns: int) -> tuple[TensorHash, ...]:
    file = Path(path)
    return cached_hashes([file], lambda: _hash_located(read_header(file)))


def _hash_located(locations: Mapping[str, TensorLocation]) -> list[TensorHash]:
    return hash_tensors(
        {name: location.type for name, location in locations.items()},
        lambda name: read_blocks(locations[name], 0, locations[name].n_bytes),
    )


def hash_tensors(tensors: Mapping[str, TensorType], read: Callable[[str], Iterable[Block]]) -> list[TensorHash]:
    """Hash of each tensor, in two threads; `read(name)` yields the bytes of the tensor."""
    with ThreadPoolExecutor(max_workers=2) as threads:
        return list(threads.map(lambda name: hash_tensor(name, tensors[name], read(name)), tensors))


def hash_tensor(name: str, tensor: TensorType, blocks: Iterable[Block]) -> TensorHash:
    """Hash of one tensor, from blocks of its bytes."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return name, *tensor, digest.hexdigest()


def cached_hashes(files: Sequence[Path], compute: Callable[[], Iterable[TensorHash]]) -> tuple[TensorHash, ...]:
    """Hashes of the tensors in `files`: cached ones if paths, sizes and times match, else those of `compute`."""
    before = [_stamp(path) for path in files]
    known = _read_cache(before)
    if known is not None:
        return known
    hashes = tuple(compute())
    # a file that has just changed may change again within one tick of the file system's clock
    settled = time.time_ns() - max(time_ns for _, _, time_ns in before) > SETTLED_NS
    if settled and before == [_stamp(path) for path in files]:
        cache_hashes(files, hashes)
    return hashes


def cache_hashes(files: Sequence[Path], hashes: Iterable[TensorHash]) -> None:
    """Cache the hashes of the tensors in `files` if the files are large; a failure to write is ignored."""
    stamps = [_stamp(path) for path in files]
    if sum(n_bytes for _, n_bytes, _ in stamps) >= CACHED_FROM_BYTES:
        with suppress(OutputError, RuntimeError):  # RuntimeError: no home folder
            write_json(_cache_file(stamps), {"files": stamps, "tensors": list(hashes)})


def cache_bundle_hashes(bundle: Path, hashes: Mapping[str, TensorHash]) -> None:
    """Cache the hashes (by canonical name) of a newly written bundle, so that its weights are not read again."""
    for prefix, paths in _weight_files(bundle).items():
        for path in paths:
            cache_hashes([path], [(name, *hashes[prefix + name][1:]) for name in read_header(path)])


def _read_cache(stamps: list[Stamp]) -> tuple[TensorHash, ...] | None:
    try:
        found = json.loads(_cache_file(stamps).read_text(encoding="utf-8"))
        if found["files"] != [list(stamp) for stamp in stamps]:
            return None
        return tuple((name, dtype, tuple(shape), sha) for name, dtype, shape, sha in found["tensors"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return None


def _cache_file(stamps: list[Stamp]) -> Path:
    """Path of the cached hashes of files; RuntimeError if the user has no home folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(json.dumps([path for path, _, _ in stamps]).encode()).hexdigest()
    return cache / "vesalius" / "tensors" / f"{name}.json"


def _stamp(path: Path) -> Stamp:
    try:
        stat = path.stat()
        return str(path.resolve()), stat.st_size, stat.st_mtime_ns
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror})", code="unreadable_file", path=path
        ) from error
