"""Findings about the image of a sample: readability, EXIF orientation, alpha channel, personal DICOM tags."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from PIL import Image, UnidentifiedImageError

from vesalius.checks.findings import error_finding, sample_finding
from vesalius.data.dataset import decode_sample, stated_size
from vesalius.data.decoders import frame_files
from vesalius.data.decoders.decoded import Decoded
from vesalius.data.decoders.exif import SIDES_SWAPPED, UPRIGHT
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.data.decoders.picture import SUFFIXES
from vesalius.errors import DataError
from vesalius.types import Finding, Sample

FEW_LEVELS = 16
"""Number of gray levels below which the range of a deep image is too narrow."""
MUCH_CLIPPED = 0.5
"""Fraction of values outside a given window above which it does not fit the image."""


def check_image(sample: Sample, reader: FrameReader | None = None) -> tuple[Decoded | None, list[Finding]]:
    """The image, or None if it cannot be read; and the findings about it."""
    try:
        decoded = decode_sample(sample, reader)
        single = sample.image.suffix.lower() in SUFFIXES
        findings = _check_header(sample) if single else _check_tags(sample)
    except DataError as error:
        return None, [error_finding(error, sample)]
    if sample.masks and _is_ambiguous(decoded, sample):
        message = "has an EXIF orientation and is read upright; nothing states whether its masks were drawn so"
        findings.append(sample_finding("exif_rotation", sample, message))
    return decoded, findings + _check_values(decoded, sample)


def _check_values(decoded: Decoded, sample: Sample) -> list[Finding]:
    """Findings about the values of the pixels, and about the window that shows them."""
    found: dict[str, str] = {}
    shown = decoded.window
    n_levels = int(np.count_nonzero(np.bincount(decoded.pixels.ravel(), minlength=256)))
    if not np.ptp(decoded.pixels, axis=(0, 1)).any():
        found["constant_image"] = "has the same color in all pixels"
    elif shown is not None and n_levels < FEW_LEVELS:
        found["few_gray_levels"] = f"shows {n_levels} gray levels from {shown[0]:g} to {shown[1]:g}"
    picture = sample.image.suffix.lower() in SUFFIXES and sample.window.kind == "auto" and shown is not None
    if shown is not None and picture and decoded.depth.endswith("float") and not 0 <= shown[0] <= shown[1] <= 1:
        found["float_range"] = f"has values from {shown[0]:g} to {shown[1]:g}"
    if decoded.clipped > MUCH_CLIPPED:
        found["clipped_values"] = f"has {decoded.clipped:.0%} of its values outside the window {sample.window}"
    return [sample_finding(code, sample, message) for code, message in found.items()]


def _is_ambiguous(decoded: Decoded, sample: Sample) -> bool:
    """True if the image was turned and its annotation fits the stored image as well."""
    if decoded.orientation == UPRIGHT:
        return False
    height, width, _ = decoded.pixels.shape
    return decoded.orientation not in SIDES_SWAPPED or height == width or stated_size(sample) is None


def _check_header(sample: Sample) -> list[Finding]:
    with suppress(UnidentifiedImageError), Image.open(sample.image) as image:  # TIFF of floats is read by tifffile
        if image.has_transparency_data:
            message = f"has an alpha channel ({image.mode}) but is fully opaque"
            return [sample_finding("alpha_channel", sample, message)]
    return []


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
