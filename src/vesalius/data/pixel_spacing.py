"""Pixel spacing of an image file, and where it is stated."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from vesalius.data.decoders import frame_files, nifti
from vesalius.data.decoders.dicom_image import read_facts
from vesalius.data.decoders.limits import version_of
from vesalius.errors import ImageError
from vesalius.types import Sample

Spacing = tuple[tuple[float, float] | None, str]
"""((y, x) in mm or None, source): `PixelSpacing`, `ImagerPixelSpacing` (at the detector, hence larger than in the
patient), `NIfTI`, `annotation`, or "" if no spacing is stated."""


def find_spacing(sample: Sample) -> Spacing:
    """The spacing in the header of the sample's DICOM or NIfTI file, else the one that its annotation states."""
    try:
        found = _read_header(*version_of(sample.image))
    except ImageError:
        found = None, ""
    if found[0] is None and sample.spacing_mm is not None:
        return sample.spacing_mm, "annotation"
    return found


@lru_cache(maxsize=1024)
def _read_header(path: Path, size: int, time_ns: int) -> Spacing:
    kind = frame_files.kind_of(path)
    if kind is frame_files.KINDS["dicom"]:
        facts = read_facts(path)
        return facts.spacing_mm, facts.spacing_of
    if kind is frame_files.KINDS["nifti"]:
        spacing = nifti.spacing_mm(path)
        return spacing, "NIfTI" if spacing else ""
    return None, ""
