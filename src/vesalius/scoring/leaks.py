"""What must not be among the images that are scored: those that the model was trained or tuned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vesalius.data.images import read_image
from vesalius.errors import DataError, ImageError
from vesalius.inference.folder import Segmenter
from vesalius.lineage import hash_look, hash_pixels, near_looks
from vesalius.types import Sample

LISTED = 20


@dataclass(frozen=True)
class Leaks:
    """What was found, and the sentences that say so."""

    n_training: int | None
    """Images that the model was trained on; None where it does not say which these are."""
    near: tuple[str, ...]
    """Ids of images that look nearly like one of them."""
    notes: tuple[str, ...]


def find_leaks(segmenter: Segmenter, samples: Sequence[Sample], allowed: bool) -> Leaks:
    """Look for training and tuning images before anything is predicted, so that a refusal comes at once.

    The same pixels under any name are found by their hash; images that nearly look the same by a perceptual one,
    which is not proof: they are listed. DataError for the same pixels, unless they are allowed, and always for
    images that the threshold was tuned on. An image that cannot be read is passed over here; it fails by itself.
    """
    trained, looks = segmenter.training_images, segmenter.training_looks
    if trained is None:
        note = "The model does not say which images it was trained on; none could be looked for among these."
        return Leaks(None, (), (note,))
    tuned = segmenter.tuning_images
    if not (trained or looks or tuned):
        return Leaks(0, (), ())
    seen, near = [], []
    for sample in samples:
        try:
            pixels = read_image(sample.image)
        except ImageError:
            continue
        name = hash_pixels(pixels)
        if name in tuned:
            raise DataError(
                f"{sample.id}: the threshold of this model was tuned on this image; evaluate on others"
            )
        if name in trained:
            seen.append(sample.id)
        elif looks and near_looks(hash_look(pixels), looks):
            near.append(sample.id)
    return Leaks(len(seen), tuple(near), tuple(_notes(seen, near, len(samples), allowed)))


def _notes(seen: list[str], near: list[str], total: int, allowed: bool) -> list[str]:
    notes = []
    if seen:
        found = f"{len(seen)} of {total} images are among those the model was trained on"
        if not allowed:
            raise DataError(
                f"{found} (first: {seen[0]}); evaluate on others, or add --allow-training-samples"
            )
        notes.append(f"{found}: the numbers do not tell how it does on images that it has not seen.")
    if near:
        more = f", and {len(near) - LISTED} more" if len(near) > LISTED else ""
        notes.append(
            f"{len(near)} images look nearly like one that the model was trained on; are they of the same "
            f"patients? {', '.join(near[:LISTED])}{more}"
        )
    return notes
