"""Table of the annotation formats that can be written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vesalius.data.writers import coco, labelme, masks, vesalius_json
from vesalius.types import Sample


def _write_vesalius(folder: Path, samples: Sequence[Sample]) -> list[str]:
    vesalius_json.write(folder / "annotations.json", samples)
    return []


WRITERS: dict[str, Callable[[Path, Sequence[Sample]], list[str]]] = {
    "vesalius": _write_vesalius,
    "coco": coco.write,
    "labelme": labelme.write,
    "masks": masks.write,
}
"""Format -> `write(folder, samples)`, for samples with images already in `folder`, usually in its `images/`. It returns
one note for each kind of information that the format cannot store, and raises AnnotationError for samples that the
format cannot represent."""
