"""The image of a sample: whether it can be read, and what its header says that a reader would miss."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from vesalius.checks.findings import finding, known_code, sample_finding, split_remedy, split_source
from vesalius.data.dataset import load_image
from vesalius.data.decoders import frame_files
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.data.decoders.picture import SUFFIXES, has_exif_rotation
from vesalius.errors import DataError
from vesalius.types import Finding, Sample

TURNING = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
"""Where a PNG may say that it is to be turned: only in a file with one of these is that looked for, because Pillow
decodes the whole of it."""


def check_image(sample: Sample, reader: FrameReader | None = None) -> tuple[np.ndarray | None, list[Finding]]:
    """The pixels uint8 (h, w, 3), or None where they cannot be read, and findings."""
    try:
        pixels = load_image(sample, reader)
        single = sample.image.suffix.lower() in SUFFIXES
        return pixels, _check_header(sample) if single else _check_tags(sample)
    except DataError as error:
        place = split_source(sample.source)[1] or sample.image.name
        message, remedy = split_remedy(str(error).removeprefix(f"{sample.image}: "))
        code = known_code(error)
        return None, [
            finding(code, sample.image, place, message, remedy=remedy, severity="error", samples=[sample.id])
        ]


def _check_header(sample: Sample) -> list[Finding]:
    findings = []
    if _is_turned(sample.image):
        message = "the file asks viewers to turn it (EXIF), so masks drawn in one lie askew"
        findings.append(sample_finding("exif_rotation", sample, message))
    with Image.open(sample.image) as image:
        if image.has_transparency_data:
            message = f"has an alpha channel ({image.mode}), though nothing in it is transparent"
            findings.append(sample_finding("alpha_channel", sample, message))
    return findings


def _is_turned(path: Path) -> bool:
    if path.suffix.lower() == ".png":
        content = path.read_bytes()
        if not any(mark in content for mark in TURNING):
            return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged EXIF
        try:
            return has_exif_rotation(path)
        except Exception:  # and raises what its parser meets; viewers turn nothing then
            return False


def _check_tags(sample: Sample) -> list[Finding]:
    """`personal_name` where a DICOM file says whose it is; once for all of its frames."""
    kind = frame_files.kind_of(sample.image)
    if sample.frame or kind is None or kind is not frame_files.KINDS.get("dicom"):
        return []
    from vesalius.data.decoders.dicom_image import read_facts

    tags = read_facts(sample.image).personal_tags
    if not tags:
        return []
    return [sample_finding("personal_name", sample, f"the DICOM tags {', '.join(tags)} are filled in")]
