"""Write DICOM Segmentation objects: the masks of one DICOM image, single or multi-frame (PS3.3 A.51).

The segmentation is binary, with one segment per phrase, and one stored frame for each segment and source frame with a
non-empty mask. Frames reference the source by its UID and frame number. Patient and study are those of the source;
series and object are new. No library is used, because the one tested rejects sources without a frame of reference, such
as angiography.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.data.decoders.dicom_file import reading, silence
from vesalius.data.decoders.limits import image_error
from vesalius.data.readers.dicom_seg import SOP_CLASS
from vesalius.errors import SettingError
from vesalius.files import replacing
from vesalius.masks import Rle, Size, decode_rle, encode_rle
from vesalius.names import list_names

MAX_LABEL_LENGTH = 64
"""Maximum number of characters of a segment label (value representation LO)."""

PATIENT_AND_STUDY = (
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime AccessionNumber "
    "ReferringPhysicianName StudyID"
).split()
"""Copied attributes, which are empty if the source lacks them."""
OPTIONAL = (
    "PatientIdentityRemoved DeidentificationMethod StudyDescription LossyImageCompression "
    "LossyImageCompressionRatio LossyImageCompressionMethod"
).split()
"""Attributes that are copied if the source has them."""
REFERENCES = "SOPClassUID SOPInstanceUID SeriesInstanceUID StudyInstanceUID Rows Columns".split()
"""Attributes that a source must have so that a segmentation can reference it."""

Concept = tuple[str, str, str]
"""(code value, coding scheme, meaning)."""
ANATOMY: Concept = ("91723000", "SCT", "Anatomical Structure")
OBJECT: Concept = ("260787004", "SCT", "Physical object")
LESION: Concept = ("49755003", "SCT", "Morphologically Abnormal Structure")
SOURCE_IMAGE: Concept = ("121322", "DCM", "Source image for image processing operation")
UNKNOWN: tuple[Concept, Concept] = (
    ("309825002", "SCT", "Spatial and Relational Concept"),
    ("111099", "DCM", "Selected region"),
)
CONCEPTS: dict[str, tuple[Concept, Concept]] = {
    "blood vessel": (ANATOMY, ("59820001", "SCT", "Blood Vessel")),
    "vessel": (ANATOMY, ("59820001", "SCT", "Blood Vessel")),
    "artery": (ANATOMY, ("51114001", "SCT", "Artery")),
    "vein": (ANATOMY, ("29092000", "SCT", "Vein")),
    "coronary artery": (ANATOMY, ("41801008", "SCT", "Coronary artery")),
    "left coronary artery": (ANATOMY, ("50018008", "SCT", "Left Coronary Artery")),
    "right coronary artery": (ANATOMY, ("13647002", "SCT", "Right Coronary Artery")),
    "aorta": (ANATOMY, ("15825003", "SCT", "Aorta")),
    "catheter": (OBJECT, ("19923001", "SCT", "Catheter")),
    "guide wire": (OBJECT, ("272224001", "SCT", "Guide Wire")),
    "guidewire": (OBJECT, ("272224001", "SCT", "Guide Wire")),
    "stent": (OBJECT, ("65818007", "SCT", "Stent")),
    "stenosis": (LESION, ("415582006", "SCT", "Stenosis")),
    "aneurysm": (LESION, ("85659009", "SCT", "Aneurysm")),
}
"""Phrase in lower case -> (category, type) concepts of its segment; other phrases get `UNKNOWN`, a selected region."""


def check_labels(phrases: Sequence[str]) -> None:
    """Raise SettingError if a phrase cannot be a segment label: too long, with a backslash, or not printable."""
    for phrase in phrases:
        if len(phrase) > MAX_LABEL_LENGTH or "\\" in phrase or not phrase.isprintable():
            raise SettingError(
                f"the phrase {phrase[:80]!r} cannot label a DICOM segment, which allows at most {MAX_LABEL_LENGTH} characters "
                "without backslashes and line breaks; use a shorter phrase, or leave dicom out of --save",
                code="bad_value",
                field="prompt",
            )


def check_source(source: Path) -> None:
    """Raise ImageError if no segmentation can reference this image."""
    with _describing(source):
        pass


def write_segmentation(
    path: Path,
    source: Path,
    segments: Mapping[str, Mapping[int, Rle]],
    *,
    series_description: str,
    algorithm: str,
    unanswered: Sequence[int] = (),
) -> None:
    """Write the masks of `source`; `segments` maps phrase -> frame, counted from 0 -> mask.

    A frame without a mask, or with an empty one, is not stored, and readers take it as empty; if all are empty, one is
    stored, because an object needs a frame. `unanswered` lists the frames without a prediction, which the image comment
    names. Raises SettingError for a phrase that cannot be a label, ImageError for a source without the attributes
    `REFERENCES`, ValueError for a mask of another size or a frame that the source does not have.
    """
    check_labels((*segments, series_description, algorithm))
    with _describing(source) as (tags, found):
        found.SeriesDescription = series_description
        size, n_frames = (int(tags.Rows), int(tags.Columns)), int(tags.get("NumberOfFrames") or 0)
    with silence():
        masks = list(_filled(segments, size, max(n_frames, 1)))
        found.SegmentSequence = [
            _describe_segment(number, phrase, algorithm) for number, phrase in enumerate(segments, start=1)
        ]
        if unanswered:
            found.ImageComments = _name_frames(unanswered)
        _add_functional_groups(found, tags, [(number, frame) for number, frame, _ in masks], n_frames > 0)
        found.Rows, found.Columns = size
        bits = b"".join(_pack([rle for _, _, rle in masks]))
        found.PixelData = bits + b"\0" * (len(bits) % 2)
        found["PixelData"].VR = "OB"
        with replacing(path) as temporary:
            found.save_as(temporary, enforce_file_format=True)


def _filled(segments: Mapping[str, Mapping[int, Rle]], size: Size, n_frames: int) -> Iterator[tuple[int, int, Rle]]:
    """(segment number from 1, frame from 0, mask) of each non-empty mask, or of one empty mask if there is none."""
    empty = True
    for number, (phrase, frames) in enumerate(segments.items(), start=1):
        for frame in sorted(frames):
            if not 0 <= frame < n_frames or tuple(frames[frame]["size"]) != size:
                raise ValueError(f"{phrase}: the mask of frame {frame} does not fit {n_frames} frames of {size}")
            if decode_rle(frames[frame]).any():
                empty = False
                yield number, frame, frames[frame]
    if empty:
        yield 1, 0, encode_rle(np.zeros(size, dtype=bool))


def _pack(masks: Sequence[Rle]) -> Iterator[bytes]:
    """Pixels at one bit each, lowest bit first, eight frames at a time, so that each chunk is whole bytes."""
    for start in range(0, len(masks), 8):
        pixels = np.concatenate([decode_rle(rle).ravel() for rle in masks[start : start + 8]])
        yield np.packbits(pixels, bitorder="little").tobytes()


@contextmanager
def _describing(source: Path) -> Iterator[tuple[Any, Any]]:
    """(header of the source, new object without segments); ImageError if an attribute of `REFERENCES` is missing."""
    with reading(source) as (tags, _):
        for keyword in REFERENCES:
            if not tags.get(keyword):
                raise image_error(source, f"has no {keyword}, so no segmentation can reference it", "missing_tag")
        yield tags, _describe(tags)


def _describe(tags: Any) -> Any:
    """A new segmentation object without segments, functional groups and pixels."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found: Any = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    now = datetime.now()
    date, time = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    # pydicom decodes the text of the source and writes it as UTF-8
    found.SpecificCharacterSet = "ISO_IR 192"
    found.update({keyword: str(tags.get(keyword) or "") for keyword in PATIENT_AND_STUDY})
    found.LossyImageCompression = "00"
    found.update({keyword: tags[keyword].value for keyword in OPTIONAL if tags.get(keyword)})
    found.update({"SOPClassUID": SOP_CLASS, "SOPInstanceUID": generate_uid(prefix=None)})
    found.update({"StudyInstanceUID": tags.StudyInstanceUID, "SeriesInstanceUID": generate_uid(prefix=None)})
    found.update({"Modality": "SEG", "SeriesNumber": 1000 + int(tags.get("SeriesNumber") or 0)})
    found.update({"SeriesDate": date, "SeriesTime": time})
    found.update({"Manufacturer": "Vesalius", "ManufacturerModelName": "Vesalius", "DeviceSerialNumber": "0"})
    found.SoftwareVersions = version("vesalius")
    found.PatientOrientation = tags.get("PatientOrientation") or ""
    found.update({"InstanceNumber": 1, "ImageType": ["DERIVED", "PRIMARY"]})
    found.update({"ContentDate": date, "ContentTime": time, "ContentCreatorName": ""})
    found.update({"ContentLabel": "SEGMENTATION", "ContentDescription": "", "SegmentationType": "BINARY"})
    found.update({"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0})
    found.update({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0})
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = found.SOPClassUID, found.SOPInstanceUID
    return found


def _describe_segment(number: int, phrase: str, algorithm: str) -> Any:
    category, kind = CONCEPTS.get(phrase.lower(), UNKNOWN)
    return _dataset(
        SegmentNumber=number,
        SegmentLabel=phrase,
        SegmentAlgorithmType="AUTOMATIC",
        SegmentAlgorithmName=algorithm,
        SegmentedPropertyCategoryCodeSequence=[_code(category)],
        SegmentedPropertyTypeCodeSequence=[_code(kind)],
    )


def _add_functional_groups(found: Any, tags: Any, stored: Sequence[tuple[int, int]], multi_frame: bool) -> None:
    """Add functional groups with segment and source frame of each stored frame, also as dimension indices."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.uid import generate_uid

    organization = generate_uid(prefix=None)
    dimensions = (
        ("SegmentIdentificationSequence", "ReferencedSegmentNumber"),
        ("FrameContentSequence", "TemporalPositionIndex"),
    )
    found.DimensionOrganizationSequence = [_dataset(DimensionOrganizationUID=organization)]
    found.DimensionIndexSequence = [
        _dataset(
            DimensionOrganizationUID=organization,
            DimensionIndexPointer=tag_for_keyword(pointer),
            FunctionalGroupPointer=tag_for_keyword(group),
            DimensionDescriptionLabel=pointer,
        )
        for group, pointer in dimensions
    ]
    instance = {"ReferencedSOPClassUID": tags.SOPClassUID, "ReferencedSOPInstanceUID": tags.SOPInstanceUID}
    found.ReferencedSeriesSequence = [
        _dataset(SeriesInstanceUID=tags.SeriesInstanceUID, ReferencedInstanceSequence=[_dataset(**instance)])
    ]
    found.SharedFunctionalGroupsSequence = [_dataset()]
    found.NumberOfFrames = len(stored)
    found.PerFrameFunctionalGroupsSequence = [
        _dataset(
            SegmentIdentificationSequence=[_dataset(ReferencedSegmentNumber=number)],
            FrameContentSequence=[_dataset(DimensionIndexValues=[number, frame + 1], TemporalPositionIndex=frame + 1)],
            DerivationImageSequence=[
                _dataset(
                    DerivationCodeSequence=[_code(("113076", "DCM", "Segmentation"))],
                    SourceImageSequence=[
                        _dataset(
                            **instance,
                            **({"ReferencedFrameNumber": frame + 1} if multi_frame else {}),
                            SpatialLocationsPreserved="YES",
                            PurposeOfReferenceCodeSequence=[_code(SOURCE_IMAGE)],
                        )
                    ],
                )
            ],
        )
        for number, frame in stored
    ]


def _dataset(**values: Any) -> Any:
    from pydicom import Dataset

    found = Dataset()
    found.update(values)
    return found


def _code(concept: Concept) -> Any:
    value, scheme, meaning = concept
    return _dataset(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _name_frames(frames: Sequence[int]) -> str:
    """Comment of at most 1024 characters that lists frames, counted from 1 as in DICOM."""
    shown = list_names((str(frame + 1) for frame in sorted(frames)), 100)
    return f"no prediction for {len(frames)} frames of the source, so their masks are unknown, not empty: {shown}"
