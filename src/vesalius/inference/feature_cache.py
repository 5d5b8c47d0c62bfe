"""SAM 2's features of images, kept on disk: an image that the same model saw before is not encoded again.

An entry is found by what decides about it: the pixels that enter the encoder, the model's fingerprint, the dtype, the
kind of device and the versions of the libraries. It holds a SHA-256 of itself; one that does not fit is made anew.
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
from vesalius.models.segmenter import Features, encode_images

log = logging.getLogger(__name__)

ENTRY = re.compile(r"\.?[0-9a-f]{64}\.safetensors(\.\d+\.partial)?")
"""Name of an entry, or of one that was being written when its process was killed."""
PROBE = re.compile(r"\.\d+\.probe")
"""Name of what `prepare_folder` of another process writes, to see whether it can."""
LEVELS = tuple(level.name for level in fields(Features))
DIGEST = "sha256"
LEFT = 0.9
"""Share of the most bytes that is left when the least recently used entries are removed."""

RECOUNTED = 0.05
"""Share of the most bytes after which a process that wrote them looks what others wrote."""


class CacheSettings(Settings):
    """Where features are kept, and how many."""

    folder: Path
    """Of this cache alone; any number of models and processes may share it."""
    most_bytes: PositiveInt = 8 << 30
    """Of all entries; beyond it those that were not used for longest are removed."""


@dataclass
class CacheUse:
    """What came of a cache so far, in images."""

    read: int = 0
    encoded: int = 0
    """Not there, or damaged."""
    damaged: int = 0
    """Entries that were not what was written."""
    not_kept: int = 0
    """Encoded, but could not be written."""


class FeatureCache:
    """The features of a model of this fingerprint; for any thread.

    OutputError where the folder cannot be written to; SettingError where it holds anything but a cache, for entries
    are removed from it, and without a fingerprint.
    """

    def __init__(self, settings: CacheSettings, fingerprint: str | None) -> None:
        if fingerprint is None:
            raise SettingError("a cache of features needs the model's fingerprint, which a model on disk has")
        self.settings = settings
        self.use = CacheUse()
        self._folder = prepare_folder(settings.folder)
        if others := sorted(entry.name for entry in self._folder.iterdir() if not _is_ours(entry.name)):
            raise SettingError(
                f"{self._folder}: holds {others[0]}, which is not of a cache; name another folder"
            )
        known = versions()
        self._origin = to_json(
            [fingerprint, *(known[name] for name in ("vesalius", "torch", "transformers"))]
        )
        self._lock = Lock()
        self._bytes = sum(size for _, size, _ in self._entries())
        self._written = 0
        """Bytes of what was written since the entries were counted."""

    def encode(self, sam: Sam2VideoModel, pixels: torch.Tensor) -> Features:
        """Features of float (i, 3, S, S), as `encode_images`; what is not in the cache is encoded together, and kept."""
        names = [self._name(image) for image in pixels]
        found = [self._read(name) for name in names]
        missing = [place for place, each in enumerate(found) if each is None]
        if missing:
            made = encode_images(sam, pixels[missing])
            for row, place in enumerate(missing):
                found[place] = [getattr(made, level)[row].detach() for level in LEVELS]
                self._keep(names[place], found[place] or ())
        with self._lock:
            self.use.encoded += len(missing)
            self.use.read += len(names) - len(missing)
        rows = [each for each in found if each is not None]
        return Features(*(torch.stack(level).to(pixels.device) for level in zip(*rows, strict=True)))

    def _name(self, image: torch.Tensor) -> str:
        known = [self._origin, str(image.dtype), image.device.type, hash_pixels(_bytes(image))]
        return hashlib.sha256(to_json(known).encode()).hexdigest()

    def _read(self, name: str) -> list[torch.Tensor] | None:
        """The levels of an entry; None where there is none that can be trusted."""
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
            log.warning("%s: is damaged, and made anew", path)
            with self._lock:
                self.use.damaged += 1
            return None
        with suppress(OSError):  # another process may have removed it since
            os.utime(path)
        return levels

    def _keep(self, name: str, levels: Sequence[torch.Tensor]) -> None:
        path = self._folder / f"{name}.safetensors"
        levels = [level.cpu().contiguous() for level in levels]
        tensors = dict(zip(LEVELS, levels, strict=True)) | {DIGEST: _digest(name, levels)}
        with self._lock:  # two threads with the same image would write under the same temporary name
            try:
                with replacing(path) as aside:
                    try:
                        safetensors.torch.save_file(tensors, aside)
                    except SafetensorError as error:  # what it makes of a full disk
                        raise OutputError(f"{path}: cannot be written ({error})") from error
                size = path.stat().st_size
                self._bytes += size
                self._written += size
            except (OSError, OutputError) as error:
                if not self.use.not_kept:
                    log.warning("%s; the features of this image, and perhaps of others, are not kept", error)
                self.use.not_kept += 1
            if self._bytes > self.settings.most_bytes or self._written > RECOUNTED * self.settings.most_bytes:
                self._shrink()

    def _shrink(self) -> None:
        """Count the entries, and where they are too many remove those that were not used for longest."""
        entries = sorted(self._entries())
        self._bytes = sum(size for _, size, _ in entries)
        self._written = 0
        if self._bytes <= self.settings.most_bytes:
            return
        for _, size, path in entries:
            if self._bytes <= LEFT * self.settings.most_bytes:
                return
            with suppress(OSError):
                path.unlink()
            self._bytes -= size

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Time of last use, bytes and path of each."""
        found = []
        for path in self._folder.iterdir():
            if not ENTRY.fullmatch(path.name):
                continue
            with suppress(OSError):  # another process may have removed it since
                state = path.stat()
                found.append((state.st_mtime_ns, state.st_size, path))
        return found


def check_apart(folder: Path, out: Path | None) -> None:
    """Raise SettingError where a cache and the folder of results are one, or one lies in the other."""
    cache, results = folder.resolve(), None if out is None else out.resolve()
    if results is not None and (cache.is_relative_to(results) or results.is_relative_to(cache)):
        raise SettingError(f"--cache {folder}: must lie apart from --out {out}; name another folder")


def _is_ours(name: str) -> bool:
    return name in SYSTEM_FILES or any(ours.fullmatch(name) for ours in (ENTRY, PROBE))


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.cpu().contiguous().view(torch.uint8).numpy()
    return array


def _digest(name: str, levels: Sequence[torch.Tensor]) -> torch.Tensor:
    """uint8 (32,): SHA-256 of the name of an entry and all that is in it."""
    digest = hashlib.sha256(name.encode())
    for level in levels:
        digest.update(f"{level.dtype} {tuple(level.shape)}".encode())
        digest.update(_bytes(level).data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
