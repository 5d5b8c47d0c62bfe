"""What every writer asks of a sample: its size, its rows, and where its image lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vesalius.data.dataset import load_image
from vesalius.data.decoders.limits import MAX_PIXELS
from vesalius.errors import AnnotationError
from vesalius.masks import Size
from vesalius.types import Absent, MaskReference, Polygons, Sample


def check_any(folder: Path, samples: Sequence[Sample]) -> None:
    """Raise AnnotationError where there is nothing to write."""
    if not samples:
        raise AnnotationError(f"{folder}: there is no sample to write")


def size_of(sample: Sample) -> Size:
    """(h, w) as the annotation states it, else of the image; AnnotationError for over 200 megapixels."""
    height, width = sample.size or load_image(sample).shape[:2]
    if height * width > MAX_PIXELS:
        raise AnnotationError(
            f"{sample.source or sample.id}: states {height} x {width} (h x w) pixels, "
            f"more than {MAX_PIXELS // 10**6} million; correct the size",
            code="size_mismatch",
        )
    return height, width


def rows_of(sample: Sample) -> list[tuple[str, MaskReference]]:
    """Phrase and mask of each object, `Absent` for a phrase without any; none where nothing is annotated.

    Raises AnnotationError where an annotation names no phrase, or an object has no polygons.
    """
    if sample.masks == ():
        raise AnnotationError(f"{sample.id}: names no phrase; give at least one, or no masks at all")
    rows = [
        (phrase, reference)
        for phrase, objects in zip(sample.prompts, sample.masks or (), strict=sample.masks is not None)
        for reference in objects or (Absent(),)
    ]
    if any(reference == Polygons(()) for _, reference in rows):
        raise AnnotationError(
            f"{sample.id}: has an object without polygons; use Absent for a phrase that is not there"
        )
    return rows


def image_path(sample: Sample, folder: Path) -> Path:
    """The image's path relative to `folder`; AnnotationError where it lies outside, judged by name alone."""
    image = sample.image.absolute()
    if ".." in image.parts or not image.is_relative_to(folder.absolute()):
        raise AnnotationError(f"{sample.image}: lies outside of {folder}; copy the image there first")
    return image.relative_to(folder.absolute())


def check_metadata_names(sample: Sample, keys: Sequence[str]) -> None:
    """Raise AnnotationError where metadata has the name of a key that the format uses."""
    clash = sorted(set(sample.metadata) & set(keys))
    if clash:
        raise AnnotationError(
            f"{sample.id}: metadata may not be named {', '.join(clash)}; the format uses that name"
        )
