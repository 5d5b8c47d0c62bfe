"""Shared by all writers: size, rows and image path of a sample, and checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vesalius.data.dataset import load_image
from vesalius.data.decoders.limits import MAX_PIXELS
from vesalius.errors import AnnotationError
from vesalius.masks import Size
from vesalius.types import Absent, MaskReference, Polygons, Sample


def check_any(folder: Path, samples: Sequence[Sample]) -> None:
    """Raise AnnotationError if there is no sample."""
    if not samples:
        raise AnnotationError.at(folder, "there is no sample to write", code="nothing_to_write")


def size_of(sample: Sample) -> Size:
    """(h, w) stated in the annotation, else of the image; AnnotationError for more than `MAX_PIXELS` pixels."""
    height, width = sample.size or load_image(sample).shape[:2]
    if height * width > MAX_PIXELS:
        raise AnnotationError(
            f"{sample.source or sample.id}: states {height} x {width} (h x w) pixels, "
            f"more than {MAX_PIXELS // 10**6} million; correct the size",
            code="size_mismatch",
        )
    return height, width


def rows_of(sample: Sample) -> list[tuple[str, MaskReference]]:
    """(phrase, mask) of each object, with `Absent` for a phrase without objects; empty for an unannotated sample.

    Raises AnnotationError if an annotation has no phrase, or an object has no polygons.
    """
    if sample.masks == ():
        raise AnnotationError(f"{sample.id}: has no phrase; give at least one, or masks=None", code="no_phrase")
    rows = [
        (phrase, reference)
        for phrase, objects in zip(sample.prompts, sample.masks or (), strict=sample.masks is not None)
        for reference in objects or (Absent(),)
    ]
    if any(reference == Polygons(()) for _, reference in rows):
        raise AnnotationError(
            f"{sample.id}: has an object without polygons; use Absent for a phrase that is not in the image",
            code="empty_object",
        )
    return rows


def image_path(sample: Sample, folder: Path) -> Path:
    """Path of the image relative to `folder`; AnnotationError if it is outside; links are not resolved."""
    image = sample.image.absolute()
    if ".." in image.parts or not image.is_relative_to(folder.absolute()):
        raise AnnotationError.at(sample.image, f"is outside {folder}; copy the image there first", code="outside_path")
    return image.relative_to(folder.absolute())


def check_metadata_names(sample: Sample, keys: Sequence[str]) -> None:
    """Raise AnnotationError if a metadata key is a key of the format."""
    clash = sorted(set(sample.metadata) & set(keys))
    if clash:
        raise AnnotationError(
            f"{sample.id}: metadata may not be named {', '.join(clash)}; the format uses that name, so rename it",
            code="reserved_key",
            field=clash[0],
        )
