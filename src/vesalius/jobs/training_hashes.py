"""Hashes of a model's training and tuning images in a prediction folder, so that leaks are found without the model.

The hashes of the included model `tiny`, 0.6 MB, are not repeated in each folder: models trained from it list only their
own images, and refer to those of `tiny` by the SHA-256 of the list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.errors import DataError
from vesalius.files import replacing, to_json
from vesalius.models.cards import near_fields
from vesalius.models.reference import TINY, resolve_model
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
    complete: bool = True
    """False if the model was trained from another version of `tiny`, and the images of that version are unknown here."""

    @property
    def near(self) -> set[tuple[str, str]]:
        """(perceptual, texture) hash of each training image."""
        texture = self.training_texture_hashes or ("",) * len(self.training_perceptual_hashes)
        return set(zip(self.training_perceptual_hashes, texture, strict=True))


def write_hashes(folder: Path, model: ModelDescription) -> dict[str, Any]:
    """Write `training_images.npz` unless there is nothing to write; returns the entry `lineage` of `run.json`.

    The entry has the numbers of training images (None: unknown) and tuning images; `hashes`, the name of the file, or
    None; and `included`, the SHA-256 of the hashes of `tiny`, if the model was also trained on its images and the file
    omits them, or None. The file has 32 bytes for each pixel and perceptual hash, and texture hashes as text.
    """
    known = StoredHashes(
        tuple(model.training_images or ()),
        tuple(model.training_perceptual_hashes),
        tuple(model.training_texture_hashes),
        tuple(model.tuning_images),
    )
    included, digest = _included()
    contained = {*included.training_images} <= {*known.training_images} and included.near <= known.near
    own = _without(known, included) if contained else known
    arrays = {
        "training_images": _as_bytes(sorted(own.training_images)),
        "training_perceptual_hashes": _as_bytes(own.training_perceptual_hashes),
        "training_texture_hashes": np.array(own.training_texture_hashes, dtype="S"),
        "tuning_images": _as_bytes(sorted(own.tuning_images)),
    }
    written = any(len(each) for each in arrays.values())
    if written:
        with replacing(folder / FILE) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return {
        "training_images": None if model.training_images is None else len(known.training_images),
        "trained_on_unknown": model.trained_on_unknown,
        "tuning_images": len(known.tuning_images),
        "hashes": FILE if written else None,
        "included": digest if contained else None,
    }


def read_hashes(path: Path | None, included: str | None) -> StoredHashes:
    """The hashes in a file written by `write_hashes` (None: no file), and those of `tiny` if `included` names them.

    DataError if the file is missing or damaged.
    """
    own = StoredHashes() if path is None else _read(path)
    if included is None:
        return own
    known, digest = _included()
    if included != digest:
        return replace(own, complete=False)
    images = (*own.training_images, *known.training_images)
    return replace(own, training_images=images, **near_fields(own.near | known.near))


def _read(path: Path) -> StoredHashes:
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


@lru_cache(maxsize=1)
def _included() -> tuple[StoredHashes, str]:
    """The hashes of `tiny`, and their SHA-256."""
    card = resolve_model(TINY).text_card
    assert card is not None
    near = near_fields(card.near_hashes)
    images = tuple(sorted(card.training_images or ()))
    return StoredHashes(images, **near), hashlib.sha256(to_json([images, near]).encode()).hexdigest()


def _without(known: StoredHashes, others: StoredHashes) -> StoredHashes:
    images = {*known.training_images} - {*others.training_images}
    return replace(known, training_images=tuple(images), **near_fields(known.near - others.near))


def _as_bytes(hashes: Iterable[str]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, HASH_BYTES)


def _as_text(table: np.ndarray) -> tuple[str, ...]:
    return tuple(row.tobytes().hex() for row in table.reshape(-1, HASH_BYTES).astype(np.uint8, casting="safe"))
