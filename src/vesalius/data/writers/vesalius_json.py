"""Write the annotation format `vesalius`, the official fine-tuning JSON of Sa2VA: one entry per sample.

    [{"image": "images/a.png", "mask": [object, ...], "text": [str, ...], "group": str, "size": [h, w]}, ...]

`mask[i]` is the object of `text[i]`: a list of polygons, COCO RLE, or null if the phrase is not in the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vesalius.data.images import read_mask
from vesalius.data.readers.vesalius_json import KEYS
from vesalius.data.sample_fields import write_sample_fields
from vesalius.data.writers.samples import check_any, check_metadata_names, image_path, rows_of, size_of
from vesalius.files import write_json
from vesalius.masks import encode_rle
from vesalius.types import Absent, MaskFile, MaskReference, Polygons, RleMask, Sample


def write(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples as one JSON file; image paths become relative to it.

    A phrase gets one row per object, or one row with null if it has none. Mask files become RLE. A sample without
    annotation has neither `mask` nor `text`. Raises AnnotationError for samples that the reader would reject: no sample,
    an annotation without a phrase, an image outside the file's folder, or a metadata key that is a key of the format.
    """
    check_any(path, samples)
    write_json(path, [_entry(sample, path.parent) for sample in samples])


def _entry(sample: Sample, folder: Path) -> dict[str, Any]:
    check_metadata_names(sample, KEYS)
    rows = [(text, _encode(reference, sample)) for text, reference in rows_of(sample)]
    entry: dict[str, Any] = {"image": image_path(sample, folder).as_posix()}
    if sample.masks is not None:
        entry |= {"mask": [mask for _, mask in rows], "text": [text for text, _ in rows]}
    if sample.size is not None:
        entry["size"] = list(sample.size)
    return {**entry, **write_sample_fields(sample), **sample.metadata}


def _encode(reference: MaskReference, sample: Sample) -> Any:
    match reference:
        case Polygons(parts):
            return [list(part) for part in parts]
        case RleMask(rle):
            return dict(rle)
        case MaskFile(path, values, known):
            mask = read_mask(path, size_of(sample), values, known)
            return encode_rle(mask) if values is None or mask.any() else None
        case Absent():
            return None
