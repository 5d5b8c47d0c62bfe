"""Fingerprints of files, pixels, weights and datasets; versions and commit: where a result came from.

A fingerprint is a SHA-256 in hexadecimal. Nothing here imports torch, and weights are never held in memory.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vesalius.errors import CheckpointError, ImageError, OutputError
from vesalius.files import write_json
from vesalius.tensorfiles import (
    Block,
    TensorPlace,
    TensorType,
    find_places,
    find_shards,
    read_blocks,
    read_places,
)
from vesalius.types import Absent, MaskFile, MaskReference, Polygons, RleMask, Sample

PACKAGE = Path(__file__).resolve().parent

HASH_SIDE = 16
NEAR_BITS = 24
"""Of 256. Measured on 300 angiograms of ARCADE: two images differ in at least 40 bits (median 118); the same image
brightened by a fifth, cut by 2 pixels, resized, with noise or at JPEG quality 50 in at most 22 in 99 % of cases."""

PARTS = {
    "vlm.": "vlm/*.safetensors",
    "sam.": "sam/*.safetensors",
    "projector.": "projector.safetensors",
    "adapter.": "adapter/*.safetensors",
    "unet.": "unet.safetensors",
}
"""Canonical prefix -> files of a bundle, of which a U-Net has the last alone. Without an adapter a bundle has the
fingerprint of its base."""

LIBRARIES = (
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
)

TensorLine = tuple[str, str, tuple[int, ...], str]
"""Name, dtype, shape and SHA-256 of the bytes of one tensor."""

Stamp = tuple[str, int, int]
"""Path, size and time of change of a file: as long as these are the same it is not hashed again."""

REMEMBERED_FROM_BYTES = 32 << 20  # less is hashed sooner than a note about it is found and trusted
SETTLED_NS = 2 * 10**9


def hash_file(path: Path) -> str:
    """SHA-256 of the file's bytes; OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_pixels(array: np.ndarray) -> str:
    """SHA-256 over dtype, shape and values, so that the same pixels agree whatever file they came from."""
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


def near_hashes(digest: str, others: Collection[str]) -> list[str]:
    """The perceptual hashes of `others` that differ from `digest` in at most `NEAR_BITS` of 256 bits."""
    names = list(others)
    table = np.frombuffer(bytes.fromhex("".join(names)), dtype=np.uint8).reshape(len(names), -1)
    bits = np.bitwise_count(table ^ np.frombuffer(bytes.fromhex(digest), dtype=np.uint8)).sum(axis=1)
    return [name for name, count in zip(names, bits, strict=True) if count <= NEAR_BITS]


def fingerprint_weights(bundle: Path) -> str:
    """SHA-256 over canonical name, dtype, shape and bytes of each tensor of a bundle; errors as in `list_tensors`."""
    return fingerprint_lines(list_tensors(bundle))


def fingerprint_lines(tensors: Mapping[str, TensorLine]) -> str:
    """SHA-256 over canonical name -> tensor, in whatever order they come."""
    digest = hashlib.sha256()
    for name, line in sorted(tensors.items()):
        digest.update(json.dumps([name, *line[1:]]).encode() + b"\n")
    return digest.hexdigest()


def list_tensors(bundle: Path) -> dict[str, TensorLine]:
    """Canonical name -> each tensor of a bundle, hashed.

    Independent of sharding, of the order of keys and of everything that is not a tensor. Raises CheckpointError,
    naming the file, where one is missing, cut short or damaged, or where two hold the same tensor.
    """
    find_tensors(bundle)  # refuses what does not belong together before anything is hashed
    return {
        prefix + line[0]: line
        for prefix, paths in _weight_files(bundle).items()
        for path in paths
        for line in _tensors(path)
    }


def find_tensors(bundle: Path) -> dict[str, TensorPlace]:
    """Canonical name -> where each tensor of a bundle lies; errors as in `list_tensors`."""
    found = {
        prefix + name: place
        for prefix, paths in _weight_files(bundle).items()
        for name, place in find_places(paths).items()
    }
    if not found:
        raise CheckpointError(f"{bundle}: has no weights; a bundle has vlm/, sam/ and projector.safetensors")
    return found


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
    return [sample.id, sample.frame, list(sample.prompts), objects, _hash_readable(sample.image)]


def _mask_line(reference: MaskReference) -> list[Any]:
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
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error


def _weight_files(bundle: Path) -> dict[str, list[Path]]:
    return {
        prefix: [path for path in find_shards((bundle / pattern).parent) if path.match(pattern)]
        for prefix, pattern in PARTS.items()
    }


def _tensors(path: Path) -> tuple[TensorLine, ...]:
    stamp = _stamp(path)
    return _hash_tensors(*stamp)


# a file of the same path, size and time is not hashed twice: predictor and run both ask for it
@lru_cache(maxsize=256)
def _hash_tensors(path: str, n_bytes: int, time_ns: int) -> tuple[TensorLine, ...]:
    file = Path(path)
    return hashed_once([file], lambda: _lines_of(read_places(file)))


def _lines_of(places: Mapping[str, TensorPlace]) -> list[TensorLine]:
    return hash_tensors(
        {name: place.type for name, place in places.items()},
        lambda name: read_blocks(places[name], 0, places[name].n_bytes),
    )


def hash_tensors(
    tensors: Mapping[str, TensorType], read: Callable[[str], Iterable[Block]]
) -> list[TensorLine]:
    """The line of each tensor, of which `read` gives the bytes; two tensors at a time."""
    with ThreadPoolExecutor(max_workers=2) as threads:
        return list(threads.map(lambda name: hash_tensor(name, tensors[name], read(name)), tensors))


def hash_tensor(name: str, tensor: TensorType, blocks: Iterable[Block]) -> TensorLine:
    """The line of one tensor with these bytes."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return name, *tensor, digest.hexdigest()


def hashed_once(
    files: Sequence[Path], hash_them: Callable[[], Iterable[TensorLine]]
) -> tuple[TensorLine, ...]:
    """What `hash_them` finds in `files`, which is kept beside their paths, sizes and times and then found again."""
    before = [_stamp(path) for path in files]
    known = _recall(before)
    if known is not None:
        return known
    lines = tuple(hash_them())
    # a file that changed only now may change again within the same tick of the clock of its file system
    settled = time.time_ns() - max(time_ns for _, _, time_ns in before) > SETTLED_NS
    if settled and before == [_stamp(path) for path in files]:
        remember(files, lines)
    return lines


def remember(files: Sequence[Path], lines: Iterable[TensorLine]) -> None:
    """Keep what was found in `files`, if it is worth it; that it cannot be kept is no error."""
    stamps = [_stamp(path) for path in files]
    if sum(n_bytes for _, n_bytes, _ in stamps) >= REMEMBERED_FROM_BYTES:
        with suppress(OutputError, RuntimeError):  # RuntimeError: there is no home
            write_json(_memory(stamps), {"files": stamps, "tensors": list(lines)})


def remember_tensors(bundle: Path, lines: Mapping[str, TensorLine]) -> None:
    """Keep the hashes of a bundle that was only now written, by canonical name: they cost no second reading."""
    for prefix, paths in _weight_files(bundle).items():
        for path in paths:
            remember([path], [(name, *lines[prefix + name][1:]) for name in read_places(path)])


def _recall(stamps: list[Stamp]) -> tuple[TensorLine, ...] | None:
    try:
        found = json.loads(_memory(stamps).read_text(encoding="utf-8"))
        if found["files"] != [list(stamp) for stamp in stamps]:
            return None
        return tuple((name, dtype, tuple(shape), sha) for name, dtype, shape, sha in found["tensors"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return None


def _memory(stamps: list[Stamp]) -> Path:
    """Where the hashes of files are kept. Raises RuntimeError where there is no home."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(json.dumps([path for path, _, _ in stamps]).encode()).hexdigest()
    return cache / "vesalius" / "tensors" / f"{name}.json"


def _stamp(path: Path) -> Stamp:
    try:
        stat = path.stat()
        return str(path.resolve()), stat.st_size, stat.st_mtime_ns
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
