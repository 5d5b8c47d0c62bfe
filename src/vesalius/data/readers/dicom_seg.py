"""Read DICOM Segmentation objects as masks of the images that they reference by UID and frame (PS3.3 A.51)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vesalius.data.decoders.dicom_file import reading
from vesalius.data.decoders.limits import MAX_PIXELS
from vesalius.masks import Rle, Size, encode_rle
from vesalius.types import Location

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.66.4"

Frame = tuple[str, int]
"""(SOP instance UID of an image, frame from 0)."""


@dataclass(frozen=True)
class Segment:
    """One segment: a labeled structure and its masks."""

    label: str
    masks: Mapping[Frame, Rle]
    """Masks of the frames in which the segment has a pixel."""


@dataclass(frozen=True)
class Segmentation:
    """Contents of one segmentation object."""

    images: frozenset[str]
    """SOP instance UIDs of all referenced images, also of those without a segmented pixel."""
    segments: tuple[Segment, ...]


def read_segmentation(path: Path) -> Segmentation:
    """The segments of a binary segmentation, with one frame in memory at a time.

    Raises ImageError if the file cannot be read; AnnotationError if it is not a binary segmentation, is compressed or
    inconsistent, or has a frame that references no image.
    """
    where = Location(path)
    with reading(path) as (tags, file):
        if tags.get("SOPClassUID") != SOP_CLASS or tags.get("SegmentationType") != "BINARY":
            raise where.error("is not a binary DICOM segmentation", "unsupported_segmentation")
        size, n_frames = (int(tags.Rows), int(tags.Columns)), int(tags.NumberOfFrames)
        groups = tags.PerFrameFunctionalGroupsSequence
        shared = (tags.get("SharedFunctionalGroupsSequence") or [{}])[0]
        if len(groups) != n_frames or not 0 < size[0] * size[1] <= MAX_PIXELS:
            raise where.error(
                f"states {n_frames} frames of {size[0]} x {size[1]} (h x w) but describes {len(groups)}",
                "unsupported_segmentation",
                "export it again",
            )
        labels = {int(item.SegmentNumber): str(item.SegmentLabel).strip() for item in tags.SegmentSequence}
        if not labels or not all(labels.values()):
            raise where.error("has a segment without a label", "no_phrase", "label it")
        found: dict[int, dict[Frame, Rle]] = {number: {} for number in labels}
        for index, mask in enumerate(_unpack(where, file, tags, size, n_frames)):
            number, sources = _describe(groups[index], shared)
            if number not in found or not sources:
                raise where.inside(f"frame {index}").error(
                    "references no segment or no image", "unsupported_segmentation"
                )
            found[number].update(dict.fromkeys(sources, encode_rle(mask)) if mask.any() else {})
        images = {uid for masks in found.values() for uid, _ in masks} | set(_referenced(tags))
        return Segmentation(frozenset(images), tuple(Segment(labels[n], masks) for n, masks in found.items()))


def _unpack(where: Location, file: BinaryIO, tags: Any, size: Size, n_frames: int) -> Iterator[np.ndarray]:
    """The frames as bool (h, w), unpacked from consecutive bits, lowest bit of each byte first."""
    kind = file.read(8)[4:6]
    if kind in (b"OB", b"OW"):
        file.seek(4, os.SEEK_CUR)
    start, n = file.tell(), size[0] * size[1]
    held = os.fstat(file.fileno()).st_size - start
    if tags.file_meta.TransferSyntaxUID.is_encapsulated or not tags.file_meta.TransferSyntaxUID.is_little_endian:
        raise where.error(
            "is compressed or big endian", "unsupported_segmentation", "write it uncompressed, little endian"
        )
    if held * 8 < n * n_frames:
        raise where.error("is truncated within its pixel data", "truncated_file", "copy it again from its source")
    for index in range(n_frames):
        first, skip = divmod(index * n, 8)
        file.seek(start + first)
        packed = np.frombuffer(file.read((skip + n + 7) // 8), np.uint8)
        yield np.unpackbits(packed, count=skip + n, bitorder="little")[skip:].reshape(size).astype(bool)


def _describe(group: Any, shared: Any) -> tuple[int | None, list[Frame]]:
    """(segment number, referenced frames) of a stored frame, from its per-frame or shared functional groups."""
    segment = group.get("SegmentIdentificationSequence") or shared.get("SegmentIdentificationSequence")
    derived = group.get("DerivationImageSequence") or shared.get("DerivationImageSequence") or ()
    sources = [source for item in derived for source in item.get("SourceImageSequence") or ()]
    frames = [
        (str(source.ReferencedSOPInstanceUID), int(number) - 1)
        for source in sources
        for number in _numbers(source.get("ReferencedFrameNumber"))
    ]
    return (int(segment[0].ReferencedSegmentNumber) if segment else None), frames


def _numbers(value: Any) -> list[int]:
    """Frame numbers, counted from 1; [1] if not stated, as for single-frame images."""
    if value is None:
        return [1]
    return [int(value)] if isinstance(value, int | str) else [int(number) for number in value]


def _referenced(tags: Any) -> Iterator[str]:
    for series in tags.get("ReferencedSeriesSequence") or ():
        for instance in series.get("ReferencedInstanceSequence") or ():
            yield str(instance.ReferencedSOPInstanceUID)
