"""Read DICOM images: facts from the header, and single frames as displayed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.data.decoders import dicom_display as display
from vesalius.data.decoders.decoded import Decoded, as_rgb, depth_of, show
from vesalius.data.decoders.dicom_file import DicomImage, decode, opened
from vesalius.data.decoders.limits import image_error, version_of
from vesalius.masks import Size
from vesalius.window import AUTO, MAX_SAMPLED, Range, Window

SUFFIXES = (".dcm", ".dicom")

NOT_IMAGES = tuple(
    f"1.2.840.10008.{part}"
    for part in (
        "1.3.10",
        *(
            f"5.1.4.1.1.{n}"
            for n in ("9.", "11.", "66", "67", "88.", "104.", "481.3", *(f"481.{k}" for k in range(4, 10)))
        ),
    )
)
"""Prefixes of SOP classes without an image: directories, waveforms, presentation states, segmentations and raw data,
reports, encapsulated documents, radiotherapy structures and beams."""

RANGE_FRAMES = 64
"""Maximum number of evenly spread frames that determine the value range of an image without a window."""
IDENTIFYING = (
    "PatientName PatientID PatientBirthDate PatientAddress PatientTelephoneNumbers PatientMotherBirthName "
    "PatientBirthName OtherPatientIDs OtherPatientNames OtherPatientIDsSequence AccessionNumber "
    "ReferringPhysicianName PerformingPhysicianName PhysiciansOfRecord OperatorsName InstitutionName "
    "InstitutionAddress StationName DeviceSerialNumber StudyID"
).split()
"""Attributes that identify a person, an institution or a record by themselves (from PS3.15 table E.1-1)."""


@dataclass(frozen=True)
class DicomFacts:
    """Facts from the header of an image; None or empty if not stated."""

    frames: int
    size: Size
    photometric: str
    spacing_mm: tuple[float, float] | None
    """Pixel spacing (y, x)."""
    spacing_of: str
    """Source of `spacing_mm`: `PixelSpacing` (calibrated, or in the patient) or `ImagerPixelSpacing` (at the detector,
    magnified); "" without spacing."""
    frame_time_ms: float | None
    sop_instance_uid: str
    series_uid: str
    study_uid: str
    instance_number: int | None
    patient_id: str = field(repr=False)
    burned_in_annotation: bool | None
    """True if the pixels show text that identifies the patient; None if not stated."""
    personal_tags: tuple[str, ...]
    """The attributes in `IDENTIFYING` that have a value."""


def recognize(path: Path, head: bytes) -> bool:
    """True if the first bytes are those of a DICOM file that may contain an image."""
    return head[128:132] == b"DICM" and not sop_class(head).startswith(NOT_IMAGES)


def sop_class(head: bytes) -> str:
    """The SOP class UID in the first bytes of a DICOM file; "" if it is not there."""
    _, found, rest = head[132:].partition(b"\x02\x00\x02\x00UI")
    length = int.from_bytes(rest[:2], "little")
    return rest[2 : 2 + length].rstrip(b"\0 ").decode("ascii", "replace") if found else ""


def count_frames(path: Path) -> int:
    """Number of frames stated in the header; ImageError if the file is unreadable or too short for them."""
    with opened(path) as image:
        return image.frames


def read_frame(path: Path, index: int, window: Window = AUTO) -> Decoded:
    """Frame `index` (from 0) as RGB, with the display transform of the header; no other frame is decoded.

    Gray values pass the modality transform and the first window, and are inverted for MONOCHROME1. Without a window,
    images of at most 8 bits show the full range of their bits, and deeper ones the range of values in the file (in at
    most 64 evenly spread frames): the same range for all frames of a cine, but not for all files of a series. A window
    other than `auto` replaces that of the header, applies to values after the modality transform, and for colors to
    each channel. Subtraction masks, overlays and color profiles are not applied. Raises ImageError if the file or its
    compression cannot be read, or the image is deeper than 16 bits.
    """
    with opened(path) as image:
        tags = image.tags
        pixels = decode(image, index)
        depth = depth_of(pixels.dtype, int(tags.BitsStored))
        if tags.PhotometricInterpretation not in display.GRAYS:
            if window.kind != "auto":
                return show(
                    _to_color(image, pixels), window, path, lambda: _find_window(*version_of(path), window), depth
                )
            return Decoded(np.ascontiguousarray(_to_color(image, pixels)), None, depth)
        asked = None if window.kind == "auto" else _find_window(*version_of(path), window)
        table = display.gray_table(tags, index, pixels.dtype, lambda: _find_range(*version_of(path)), str(path), asked)
        bits = pixels.view(f"u{pixels.dtype.itemsize}")
        clipped = 0.0 if table.outside is None else float(table.outside[bits].mean())
        return Decoded(as_rgb(table.levels[bits]), table.window, depth, clipped)


class DicomDecoder:
    """Decoder of one DICOM file, which is opened anew for each frame."""

    def __init__(self, path: Path) -> None:
        self.path, self.n_frames = path, count_frames(path)

    def read(self, frame: int, window: Window = AUTO) -> Decoded:
        """A frame as displayed; raises ImageError as `read_frame` does."""
        return read_frame(self.path, frame, window)

    def close(self) -> None:
        """Do nothing, because no file stays open."""


def read_facts(path: Path) -> DicomFacts:
    """Facts from the header; ImageError if it is unreadable or describes no image."""
    with opened(path) as image:
        tags = image.tags
        spacing, spacing_of = _read_spacing(tags)
        stated = str(tags.get("BurnedInAnnotation") or "")
        # after de-identification, these two are pseudonyms
        known = ("PatientName", "PatientID") if tags.get("PatientIdentityRemoved") == "YES" else ()
        number = tags.get("InstanceNumber")
        return DicomFacts(
            frames=image.frames,
            size=image.size,
            photometric=str(tags.PhotometricInterpretation),
            spacing_mm=spacing,
            spacing_of=spacing_of,
            frame_time_ms=_read_frame_time(tags),
            sop_instance_uid=_text(tags, "SOPInstanceUID"),
            series_uid=_text(tags, "SeriesInstanceUID"),
            study_uid=_text(tags, "StudyInstanceUID"),
            instance_number=None if number is None else int(number),
            patient_id=_text(tags, "PatientID"),
            burned_in_annotation={"YES": True, "NO": False}.get(stated),
            # REMOVED is the dummy value that de-identification writes for mandatory attributes
            personal_tags=tuple(
                name for name in IDENTIFYING if name not in known and _text(tags, name) not in ("", "REMOVED")
            ),
        )


def frame_time_ms(path: Path) -> float | None:
    """Mean time between frames in ms; None if the header does not state it."""
    return read_facts(path).frame_time_ms


def _to_color(image: DicomImage, pixels: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) of a color image; palette colors are looked up, other models are decoded to RGB already."""
    from pydicom.pixels import apply_color_lut

    kind = image.tags.PhotometricInterpretation
    bits = int(image.tags.BitsStored)
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, image.tags)
        bits = 8 * pixels.dtype.itemsize
    elif kind not in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"):
        raise image_error(image.path, "has an unsupported color model", "unsupported_color_model")
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise image_error(image.path, "does not have three colors per pixel", "unsupported_color_model")
    return display.colors(pixels, bits)


@lru_cache(maxsize=64)
def _find_range(path: Path, size: int, time_ns: int) -> display.StoredRange:
    """Lowest and highest stored value except padding; (0, 0) if all pixels are padding."""
    low, high = [], []
    for _, _, pixels in _without_padding(path):
        low.append(int(pixels.min()))
        high.append(int(pixels.max()))
    return min(low, default=0), max(high, default=0)


@lru_cache(maxsize=64)
def _find_window(path: Path, size: int, time_ns: int, window: Window) -> Range:
    """Values after the modality transform that a window other than `auto` shows as black and white."""
    if window.kind == "range":
        return window.low, window.high
    values = [
        pixels if pixels.ndim > 1 else display.apply_modality(image.tags, index, pixels, str(path))
        for image, index, pixels in _without_padding(path, MAX_SAMPLED)
    ]
    if not values:
        return 0.0, 0.0
    return window.find_range(values, sum(part.size for part in values), path)


def _without_padding(path: Path, sampled: int | None = None) -> Iterator[tuple[DicomImage, int, np.ndarray]]:
    """(image, frame, its gray values without padding, or its colors) of at most `RANGE_FRAMES` evenly spread frames.

    With `sampled`, about this many gray values of all frames together, evenly spread. Frames of padding alone are left
    out.
    """
    with opened(path) as image:
        steps = min(image.frames, RANGE_FRAMES)
        stride = 1 if sampled is None else -(-steps * image.size[0] * image.size[1] // sampled) | 1
        for index in np.linspace(0, image.frames - 1, steps).round().astype(int).tolist():
            pixels = decode(image, index)
            if pixels.ndim > 2 or image.tags.PhotometricInterpretation not in display.GRAYS:
                yield image, index, _to_color(image, pixels)
                continue
            pixels = pixels[~display.is_padding(image.tags, pixels)][::stride]
            if pixels.size:
                yield image, index, pixels


def _text(tags: Any, keyword: str) -> str:
    value = tags.get(keyword)
    return "" if value is None else str(value).strip()


def _read_spacing(tags: Any) -> tuple[tuple[float, float] | None, str]:
    measures = display.functional_group(tags, 0, "PixelMeasuresSequence") or tags
    # in angiography, PixelSpacing is present only after calibration (PS3.3 10.7.1.1)
    for source, keyword in ((measures, "PixelSpacing"), (tags, "ImagerPixelSpacing")):
        pair = [float(number) for number in source.get(keyword) or ()]
        if len(pair) == 2 and all(math.isfinite(number) and number > 0 for number in pair):
            return (pair[0], pair[1]), keyword
    return None, ""


def _read_frame_time(tags: Any) -> float | None:
    """Mean time between frames in ms."""
    steps = tags.get("FrameTimeVector") or ()
    steps = [steps] if isinstance(steps, float) else steps
    rate = float(tags.get("CineRate") or 0)
    time = float(tags.get("FrameTime") or 0) or (sum(map(float, steps[1:])) / len(steps[1:]) if steps[1:] else 0)
    time = time or (1000 / rate if rate > 0 else 0)
    return time if time > 0 and math.isfinite(time) else None
