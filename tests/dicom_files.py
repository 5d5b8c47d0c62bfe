"""Write arrays as DICOM angiograms: single frames or cines, in every transfer syntax with an encoder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import Dataset, uid
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

from vesalius.data.readers.dicom_seg import read_segmentation
from vesalius.masks import Rle

XA = "1.2.840.10008.5.1.4.1.1.12.1"
PATIENT = "Vogel^Greta"
"""A name that must not appear in messages or de-identified files."""
SYNTAXES = {
    "explicit": uid.ExplicitVRLittleEndian,
    "implicit": uid.ImplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "rle": uid.RLELossless,
    "jpeg 2000 lossless": uid.JPEG2000Lossless,
    "jpeg 2000": uid.JPEG2000,
    "jpeg baseline": uid.JPEGBaseline8Bit,
}
"""Syntaxes that pydicom and Pillow can write; JPEG-LS and other JPEGs are tested with pydicom's own files."""


def make_xa(frames: np.ndarray, **tags: Any) -> Dataset:
    """The dataset of an angiogram: frames (f, h, w) uint8, uint16 or int16, a cine unless f = 1; `tags` by keyword.

    None removes a tag.
    """
    xa = Dataset()
    n, rows, columns = frames.shape[:3]
    bits = 8 * frames.dtype.itemsize
    values = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY", "SINGLE PLANE"],
        "SOPClassUID": XA,
        "SOPInstanceUID": "1.2.3.4.1",
        "StudyDate": "20240101",
        "StudyTime": "101112",
        "AccessionNumber": "",
        "Modality": "XA",
        "Manufacturer": "",
        "ReferringPhysicianName": "",
        "PatientName": PATIENT,
        "PatientID": "17",
        "PatientBirthDate": "",
        "PatientSex": "F",
        "StudyInstanceUID": "1.2.3.4.2",
        "SeriesInstanceUID": "1.2.3.4.3",
        "StudyID": "1",
        "Laterality": "",
        "SeriesNumber": 1,
        "InstanceNumber": 1,
        "PatientOrientation": "",
        "KVP": "",
        "RadiationSetting": "GR",
        "XRayTubeCurrent": "",
        "ExposureTime": "",
        "Exposure": "",
        "PositionerMotion": "STATIC",
        "PositionerPrimaryAngle": "",
        "PositionerSecondaryAngle": "",
        "ImagerPixelSpacing": [0.25, 0.25],
        "SamplesPerPixel": 1 if frames.ndim == 3 else 3,
        "PhotometricInterpretation": "MONOCHROME2" if frames.ndim == 3 else "RGB",
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(frames.dtype.kind == "i"),
        "PixelIntensityRelationship": "LIN",
        "LossyImageCompression": "00",
    }
    if n > 1:
        values |= {"NumberOfFrames": n, "FrameIncrementPointer": 0x00181063, "FrameTime": 66.7}
    if frames.ndim == 4:
        values["PlanarConfiguration"] = 0
    for keyword, value in (values | tags).items():
        if value is not None:
            setattr(xa, keyword, value)
    if "BitsStored" in tags:
        xa.HighBit = xa.BitsStored - 1
    xa.PixelData = frames.astype(frames.dtype.newbyteorder("<")).tobytes() + b"\0" * (frames.nbytes % 2)
    xa["PixelData"].VR = "OB" if bits == 8 else "OW"
    return xa


def write_xa(path: Path, frames: np.ndarray, syntax: str = "explicit", **tags: Any) -> Path:
    """Write the angiogram of `make_xa` as a file in one of `SYNTAXES`."""
    return write(path, make_xa(frames, **tags), frames, syntax)


def write(path: Path, made: Dataset, frames: np.ndarray, syntax: str = "explicit") -> Path:
    """Write a DICOM dataset with `frames` as pixel data."""
    encoding = SYNTAXES[syntax]
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    little = syntax != "big endian"
    found = FileDataset("", made, file_meta=meta, preamble=b"\0" * 128, is_little_endian=little)
    if syntax == "jpeg baseline":
        streams = [encode_jpeg(frame) for frame in frames]
        found.PixelData, found["PixelData"].VR = encapsulate(streams), "OB"
        found["PixelData"].is_undefined_length = True
        meta.TransferSyntaxUID = encoding
    elif encoding.is_encapsulated:
        options = {"j2k_psnr": [60]} if syntax == "jpeg 2000" else {}
        found.compress(encoding, generate_instance_uid=False, **options)
    else:
        meta.TransferSyntaxUID = encoding
        if syntax == "big endian" and frames.dtype.itemsize == 2:
            found.PixelData = frames.astype(frames.dtype.newbyteorder(">")).tobytes()
    found.save_as(path, enforce_file_format=True)
    return path


def encode_jpeg(frame: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, format="JPEG", quality=95)
    return stream.getvalue()


def write_report(path: Path, sop_class: str = "1.2.840.10008.5.1.4.1.1.11.1") -> Path:
    """A DICOM object without an image; by default a presentation state."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID, made.PatientName = sop_class, "1.2.3.9", PATIENT
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    FileDataset("", made, file_meta=meta, preamble=b"\0" * 128).save_as(path, enforce_file_format=True)
    return path


def angiogram(path: Path, n: int, size: tuple[int, int] = (11, 13), **tags: object) -> Path:
    """Write a DICOM file with `n` frames of noise."""
    frames = np.random.default_rng(n).integers(0, 256, (n, *size), dtype=np.uint8)
    return write_xa(path, frames, **tags)


def read_masks(path: Path, image: str = "1.2.3.4.1") -> dict[str, dict[int, Rle]]:
    """Label -> frame -> mask of a segmentation of one image."""
    segmentation = read_segmentation(path)
    assert segmentation.images == {image}
    return {
        each.label: {frame: rle for (uid, frame), rle in each.masks.items() if uid == image}
        for each in segmentation.segments
    }
