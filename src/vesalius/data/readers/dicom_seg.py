"""DICOM Segmentation objects to masks, tied to the images that they name by UID and frame (PS3.3 A.51)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vesalius.data.decoders.dicom_file import reading
from vesalius.data.decoders.limits import MAX_PIXELS
from vesalius.errors import AnnotationError
from vesalius.masks import Rle, Size, encode_rle

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.66.4"

Frame = tuple[str, int]
"""SOP instance UID of an image, and its frame, counted from 0."""


@dataclass(frozen=True)
class Segment:
    """One object or structure, and where it is."""

    label: str
    masks: Mapping[Frame, Rle]
    """Of the frames in which it has a pixel."""


@dataclass(frozen=True)
class Segmentation:
    """What one object says of some images."""

    images: frozenset[str]
    """SOP instance UID of every image that it speaks of, also of those in which it found nothing."""
    segments: tuple[Segment, ...]


def read_segmentation(path: Path) -> Segmentation:
    """The masks of a binary segmentation, a frame at a time.

    Raises ImageError where the file cannot be read; AnnotationError where it is no binary segmentation, is
    compressed, contradicts itself, or has a frame that names no image.
    """
    with reading(path) as (tags, file):
        if tags.get("SOPClassUID") != SOP_CLASS or tags.get("SegmentationType") != "BINARY":
            raise AnnotationError(
                f"{path}: is no binary DICOM segmentation; only those are read",
                code="unsupported_segmentation",
            )
        size, n_frames = (int(tags.Rows), int(tags.Columns)), int(tags.NumberOfFrames)
        groups = tags.PerFrameFunctionalGroupsSequence
        shared = (tags.get("SharedFunctionalGroupsSequence") or [{}])[0]
        if len(groups) != n_frames or not 0 < size[0] * size[1] <= MAX_PIXELS:
            raise AnnotationError(
                f"{path}: states {n_frames} frames of {size[0]} x {size[1]} (h x w) and describes {len(groups)}; "
                "export it again",
                code="unsupported_segmentation",
            )
        labels = {int(item.SegmentNumber): str(item.SegmentLabel).strip() for item in tags.SegmentSequence}
        if not labels or not all(labels.values()):
            raise AnnotationError(f"{path}: has a segment without a label; name it", code="no_phrase")
        found: dict[int, dict[Frame, Rle]] = {number: {} for number in labels}
        for index, mask in enumerate(_unpack(path, file, tags, size, n_frames)):
            number, sources = _describe(groups[index], shared)
            if number not in found or not sources:
                raise AnnotationError(
                    f"{path}, frame {index}: names no segment and no image that it belongs to; only segmentations "
                    "of single images, with references to them, are read",
                    code="unsupported_segmentation",
                )
            found[number].update(dict.fromkeys(sources, encode_rle(mask)) if mask.any() else {})
        images = {uid for masks in found.values() for uid, _ in masks} | set(_referenced(tags))
        return Segmentation(frozenset(images), tuple(Segment(labels[n], masks) for n, masks in found.items()))


def _unpack(path: Path, file: BinaryIO, tags: Any, size: Size, n_frames: int) -> Iterator[np.ndarray]:
    """The frames, bool (h, w), which follow each other bit by bit, the lowest first."""
    kind = file.read(8)[4:6]
    if kind in (b"OB", b"OW"):
        file.seek(4, os.SEEK_CUR)
    start, n = file.tell(), size[0] * size[1]
    held = os.fstat(file.fileno()).st_size - start
    if (
        tags.file_meta.TransferSyntaxUID.is_encapsulated
        or not tags.file_meta.TransferSyntaxUID.is_little_endian
    ):
        raise AnnotationError(
            f"{path}: is compressed or big endian; write it uncompressed", code="unsupported_segmentation"
        )
    if held * 8 < n * n_frames:
        raise AnnotationError(
            f"{path}: is cut short in its pixels; copy it again from its source", code="truncated_file"
        )
    for index in range(n_frames):
        first, skip = divmod(index * n, 8)
        file.seek(start + first)
        packed = np.frombuffer(file.read((skip + n + 7) // 8), np.uint8)
        yield np.unpackbits(packed, count=skip + n, bitorder="little")[skip:].reshape(size).astype(bool)


def _describe(group: Any, shared: Any) -> tuple[int | None, list[Frame]]:
    """The segment's number, and the frames that a stored frame is of, out of its functional groups or the shared."""
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
    """Frame numbers, counted from 1; an image of one frame is referred to without any."""
    if value is None:
        return [1]
    return [int(value)] if isinstance(value, int | str) else [int(number) for number in value]


def _referenced(tags: Any) -> Iterator[str]:
    for series in tags.get("ReferencedSeriesSequence") or ():
        for instance in series.get("ReferencedInstanceSequence") or ():
            yield str(instance.ReferencedSOPInstanceUID)
