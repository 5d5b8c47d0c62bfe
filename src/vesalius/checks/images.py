"""Findings about the image of a sample: readability, EXIF orientation, alpha channel, personal DICOM tags."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from vesalius.checks.findings import error_finding, sample_finding
from vesalius.data.dataset import load_image
from vesalius.data.decoders import frame_files
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.data.decoders.picture import SUFFIXES, has_exif_rotation
from vesalius.errors import DataError
from vesalius.types import Finding, Sample

ORIENTATION_MARKS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
"""PNG chunks that may contain an orientation. Pillow fully decodes a PNG to find it, so other files are skipped."""


def check_image(sample: Sample, reader: FrameReader | None = None) -> tuple[np.ndarray | None, list[Finding]]:
    """The pixels, uint8 (h, w, 3), or None if they cannot be read; and the findings about the image."""
    try:
        pixels = load_image(sample, reader)
        single = sample.image.suffix.lower() in SUFFIXES
        return pixels, _check_header(sample) if single else _check_tags(sample)
    except DataError as error:
        return None, [error_finding(error, sample)]


def _check_header(sample: Sample) -> list[Finding]:
    findings = []
    if _is_rotated(sample.image):
        message = "has an EXIF orientation, so viewers rotate it and masks drawn in them do not fit"
        findings.append(sample_finding("exif_rotation", sample, message))
    with Image.open(sample.image) as image:
        if image.has_transparency_data:
            message = f"has an alpha channel ({image.mode}) but is fully opaque"
            findings.append(sample_finding("alpha_channel", sample, message))
    return findings


def _is_rotated(path: Path) -> bool:
    if path.suffix.lower() == ".png":
        content = path.read_bytes()
        if not any(mark in content for mark in ORIENTATION_MARKS):
            return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged EXIF
        try:
            return has_exif_rotation(path)
        except Exception:  # Pillow's parsers raise exceptions of any type; viewers then do not rotate
            return False


def _check_tags(sample: Sample) -> list[Finding]:
    """Finding `personal_name` for a DICOM file with personal tags, reported for its first frame only."""
    kind = frame_files.kind_of(sample.image)
    if sample.frame or kind is None or kind is not frame_files.KINDS.get("dicom"):
        return []
    from vesalius.data.decoders.dicom_image import read_facts

    tags = read_facts(sample.image).personal_tags
    if not tags:
        return []
    return [sample_finding("personal_name", sample, f"the DICOM tags {', '.join(tags)} are filled in")]
