"""Mask files that are found by the id of the image they belong to, and those of them that limit where is scored."""

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
    """Image files at any depth of a folder, by the id that an image of that name has; DataError for two of one id."""
    found: dict[str, Path] = {}
    for path in list_images(folder):
        name = sample_id(path.relative_to(folder))
        if name in found:
            raise DataError(f"{folder}: {found[name].name} and {path.name} both belong to {name}; keep one")
        found[name] = path
    return found


class Regions:
    """Masks of regions of interest, by the ids of samples.

    DataError where the folder has none for one of them.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample]) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder}: is no folder of region masks")
        found = masks_by_id(folder)
        missing = [sample.id for sample in samples if sample.id not in found]
        if missing:
            raise DataError(
                f"{folder}: has no region for {len(missing)} of {len(samples)} images "
                f"({', '.join(missing[:10])}); a region is a mask file named by the image's id"
            )
        self.folder = folder
        self._paths = {sample.id: found[sample.id] for sample in samples}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over ids and files, independent of the folder."""
        digest = hashlib.sha256()
        for name, path in sorted(self._paths.items()):
            try:
                digest.update(f"{name} {hash_file(path)}\n".encode())
            except OSError as error:
                raise ImageError(f"{path}: cannot be read ({error.strerror})") from error
        return digest.hexdigest()

    def of(self, sample: Sample, size: Size) -> Bool[np.ndarray, "h w"]:
        """The region of a sample; DataError where it cannot be read, has another size, or no pixel."""
        path = self._paths[sample.id]
        region = read_mask(path, size)
        if not region.any():
            raise DataError(f"{path}: the region has no pixel, so nothing can be scored in it")
        return region
