"""Data leaks: images to be scored that the model was trained or tuned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vesalius.data.dataset import load_image
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.data.perceptual_hash import KnownImages
from vesalius.errors import DataError, ImageError
from vesalius.language import note
from vesalius.lineage import hash_pixels
from vesalius.names import list_names
from vesalius.segmenter import ModelDescription
from vesalius.types import Sample

LISTED = 20


@dataclass(frozen=True)
class Leaks:
    """Leaks found in a dataset, with notes for its report."""

    n_training: int | None
    """Number of images that the model was trained on; None if not all of its training images are known."""
    near: tuple[str, ...]
    """Ids of near-duplicates of training images."""
    notes: tuple[str, ...]
    n_unconfirmed: int = 0
    """Number of images that resemble a training image of which the model has no texture hash, which could confirm it."""


def find_leaks(model: ModelDescription, samples: Sequence[Sample], allowed: bool) -> Leaks:
    """Compare the images with the model's training and tuning images, before anything is predicted.

    Exact copies are found by the hash of their pixels, independent of file name and format. Near-duplicates are found
    as in `vesalius check`, by perceptual and texture hash; they are only listed. A similar perceptual hash alone, for
    models without texture hashes, is no evidence and is only counted. DataError for training images unless `allowed`,
    and always for images that the threshold was tuned on. An unreadable image is skipped, since its prediction fails
    later.
    """
    trained, tuned = set(model.training_images or ()), set(model.tuning_images)
    known = KnownImages(model.training_perceptual_hashes, model.training_texture_hashes)
    seen, used = [], []
    resembling: dict[str, list[str]] = {"near": [], "unconfirmed": []}
    with FrameReader() as reader:
        for sample in samples if trained or tuned or len(known) else ():
            try:
                pixels = load_image(model.as_trained(sample), reader)
            except ImageError:
                continue
            name = hash_pixels(pixels)
            if name in tuned:
                used.append(sample.id)
            if name in trained:
                seen.append(sample.id)
            elif found := known.find(pixels):
                resembling[found].append(sample.id)
    if used:
        raise DataError(
            f"the threshold of this model was tuned on {len(used)} of {len(samples)} images (first: {used[0]}); "
            "evaluate on others",
            code="tuning_leak",
            field=used[0],
        )
    if seen and not allowed:
        raise DataError(
            f"the model was trained on {len(seen)} of {len(samples)} images (first: {seen[0]}); evaluate on "
            "others, or add --allow-training-samples",
            code="training_leak",
            field=seen[0],
        )
    unknown = model.trained_on_unknown
    near, n_unconfirmed = resembling["near"], len(resembling["unconfirmed"])
    notes = _notes(unknown, bool(trained), len(seen), near, n_unconfirmed, len(samples))
    return Leaks(None if unknown else len(seen), tuple(near), tuple(notes), n_unconfirmed)


def _notes(
    unknown: bool, some_known: bool, n_seen: int, near: Sequence[str], n_unconfirmed: int, n_samples: int
) -> list[str]:
    notes = []
    if unknown and some_known:
        notes.append(
            note(
                "Leaks were checked for the fine-tuning images only, because the images of the model's earlier training "
                "are not recorded."
            )
        )
    elif unknown:
        notes.append(note("The model does not record its training images, so leaks could not be checked."))
    if n_seen:
        notes.append(
            note(
                "The model was trained on {seen} of {n} images, so the scores do not show its performance on unseen "
                "images.",
                seen=n_seen,
                n=n_samples,
            )
        )
    if near:
        notes.append(
            note(
                "Near-duplicates of training images: {n}; check whether they show the same patients: {names}",
                n=len(near),
                names=list_names(near, LISTED),
            )
        )
    if n_unconfirmed:
        notes.append(
            note(
                "{near} of {n} images have a perceptual hash similar to that of a training image; the model has no "
                "texture hashes to confirm that they are near-duplicates.",
                near=n_unconfirmed,
                n=n_samples,
            )
        )
    return notes
