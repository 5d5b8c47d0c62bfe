"""Disk cache of SAM 2 image embeddings, so that a model encodes each image only once.

The key of an entry is a hash of the encoder's input pixels, the model's fingerprint, the dtype, the kind of device and
the library versions. Each entry contains its own SHA-256; on a mismatch the image is encoded again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Lock

import numpy as np
import safetensors.torch
import torch
from pydantic import PositiveInt
from safetensors import SafetensorError
from transformers import Sam2VideoModel

from vesalius.config import Settings
from vesalius.errors import OutputError, SettingError
from vesalius.files import SYSTEM_FILES, prepare_folder, replacing, to_json
from vesalius.lineage import hash_pixels, versions
from vesalius.models.sam2 import Features, encode_images

log = logging.getLogger(__name__)

ENTRY = re.compile(r"\.?[0-9a-f]{64}\.safetensors(\.\d+\.partial)?")
"""File name of an entry, or of an incomplete entry left by a killed process."""
PROBE = re.compile(r"\.\d+\.probe")
"""File name of another process's write test (`files.prepare_folder`)."""
LEVELS = tuple(level.name for level in fields(Features))
DIGEST = "sha256"
EVICT_TO = 0.9
"""Eviction reduces the cache to this fraction of the size limit."""
RECOUNT_AFTER = 0.05
"""A process recounts all entries after writing this fraction of the size limit, because other processes write too."""


class CacheSettings(Settings):
    """Folder and size limit of the cache."""

    folder: Path
    """Folder used only by this cache; any number of models and processes may share it."""
    max_bytes: PositiveInt = 8 << 30
    """Limit on the total size of all entries; beyond it the least recently used entries are evicted."""


@dataclass
class CacheUse:
    """Cache counters, in images."""

    read: int = 0
    """Images with embeddings read from the cache."""
    encoded: int = 0
    """Images encoded because the entry was missing or damaged."""
    damaged: int = 0
    """Damaged entries found."""
    not_kept: int = 0
    """Images encoded but not cached because writing failed."""


class FeatureCache:
    """Embedding cache of the model with this fingerprint; thread-safe.

    OutputError if the folder is not writable; SettingError if `fingerprint` is None, and for a folder that contains
    other files, because eviction deletes files.
    """

    def __init__(self, settings: CacheSettings, fingerprint: str | None) -> None:
        if fingerprint is None:
            raise SettingError(
                "the feature cache needs a fingerprint, which only a model on disk has; open the model by its folder",
                code="not_supported",
                field="cache",
            )
        self.settings = settings
        self.use = CacheUse()
        self._folder = prepare_folder(settings.folder)
        if others := sorted(entry.name for entry in self._folder.iterdir() if not _is_ours(entry.name)):
            raise SettingError(
                f"{self._folder}: contains {others[0]}, which is not part of a cache; name another folder",
                code="not_a_cache",
                path=self._folder,
                field="cache",
            )
        known = versions()
        self._origin = to_json([fingerprint, *(known[name] for name in ("vesalius", "torch", "transformers"))])
        self._lock = Lock()
        self._bytes = sum(size for _, size, _ in self._entries())
        self._written = 0
        """Bytes written since the entries were counted."""

    def encode(self, sam: Sam2VideoModel, pixels: torch.Tensor) -> Features:
        """Embeddings of images float (i, 3, S, S); missing ones are computed by `encode_images` and cached."""
        names = [self._name(image) for image in pixels]
        found = [self._read(name) for name in names]
        missing = [index for index, each in enumerate(found) if each is None]
        if missing:
            made = encode_images(sam, pixels[missing])
            for row, index in enumerate(missing):
                found[index] = [getattr(made, level)[row].detach() for level in LEVELS]
                self._write(names[index], found[index] or ())
        with self._lock:
            self.use.encoded += len(missing)
            self.use.read += len(names) - len(missing)
        rows = [each for each in found if each is not None]
        return Features(*(torch.stack(level).to(pixels.device) for level in zip(*rows, strict=True)))

    def _name(self, image: torch.Tensor) -> str:
        known = [self._origin, str(image.dtype), image.device.type, hash_pixels(_bytes(image))]
        return hashlib.sha256(to_json(known).encode()).hexdigest()

    def _read(self, name: str) -> list[torch.Tensor] | None:
        """Feature levels of an entry; None if it is missing or damaged."""
        path = self._folder / f"{name}.safetensors"
        try:
            tensors = safetensors.torch.load(path.read_bytes())
            levels = [tensors[level] for level in LEVELS]
            whole = torch.equal(tensors[DIGEST], _digest(name, levels))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            log.debug("%s: %s", path, error)
            whole = False
        if not whole:
            log.warning("%s: is damaged and will be written again", path)
            with self._lock:
                self.use.damaged += 1
            return None
        with suppress(OSError):  # another process may have evicted it since
            os.utime(path)
        return levels

    def _write(self, name: str, levels: Sequence[torch.Tensor]) -> None:
        path = self._folder / f"{name}.safetensors"
        levels = [level.cpu().contiguous() for level in levels]
        tensors = dict(zip(LEVELS, levels, strict=True)) | {DIGEST: _digest(name, levels)}
        with self._lock:  # two threads with the same image would write the same temporary file
            try:
                with replacing(path) as aside:
                    try:
                        safetensors.torch.save_file(tensors, aside)
                    except SafetensorError as error:  # raised for a full disk
                        raise OutputError(
                            f"{path}: cannot be written ({error})", code="write_failed", path=path
                        ) from error
                size = path.stat().st_size
                self._bytes += size
                self._written += size
            except (OSError, OutputError) as error:
                if not self.use.not_kept:
                    log.warning("%s; embeddings of this image, and perhaps of others, are not cached", error)
                self.use.not_kept += 1
            if self._bytes > self.settings.max_bytes or self._written > RECOUNT_AFTER * self.settings.max_bytes:
                self._shrink()

    def _shrink(self) -> None:
        """Recount the entries, and evict the least recently used ones if they exceed the size limit."""
        entries = sorted(self._entries())
        self._bytes = sum(size for _, size, _ in entries)
        self._written = 0
        if self._bytes <= self.settings.max_bytes:
            return
        for _, size, path in entries:
            if self._bytes <= EVICT_TO * self.settings.max_bytes:
                return
            with suppress(OSError):
                path.unlink()
            self._bytes -= size

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Time of last use, bytes and path of each entry."""
        found = []
        for path in self._folder.iterdir():
            if not ENTRY.fullmatch(path.name):
                continue
            with suppress(OSError):  # another process may have evicted it since
                state = path.stat()
                found.append((state.st_mtime_ns, state.st_size, path))
        return found


def check_no_overlap(folder: Path, out: Path | None) -> None:
    """Raise SettingError if the cache folder and the output folder overlap."""
    cache, results = folder.resolve(), None if out is None else out.resolve()
    if results is not None and (cache.is_relative_to(results) or results.is_relative_to(cache)):
        raise SettingError(
            f"--cache {folder}: must not overlap --out {out}; name another folder",
            code="not_a_cache",
            path=folder,
            field="cache",
        )


def _is_ours(name: str) -> bool:
    return name in SYSTEM_FILES or any(ours.fullmatch(name) for ours in (ENTRY, PROBE))


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.cpu().contiguous().view(torch.uint8).numpy()
    return array


def _digest(name: str, levels: Sequence[torch.Tensor]) -> torch.Tensor:
    """uint8 (32,): SHA-256 of the name and content of an entry."""
    digest = hashlib.sha256(name.encode())
    for level in levels:
        digest.update(f"{level.dtype} {tuple(level.shape)}".encode())
        digest.update(_bytes(level).data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
