"""Write COCO instances: `annotations.json`, readable by `readers.coco` and pycocotools.

Polygons stay polygons, RLE stays RLE, and mask files become RLE; each object is one annotation. `neg_category_ids`, as
in LVIS, lists phrases that are absent from an image; group, sequence, frame, spacing and metadata are keys of the
image's record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vesalius.data.dataset import load_mask
from vesalius.data.readers.coco import KEYS
from vesalius.data.sample_fields import write_sample_fields
from vesalius.data.writers.samples import check_any, check_metadata_names, image_path, rows_of, size_of
from vesalius.files import to_json, write_text
from vesalius.masks import Size, bounds, encode_rle
from vesalius.types import Absent, MaskReference, Polygons, RleMask, Sample


def write(folder: Path, samples: Sequence[Sample]) -> list[str]:
    """Write `annotations.json` for samples with images in `folder`; returns no notes, because nothing is lost.

    Image, annotation and category ids start at 1, categories in order of first appearance. Raises AnnotationError if
    there is no sample, a mask does not match its image, or a metadata key is a key of the format.
    """
    check_any(folder, samples)
    categories: dict[str, int] = {}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, sample in enumerate(samples, 1):
        rows, size = rows_of(sample), size_of(sample)
        for phrase, _ in rows:
            categories.setdefault(phrase, len(categories) + 1)
        images.append(_image(sample, number, size, rows, categories, folder))
        for phrase, reference in rows:
            if not isinstance(reference, Absent):
                ids = {"id": len(annotations) + 1, "image_id": number, "category_id": categories[phrase]}
                annotations.append(ids | _shape(reference, size, str(sample.source or sample.id)))
    value = {
        "info": {"description": "written by Vesalius", "version": "1.0"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": phrase, "supercategory": ""} for phrase, number in categories.items()],
    }
    # no indentation, which would put each coordinate on its own line
    write_text(folder / "annotations.json", to_json(value) + "\n")
    return []


def _image(
    sample: Sample,
    number: int,
    size: Size,
    rows: Sequence[tuple[str, MaskReference]],
    categories: Mapping[str, int],
    folder: Path,
) -> dict[str, Any]:
    check_metadata_names(sample, KEYS)
    absent = dict.fromkeys(phrase for phrase, reference in rows if isinstance(reference, Absent))
    return {
        "id": number,
        "file_name": image_path(sample, folder).as_posix(),
        "height": size[0],
        "width": size[1],
        "neg_category_ids": [categories[phrase] for phrase in absent],
        **write_sample_fields(sample),
        **sample.metadata,
    }


def _shape(reference: MaskReference, size: Size, where: str) -> dict[str, Any]:
    """`segmentation`, and the `area` and `bbox` (x, y, w, h) of its pixels."""
    mask = load_mask(reference, size, where)
    top, left, bottom, right = bounds(mask) or (0, 0, 0, 0)
    match reference:
        case Polygons(parts):
            segmentation: Any = [list(part) for part in parts]
        case RleMask(rle):
            segmentation = dict(rle)
        case _:
            segmentation = encode_rle(mask)
    return {
        "segmentation": segmentation,
        "area": int(mask.sum()),
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
    }
