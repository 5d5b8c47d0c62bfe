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
"""`write(folder, samples)` for samples whose images already lie in `folder`, by custom in its `images/`.
Gives one note each for what the format cannot hold; raises AnnotationError for what it cannot be written
of."""
