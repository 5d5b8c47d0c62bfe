"""What must not be among the images that are scored: those that the model was trained or tuned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vesalius.data.dataset import load_image
from vesalius.errors import DataError, ImageError
from vesalius.jobs.folder import Segmenter
from vesalius.lineage import hash_pixels, near_hashes, perceptual_hash
from vesalius.names import list_names
from vesalius.types import Sample

LISTED = 20


@dataclass(frozen=True)
class Leaks:
    """What was found, and the sentences that say so."""

    n_training: int | None
    """Images that the model was trained on; None where it does not say which these are, or not of all of them."""
    near: tuple[str, ...]
    """Ids of images that look nearly like one of them."""
    notes: tuple[str, ...]


def find_leaks(segmenter: Segmenter, samples: Sequence[Sample], allowed: bool) -> Leaks:
    """Look for training and tuning images before anything is predicted, so that a refusal comes at once.

    The same pixels under any name are found by their hash; images that nearly look the same by a perceptual one,
    which is not proof: they are listed. DataError for the same pixels, unless they are allowed, and always for
    images that the threshold was tuned on. An image that cannot be read is passed over here; it fails by itself.
    """
    trained, tuned = set(segmenter.training_images or ()), set(segmenter.tuning_images)
    hashes = segmenter.training_perceptual_hashes
    seen, near, used = [], [], []
    for sample in samples if trained or tuned or hashes else ():
        try:
            pixels = load_image(sample)
        except ImageError:
            continue
        name = hash_pixels(pixels)
        if name in tuned:
            used.append(sample.id)
        if name in trained:
            seen.append(sample.id)
        elif hashes and near_hashes(perceptual_hash(pixels), hashes):
            near.append(sample.id)
    if used:
        raise DataError(
            f"the threshold of this model was tuned on {len(used)} of {len(samples)} images (first: {used[0]}); "
            "evaluate on others"
        )
    if seen and not allowed:
        raise DataError(
            f"{_found(seen, samples)} (first: {seen[0]}); evaluate on others, or add --allow-training-samples"
        )
    unknown = segmenter.trained_on_unknown
    notes = _notes(unknown, bool(trained), seen, near, samples)
    return Leaks(None if unknown else len(seen), tuple(near), tuple(notes))


def _found(seen: Sequence[str], samples: Sequence[Sample]) -> str:
    return f"{len(seen)} of {len(samples)} images are among those the model was trained on"


def _notes(
    unknown: bool, some_known: bool, seen: list[str], near: list[str], samples: Sequence[Sample]
) -> list[str]:
    notes = []
    if unknown and some_known:
        notes.append(
            "The model says which images it was fine-tuned on; it was trained on others before, which nobody knows, so that "
            "they could not be looked for among these."
        )
    elif unknown:
        notes.append(
            "The model does not say which images it was trained on; none could be looked for among these."
        )
    if seen:
        found = _found(seen, samples)
        notes.append(f"{found}: the numbers do not tell how it does on images that it has not seen.")
    if near:
        notes.append(
            f"{len(near)} images look nearly like one that the model was trained on; are they of the same "
            f"patients? {list_names(near, LISTED)}"
        )
    return notes
