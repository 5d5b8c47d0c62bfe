"""Write LabelMe: one JSON file beside each image, readable by `readers.labelme` and LabelMe.

Polygons stay polygons; RLE and mask files become mask shapes. Parts of one object share a `group_id`. Properties without
a LabelMe key are stored under the key `vesalius`, which LabelMe keeps when it saves.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vesalius.data.dataset import check_polygons, load_mask
from vesalius.data.images import frame_id
from vesalius.data.readers.labelme import OURS
from vesalius.data.sample_fields import write_sample_fields
from vesalius.data.writers.samples import check_any, check_metadata_names, image_path, rows_of, size_of
from vesalius.errors import AnnotationError
from vesalius.files import write_json
from vesalius.masks import bounds
from vesalius.types import Absent, Polygons, Sample

VERSION = "5.5.0"
"""LabelMe version of the format; later versions open it too."""


def write(folder: Path, samples: Sequence[Sample]) -> list[str]:
    """Write the JSON files of samples with images in `folder`; returns notes on samples that LabelMe cannot show.

    Raises AnnotationError if there is no sample, two samples have the same file, a mask does not match its image, or a
    metadata key is a key of the format.
    """
    check_any(folder, samples)
    written: set[Path] = set()
    for sample in samples:
        image_path(sample, folder)  # raises if the image is outside the folder
        stem = sample.image.stem if sample.frame is None else frame_id(sample.image.stem, sample.frame)
        path = sample.image.with_name(f"{stem}.json")
        if path in written:
            raise AnnotationError.at(
                path,
                f"would be written for two samples, the second being {sample.id}; rename an image",
                code="duplicate_id",
            )
        written.add(path)
        write_json(path, _entry(sample))
    frames = sum(sample.frame is not None for sample in samples)
    return [f"frames of multi-frame files, which LabelMe does not open: {frames}"] if frames else []


def _entry(sample: Sample) -> dict[str, Any]:
    check_polygons(sample)
    check_metadata_names(sample, OURS)
    rows, size = rows_of(sample), size_of(sample)
    shapes: list[dict[str, Any]] = []
    groups = 0
    for phrase, reference in rows:
        if isinstance(reference, Polygons):
            several = len(reference.parts) > 1
            groups += several
            shapes += [_polygon(phrase, part, groups if several else None) for part in reference.parts]
        elif not isinstance(reference, Absent):
            shapes.append(_mask(phrase, load_mask(reference, size, str(sample.source or sample.id))))
    absent = list(dict.fromkeys(phrase for phrase, reference in rows if isinstance(reference, Absent)))
    ours = {**({"absent": absent} if absent else {}), **write_sample_fields(sample), **sample.metadata}
    return {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": sample.image.name,
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
        **({"vesalius": ours} if ours else {}),
    }


def _polygon(phrase: str, part: Sequence[float], group: int | None) -> dict[str, Any]:
    points = [list(point) for point in zip(part[::2], part[1::2], strict=True)]
    return _shape(phrase, "polygon", points, group, None)


def _mask(phrase: str, mask: np.ndarray) -> dict[str, Any]:
    """A mask shape with the bounding box of the mask; one pixel of background if it is empty."""
    top, left, bottom, right = bounds(mask) or (0, 0, 1, 1)
    file = io.BytesIO()
    Image.fromarray(mask[top:bottom, left:right].astype(np.uint8)).save(file, format="PNG")
    packed = base64.b64encode(file.getvalue()).decode("ascii")
    return _shape(phrase, "mask", [[left, top], [right - 1, bottom - 1]], None, packed)


def _shape(phrase: str, form: str, points: list[list[Any]], group: int | None, mask: str | None) -> dict[str, Any]:
    return {
        "label": phrase,
        "points": points,
        "group_id": group,
        "description": "",
        "shape_type": form,
        "flags": {},
        "mask": mask,
    }
