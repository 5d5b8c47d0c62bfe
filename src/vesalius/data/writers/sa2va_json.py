"""The annotation format of the house: the official fine-tuning JSON of Sa2VA, one entry a sample.

    [{"image": "images/a.png", "mask": [object, ...], "text": [str, ...], "group": str, "size": [h, w]}, ...]

`mask[i]` is the object of `text[i]`: a list of polygons, COCO RLE, or null: the phrase is not in the image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vesalius.data.images import read_image, read_mask
from vesalius.data.readers.sa2va_json import KEYS
from vesalius.errors import AnnotationError
from vesalius.files import write_json
from vesalius.masks import Size, encode_rle
from vesalius.types import Absent, MaskFile, MaskReference, Polygons, RleMask, Sample


def write(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples as one JSON file; image paths become relative to it.

    A phrase with several objects becomes several rows with that text, one without any a row with null; a mask
    file is read and becomes RLE; a sample without annotation has neither. Raises AnnotationError for what the
    reader would refuse: no sample, a sample with an annotation but no phrase, an image outside of the file's
    folder, metadata named like a key.
    """
    if not samples:
        raise AnnotationError(f"{path}: there is no sample to write")
    write_json(path, [_entry(sample, path.parent) for sample in samples])


def _entry(sample: Sample, folder: Path) -> dict[str, Any]:
    if sample.masks == ():
        raise AnnotationError(f"{sample.id}: names no phrase; give at least one, or no masks at all")
    clash = sorted(set(sample.metadata) & set(KEYS))
    if clash:
        raise AnnotationError(
            f"{sample.id}: metadata may not be named {', '.join(clash)}; the format uses that name"
        )
    rows = [
        (text, _encode(reference, sample))
        for text, objects in zip(sample.prompts, sample.masks or (), strict=sample.masks is not None)
        for reference in objects or (Absent(),)
    ]
    entry: dict[str, Any] = {"image": _relative(sample.image, folder)}
    if sample.masks is not None:
        entry |= {"mask": [mask for _, mask in rows], "text": [text for text, _ in rows]}
    named = {"frame": sample.frame, "group": sample.group, "sequence": sample.sequence}
    entry |= {key: value for key, value in named.items() if value is not None}
    if sample.size is not None:
        entry["size"] = list(sample.size)
    if sample.spacing_mm is not None:
        entry["spacing_mm"] = list(sample.spacing_mm)
    return {**entry, **sample.metadata}


def _encode(reference: MaskReference, sample: Sample) -> Any:
    match reference:
        case Polygons(()):
            raise AnnotationError(
                f"{sample.id}: has an object without polygons; use Absent for a phrase that is not there"
            )
        case Polygons(parts):
            return [list(part) for part in parts]
        case RleMask(rle):
            return dict(rle)
        case MaskFile(path):
            return encode_rle(read_mask(path, _size(sample)))
        case Absent():
            return None


def _size(sample: Sample) -> Size:
    if sample.size is not None:
        return sample.size
    height, width, _ = read_image(sample.image, sample.frame).shape
    return height, width


def _relative(image: Path, folder: Path) -> str:
    # by name, without following links: a folder of images may be a link to another disk
    relative = Path(os.path.relpath(image, folder))
    if relative.parts[0] == "..":
        raise AnnotationError(f"{image}: lies outside of {folder}; copy the image there first")
    return relative.as_posix()
