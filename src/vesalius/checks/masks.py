"""Findings about the masks of a sample, and their area, width and overlaps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vesalius.checks.correction import NotCorrectable, same_ratio, stored_size
from vesalius.checks.findings import sample_finding, without_location
from vesalius.checks.geometry import check_polygons
from vesalius.checks.measurements import TargetMeasurement
from vesalius.checks.overlaps import Cover, Overlap
from vesalius.checks.widths import cell_px, skeleton_widths
from vesalius.data.dataset import LOSSY, load_mask
from vesalius.data.images import mask_values
from vesalius.errors import DataError
from vesalius.masks import Size
from vesalius.names import list_names
from vesalius.types import Absent, Finding, MaskFile, MaskReference, Polygons, RleMask, Sample


def check_masks(sample: Sample, size: Size) -> tuple[tuple[TargetMeasurement, ...], list[Overlap], list[Finding]]:
    """Measurements of each phrase without errors, overlaps between objects, and findings."""
    drawn_at = find_drawn_size(sample, size)
    if drawn_at is not None:
        message = f"was drawn at {compare_sizes(drawn_at, size)}"
        return (), [], [sample_finding("size_mismatch", sample, message, remedy=size_remedy(drawn_at, size))]
    targets, findings, cover = [], [], Cover(size)
    reported: set[Path | None] = set()  # label maps with a reported finding; all phrases share the file
    for phrase, objects in zip(sample.prompts, sample.masks or (), strict=sample.masks is not None):
        union: np.ndarray | None = np.zeros(size, dtype=bool, order="F")
        for number, reference in enumerate(objects):
            within = f"{phrase!r}, object {number}" if len(objects) > 1 else f"{phrase!r}"
            mask, found = _check_object(reference, size, sample, within)
            file = reference.path if isinstance(reference, MaskFile) else None
            findings += [each for each in found if each.code != "unknown_mask_value" or file not in reported]
            reported.update(file for each in found if each.code == "unknown_mask_value")
            if mask is not None:
                cover.add(phrase, within, mask)
            union = None if mask is None or union is None else np.logical_or(union, mask, out=union)
        if union is not None:
            targets.append(measure_target(phrase, union))
    return tuple(targets), cover.overlaps, findings


def find_drawn_size(sample: Sample, size: Size) -> Size | None:
    """Image size (h, w) at which the annotation was drawn, if it differs from `size`; else None.

    It is the size stated by the entry, or the first different size of an RLE or mask file.
    """
    if sample.size is not None and sample.size != size:
        return sample.size
    for reference in (each for objects in sample.masks or () for each in objects):
        stated = _stated_size(reference)
        if stated is not None and stated != size:
            return stated
    return None


def compare_sizes(drawn: Size, real: Size) -> str:
    """The two sizes as text: `800 x 800 for an image of 512 x 512 (h x w), ratio 1.5625`."""
    ratios = dict.fromkeys(f"{one / other:.5g}" for one, other in zip(drawn, real, strict=True))
    unlike = "" if same_ratio(drawn, real) else ", unequal in height and width: stretched, cropped or padded"
    return f"{drawn[0]} x {drawn[1]} for an image of {real[0]} x {real[1]} (h x w), ratio {' x '.join(ratios)}{unlike}"


def size_remedy(drawn: Size, real: Size) -> str:
    """The remedy if the aspect ratios differ; "" if they are equal, which means the remedy of the code."""
    return "" if same_ratio(drawn, real) else "use the image that was annotated, or draw the masks again"


def measure_target(phrase: str, mask: np.ndarray) -> TargetMeasurement:
    """Measurements of one phrase; `mask` is the union of its objects."""
    widths = skeleton_widths(mask)
    return TargetMeasurement(
        phrase,
        np.count_nonzero(mask) / mask.size,
        (float(widths.min()), float(np.median(widths))) if len(widths) else None,
        len(widths),
        int(np.count_nonzero(widths < cell_px((mask.shape[0], mask.shape[1])))),
    )


def _stated_size(reference: MaskReference) -> Size | None:
    """The size stated by an RLE or by the header of a mask file; None for other references."""
    if not isinstance(reference, RleMask | MaskFile):
        return None
    try:
        return stored_size(reference)
    except NotCorrectable:  # reading the mask later gives the finding
        return None


def _check_object(
    reference: MaskReference, size: Size, sample: Sample, within: str
) -> tuple[np.ndarray | None, list[Finding]]:
    """The mask of one object, or None if it has an error; and the findings about it."""
    findings = []
    if isinstance(reference, Polygons):
        findings = check_polygons(reference, size, sample, within)
        if any(each.severity == "error" for each in findings):
            return None, findings
    try:
        mask: np.ndarray = load_mask(reference, size, within)
    except DataError as error:
        message = without_location(error, within if isinstance(reference, RleMask) else "")
        within = "" if error.code == "unknown_mask_value" else within
        return None, [sample_finding(error.code, sample, message, within=within, remedy=error.remedy or "")]
    if isinstance(reference, MaskFile):
        findings = _check_file(reference, sample, within)
    if not _may_be_empty(reference) and not mask.any():
        findings.append(sample_finding("empty_mask", sample, "the mask has no pixels", within=within))
        return None, findings
    return mask, findings


def _may_be_empty(reference: MaskReference) -> bool:
    """Whether an empty mask is valid because it means that the object is absent, as in a label map."""
    return isinstance(reference, Absent) or (isinstance(reference, MaskFile) and reference.values is not None)


def _check_file(reference: MaskFile, sample: Sample, within: str) -> list[Finding]:
    path = reference.path
    if path.suffix.lower() in LOSSY:
        return [sample_finding("lossy_mask", sample, f"{path.name} is a JPEG", within=within)]
    values = mask_values(path) if reference.values is None else []
    if len(values) <= 2:
        return []
    message = f"{path.name} has {len(values)} values ({list_names(map(str, values))})"
    return [sample_finding("gray_mask", sample, message, within=within)]
