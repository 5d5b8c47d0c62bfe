"""Hashes of a model's training and tuning images in a prediction folder, so that leaks are found without the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.errors import DataError
from vesalius.files import replacing
from vesalius.segmenter import ModelDescription

FILE = "training_images.npz"
HASH_BYTES = 32


@dataclass(frozen=True)
class StoredHashes:
    """The hashes of a model's training and tuning images, as in `ModelDescription`."""

    training_images: tuple[str, ...] = ()
    training_perceptual_hashes: tuple[str, ...] = ()
    training_texture_hashes: tuple[str, ...] = ()
    tuning_images: tuple[str, ...] = ()


def write_hashes(folder: Path, model: ModelDescription) -> dict[str, Any]:
    """Write `training_images.npz` unless the model has no hashes; returns the entry `lineage` of `run.json`.

    The entry has the numbers of training images (None: unknown) and tuning images, and the name of the file, which is
    None without hashes. The file has 32 bytes for each pixel and perceptual hash, and texture hashes as text.
    """
    arrays = {
        "training_images": _as_bytes(sorted(model.training_images or ())),
        "training_perceptual_hashes": _as_bytes(model.training_perceptual_hashes),
        "training_texture_hashes": np.array(list(model.training_texture_hashes), dtype="S"),
        "tuning_images": _as_bytes(sorted(model.tuning_images)),
    }
    written = any(len(each) for each in arrays.values())
    if written:
        with replacing(folder / FILE) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return {
        "training_images": None if model.training_images is None else len(model.training_images),
        "trained_on_unknown": model.trained_on_unknown,
        "tuning_images": len(model.tuning_images),
        "hashes": FILE if written else None,
    }


def read_hashes(path: Path) -> StoredHashes:
    """The hashes in a file written by `write_hashes`; DataError if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return StoredHashes(
                _as_text(stored["training_images"]),
                _as_text(stored["training_perceptual_hashes"]),
                tuple(stored["training_texture_hashes"].astype(str).tolist()),
                _as_text(stored["tuning_images"]),
            )
    except Exception as error:  # numpy and zipfile raise arbitrary exceptions for damaged files
        raise DataError.at(
            path,
            f"cannot be read ({error}), so training images among the scored images would not be found; predict again",
            code="invalid_prediction",
        ) from error


def _as_bytes(hashes: Any) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, HASH_BYTES)


def _as_text(table: np.ndarray) -> tuple[str, ...]:
    return tuple(row.tobytes().hex() for row in table.reshape(-1, HASH_BYTES).astype(np.uint8, casting="safe"))
