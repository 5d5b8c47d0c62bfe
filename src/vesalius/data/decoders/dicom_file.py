"""Open and check DICOM files, and decode the stored values of single frames.

Messages never identify a person: errors name the file and the kind of fault but no value of a free-text attribute, and
warnings of pydicom, which may quote values, are suppressed.
"""

from __future__ import annotations

import logging
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vesalius.data.decoders.limits import check_pixels, image_error
from vesalius.errors import VesaliusError
from vesalius.extras import require
from vesalius.masks import Size

MAX_EAGER_BYTES = 2**20
"""Maximum size of a value that is read with the header; larger values are read on access."""


@dataclass(frozen=True)
class DicomImage:
    """An open DICOM image file with a validated header."""

    path: Path
    file: BinaryIO
    tags: Any
    size: Size
    frames: int
    offset: int
    """Byte offset of the pixel data value."""
    kind: str
    """Value representation of the pixel data, OB or OW, which sets the byte order in big endian; else any string."""


@contextmanager
def reading(path: Path) -> Iterator[tuple[Any, BinaryIO]]:
    """(header, file positioned at the pixel data); log lines and warnings of pydicom are suppressed in the block.

    Every exception in the block becomes an ImageError that names the file but quotes none of its values.
    """
    pydicom = require("pydicom", "dicom", "DICOM files")
    try:
        with silence(), path.open("rb") as file:
            _check_syntax(pydicom, path)
            yield pydicom.dcmread(file, stop_before_pixels=True, defer_size=MAX_EAGER_BYTES), file
    except VesaliusError:
        raise
    except pydicom.errors.InvalidDicomError as error:
        raise image_error(path, "is not a DICOM file", "not_dicom") from error
    # parsers may raise any exception: struct.error, EOFError, KeyError, MemoryError for a stated length of 4 GB
    except Exception as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise image_error(path, f"cannot be read as DICOM ({reason})", "damaged_file") from error


@contextmanager
def opened(path: Path) -> Iterator[DicomImage]:
    """The open image, with checked header and pixel data length; ImageError if they are invalid, and as `reading`."""
    with reading(path) as (tags, file):
        yield _check(path, file, tags)


@contextmanager
def silence() -> Iterator[None]:
    """Disable value validation, and warnings and log lines, which may quote values of the file."""
    config = require("pydicom.config", "dicom", "DICOM files")
    loggers = [logging.getLogger(name) for name in ("pydicom", "pylibjpeg", "openjpeg")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _check_syntax(pydicom: Any, path: Path) -> None:
    """Raise ImageError, before the header is read, unless the transfer syntax is supported and its decoder installed."""
    syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
    if syntax is None:
        raise image_error(path, "states no transfer syntax", "unsupported_transfer_syntax")
    # pydicom inflates it before anything can be checked, so a small file could exhaust memory
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
        raise image_error(
            path,
            "has the unsupported transfer syntax Deflated Explicit VR Little Endian",
            "unsupported_transfer_syntax",
        )
    name = syntax.name if syntax.name != syntax else "unknown"
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError as error:
        raise image_error(path, f"has the unsupported transfer syntax {name}", "unsupported_transfer_syntax") from error
    if not decoder.is_available:
        remedy = 'install it with: pip install "vesalius[dicom]"'
        raise image_error(path, f"needs a decoder for {name}", "undecodable_pixels", remedy=remedy)


def _check(path: Path, file: BinaryIO, tags: Any) -> DicomImage:
    """The image with checked header and file length; no pixel is decoded."""
    if "Rows" not in tags or "Columns" not in tags:
        raise image_error(path, "is a DICOM object without an image", "no_pixel_data")
    needed = "SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored PixelRepresentation".split()
    missing = [name for name in needed if tags.get(name) is None]
    if missing:
        raise image_error(path, f"has no {missing[0]}, so its pixels cannot be read", "missing_tag")
    size = int(tags.Rows), int(tags.Columns)
    frames = int(tags.get("NumberOfFrames") or 1)
    samples, bits, stored = (int(tags[name].value) for name in ("SamplesPerPixel", "BitsAllocated", "BitsStored"))
    gray = str(tags.PhotometricInterpretation).startswith(("MONOCHROME", "PALETTE"))
    if min(*size, frames) < 1 or samples != (1 if gray else 3):
        raise image_error(
            path,
            f"states {frames} frames of {size[0]} x {size[1]} (h x w) with {samples} values per "
            f"{'gray' if gray else 'color'} pixel",
            "header_mismatch",
        )
    check_pixels(*size, str(path))
    if bits not in (8, 16) or not 1 <= stored <= bits or int(tags.get("HighBit") or stored - 1) != stored - 1:
        raise image_error(path, f"allocates {bits} bits per value and stores {stored}", "invalid_bit_depth")
    frame_bytes = size[0] * size[1] * samples * bits // 8
    if tags.PhotometricInterpretation == "YBR_FULL_422":
        frame_bytes = frame_bytes // 3 * 2
    return DicomImage(path, file, tags, size, frames, *_check_pixels(path, file, tags, frames, frame_bytes))


def _check_pixels(path: Path, file: BinaryIO, tags: Any, frames: int, frame_bytes: int) -> tuple[int, str]:
    """(offset, value representation) of the pixel data; ImageError unless its length matches the header."""
    order = "<" if tags.original_encoding[1] else ">"
    head = file.read(8)
    if len(head) < 8 or struct.unpack(f"{order}HH", head[:4]) != (0x7FE0, 0x0010):
        raise image_error(path, "has no pixel data", "no_pixel_data")
    # some files omit the value representation although their transfer syntax requires it: detect it by its bytes
    kind = head[4:6].decode("ascii", "replace")
    if kind in ("OB", "OW", "UN"):
        head += file.read(4)
    length = struct.unpack(f"{order}L", head[-4:])[0]
    offset = file.tell()
    end = os.fstat(file.fileno()).st_size
    if tags.file_meta.TransferSyntaxUID.is_encapsulated:
        parts = _count_fragments(path, file, end)
        file.seek(offset)
        if parts < frames:
            raise image_error(path, f"states {frames} frames but has {parts}", "frame_count_mismatch")
        return offset, kind
    held = min(length, end - offset)
    if held < frames * frame_bytes:
        raise image_error(
            path,
            f"is truncated: {frames} frames need {frames * frame_bytes} bytes of pixel data, but it has {held}",
            "truncated_file",
        )
    if held - frames * frame_bytes >= frame_bytes:
        raise image_error(path, f"states {frames} frames but has {held // frame_bytes}", "frame_count_mismatch")
    return offset, kind


def _count_fragments(path: Path, file: BinaryIO, end: int) -> int:
    """Number of fragments of compressed pixel data; each frame has at least one."""
    parts = -1  # the first item is the offset table
    while True:
        head = file.read(8)
        if head[:4] == b"\xfe\xff\xdd\xe0":
            return parts
        if head[:4] != b"\xfe\xff\x00\xe0" or file.tell() + int.from_bytes(head[4:], "little") > end:
            raise image_error(path, "is truncated within its pixel data", "truncated_file")
        file.seek(int.from_bytes(head[4:], "little"), os.SEEK_CUR)
        parts += 1


def decode(image: DicomImage, index: int) -> np.ndarray:
    """The stored values of one frame: (h, w), or (h, w, 3) in RGB, 8 or 16 bits in native byte order."""
    from pydicom.pixels import get_decoder
    from pydicom.pixels.utils import as_pixel_options

    if not 0 <= index < image.frames:
        raise image_error(
            image.path, f"has {image.frames} frames, so there is no frame {index}", "frame_count_mismatch"
        )
    syntax = image.tags.file_meta.TransferSyntaxUID
    options = as_pixel_options(image.tags, transfer_syntax_uid=syntax, pixel_keyword="PixelData")
    options |= {"number_of_frames": image.frames, "allow_excess_frames": False}
    options["pixel_vr"] = image.kind
    if syntax.is_encapsulated and syntax.keyword != "RLELossless":
        _check_stream(image, index, options)
    image.file.seek(image.offset)
    # pylibjpeg's RLE decoder, in Rust, panics if runs exceed the frame; pydicom's decoder raises an exception
    plugin = "pydicom" if syntax.keyword == "RLELossless" else ""
    try:
        pixels, _ = get_decoder(syntax).as_array(image.file, index=index, decoding_plugin=plugin, **options)
    except Exception as error:
        raise image_error(image.path, f"cannot be decoded ({syntax.name})", "damaged_file", f"frame {index}") from error
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))


def _check_stream(image: DicomImage, index: int, options: dict[str, Any]) -> None:
    """Check that a compressed frame has the header's size: decoders trust the stream, which could exhaust memory."""
    from pydicom import encaps

    image.file.seek(image.offset)
    stream = encaps.get_frame(
        image.file, index, number_of_frames=image.frames, extended_offsets=options.get("extended_offsets")
    )
    found = stream_shape(stream)
    stated = (*image.size, int(image.tags.SamplesPerPixel))
    if found != stated:
        sizes = [" x ".join(map(str, each)) if each else "an unreadable stream" for each in (found, stated)]
        wrong = f"is compressed as {sizes[0]} but the header states {sizes[1]} (h x w x values per pixel)"
        raise image_error(image.path, wrong, "header_mismatch", f"frame {index}")


def stream_shape(stream: bytes) -> tuple[int, int, int] | None:
    """(h, w, samples per pixel) in the header of a JPEG, JPEG-LS or JPEG 2000 stream; None for other data."""
    if stream[:2] == b"\xff\xd8":
        position = 2
        while position + 10 <= len(stream):
            marker, length = stream[position + 1], int.from_bytes(stream[position + 2 : position + 4], "big")
            # SOF0 to SOF15 except DHT, JPG and DAC, and SOF55 of JPEG-LS
            if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
                return struct.unpack(">HHB", stream[position + 5 : position + 10])
            position += 1 if marker == 0xFF else 2 + length
        return None
    start = 0
    if stream[4:8] == b"jP  ":  # JP2 boxes, which DICOM forbids but some files contain
        while stream[start + 4 : start + 8] not in (b"jp2c", b""):
            start += max(8, int.from_bytes(stream[start : start + 4], "big"))
        start += 8
    if stream[start : start + 4] != b"\xff\x4f\xff\x51" or len(stream) < start + 42:
        return None
    right, lower, left, upper = struct.unpack(">4L", stream[start + 8 : start + 24])
    return lower - upper, right - left, int.from_bytes(stream[start + 40 : start + 42], "big")
