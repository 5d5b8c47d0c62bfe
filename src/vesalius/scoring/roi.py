"""Region-of-interest masks, found by image id; pixels outside the region are not scored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from vesalius.data.images import list_images, read_mask, sample_id
from vesalius.errors import DataError, ImageError
from vesalius.lineage import hash_file
from vesalius.masks import Size
from vesalius.types import Sample


def masks_by_id(folder: Path) -> dict[str, Path]:
    """Image id -> mask file at any depth of a folder; DataError if two files have the same id."""
    found: dict[str, Path] = {}
    for path in list_images(folder):
        name = sample_id(path.relative_to(folder))
        if name in found:
            raise DataError.at(
                folder,
                f"{found[name].name} and {path.name} both belong to {name}; keep one",
                code="duplicate_id",
                field=name,
            )
        found[name] = path
    return found


class RoiMasks:
    """Region-of-interest masks by sample id; DataError if a sample has no mask in the folder."""

    def __init__(self, folder: Path, samples: Sequence[Sample]) -> None:
        if not folder.is_dir():
            raise DataError.at(folder, "this folder of region-of-interest masks does not exist", code="not_found")
        found = masks_by_id(folder)
        missing = [sample.id for sample in samples if sample.id not in found]
        if missing:
            raise DataError.at(
                folder,
                f"{len(missing)} of {len(samples)} images have no region-of-interest mask "
                f"({', '.join(missing[:10])}); name each mask file by the id of its image",
                code="missing_roi",
                field=missing[0],
            )
        self.folder = folder
        self._paths = {sample.id: found[sample.id] for sample in samples}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over ids and file contents, independent of the folder's location."""
        digest = hashlib.sha256()
        for name, path in sorted(self._paths.items()):
            try:
                digest.update(f"{name} {hash_file(path)}\n".encode())
            except OSError as error:
                raise ImageError.at(path, f"cannot be read ({error.strerror})", code="unreadable_file") from error
        return digest.hexdigest()

    def read(self, sample: Sample, size: Size) -> Bool[np.ndarray, "h w"]:
        """Region of interest of a sample; DataError if its file cannot be read, has a wrong size, or is empty."""
        path = self._paths[sample.id]
        roi = read_mask(path, size)
        if not roi.any():
            raise DataError.at(
                path, "the region of interest has no pixel, so nothing can be scored in it", code="empty_roi"
            )
        return roi
