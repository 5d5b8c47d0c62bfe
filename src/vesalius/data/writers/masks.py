"""Write mask images `masks/ID.png`, 0 and 255; `masks/ID--PHRASE.png` for images with several phrases.

Masks of one phrase can be read back as an image/mask folder (`readers.maskfolder`), given the phrase. Masks of several
phrases are meant for other programs: no reader pairs them with images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vesalius.data.dataset import load_mask, merge_phrases
from vesalius.data.sample_fields import KEYS
from vesalius.data.writers.samples import check_any, image_path, rows_of, size_of
from vesalius.files import replacing
from vesalius.masks import Size
from vesalius.names import result_stems
from vesalius.types import Absent, MaskReference, Sample


def write(folder: Path, samples: Sequence[Sample]) -> list[str]:
    """Write the masks of samples with images in `folder`; returns notes on information that mask images lack.

    Raises AnnotationError if there is no sample, an image is outside `folder`, or a mask does not match its image;
    ValueError for an id that is not a file name.
    """
    check_any(folder, samples)
    merged = [merge_phrases(sample) for sample in samples]
    for sample in merged:
        image_path(sample, folder)  # raises if the image is outside the folder
        rows_of(sample)  # raises if the annotation has no phrase
        size = size_of(sample)
        stems = result_stems(sample.id, sample.prompts) if sample.masks is not None else []
        for stem, objects in zip(stems, sample.masks or (), strict=True):
            mask = _union(objects, size, str(sample.source or sample.id))
            with replacing(folder / "masks" / f"{stem}.png") as temporary:
                Image.fromarray(mask.astype(np.uint8) * 255).save(temporary, format="PNG")
    return _notes(merged)


def _union(objects: Sequence[MaskReference], size: Size, where: str) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    for reference in objects:
        mask |= load_mask(reference, size, where)
    return mask


def _notes(samples: Sequence[Sample]) -> list[str]:
    """Notes on lost information; `samples` have merged phrases."""
    targets = [objects for sample in samples for objects in sample.masks or ()]
    phrases = list(dict.fromkeys(phrase for sample in samples for phrase in sample.prompts))
    lost = Counter(key for sample in samples for key in KEYS if getattr(sample, key) is not None)
    lost += Counter(key for sample in samples for key in sample.metadata)
    bare = sum(sample.masks is None for sample in samples)
    joined = sum(len(objects) > 1 for objects in targets)
    absent = sum(all(isinstance(each, Absent) for each in objects) for objects in targets)
    notes = []
    if len(phrases) == 1:
        notes.append(f"the files do not state the phrase: give {phrases[0]!r} when reading the folder")
    elif phrases:
        notes.append(f"{len(phrases)} phrases are in the file names, which no reader pairs with images")
    if bare:
        notes.append(f"images without annotation, which have no mask file and cannot be read back: {bare}")
    if joined:
        notes.append(f"masks that merge several objects of one phrase: {joined}")
    if absent:
        notes.append(f"empty masks of phrases that are absent from the image: {absent}")
    if lost:
        notes.append(f"not kept: {', '.join(f'{key} ({n})' for key, n in lost.items())}")
    return notes
