"""Detect video containers by their first bytes, and compute the file length stated by their headers.

PyAV does not replace the parsers below: it opens a truncated Matroska file, and an AVI or MP4 file (index first) that
was truncated between two packets, with fewer frames and without an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

# brands of still images and audio, which use the MP4 container too
NOT_VIDEO = (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis", b"M4A ", b"M4B ")
BOXES = (b"ftyp", b"styp", b"sidx", b"moov", b"moof", b"mfra", b"mdat", b"free", b"skip", b"wide", b"uuid")
FIRST_BOXES = (b"moov", b"mdat", b"free", b"skip", b"wide")
"""Possible first boxes of an old QuickTime file without `ftyp`."""

EBML, SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")
TS_PACKET = 188


def container_of(head: bytes) -> str | None:
    """Container by the first 512 bytes: `mov` (also MP4), `matroska` (also WebM), `avi`, `mpegts`, `mpeg`, or None."""
    if head[4:8] == b"ftyp":
        return "mov" if head[8:12] not in NOT_VIDEO else None
    if head[4:8] in FIRST_BOXES:
        return "mov"
    if head.startswith(EBML):
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith(b"\x00\x00\x01\xba"):
        return "mpeg"
    return "mpegts" if head[: 2 * TS_PACKET + 1 : TS_PACKET] == b"GGG" else None


def stated_bytes(path: Path, container: str) -> int | None:
    """Minimum length of the file in bytes according to its headers; None if they do not state it.

    An MPEG program stream has no such header, and an interrupted recording may lack it.
    """
    walk = WALKS.get(container)
    if walk is None:
        return None
    with path.open("rb") as file:
        return walk(file)


def _walk_boxes(file: BinaryIO) -> int | None:
    """ISO 14496-12: a box has a 32-bit size and a type; size 1 means a 64-bit size follows, 0 extends to the end."""
    end, actual = 0, os.fstat(file.fileno()).st_size
    while end < actual:
        file.seek(end)
        head = file.read(16)
        size, name = int.from_bytes(head[:4]), head[4:8]
        if name not in BOXES:
            return end or None  # foreign data after the video
        if size == 1:
            size = int.from_bytes(head[8:16])
        if size < 8:
            return end + 8
        end += size
    return end


def _walk_riff(file: BinaryIO) -> int | None:
    """RIFF: an `AVI ` chunk, then an `AVIX` chunk per further gigabyte; an interrupted recording may state size 0."""
    end, actual = 0, os.fstat(file.fileno()).st_size
    while end < actual:
        file.seek(end)
        head = file.read(12)
        size = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or head[8:12] not in (b"AVI ", b"AVIX") or size == 0:
            return end or None
        end += 8 + size
    return end


def _walk_ebml(file: BinaryIO) -> int | None:
    """RFC 8794: the EBML header, then one segment; a size of all ones means unknown."""
    head = file.read(4096)
    size, start = _vint(head, len(EBML))
    segment = start + size
    if size < 0 or head[segment : segment + 4] != SEGMENT:
        return None
    size, start = _vint(head, segment + 4)
    return None if size < 0 else start + size


def _vint(data: bytes, start: int) -> tuple[int, int]:
    """(value, end offset) of a variable-length integer; value -1 if unknown. Leading zero bits count further bytes."""
    width = 9 - data[start].bit_length() if start < len(data) else 9
    if width > 8 or start + width > len(data):
        return -1, start
    ones = (1 << 7 * width) - 1
    value = int.from_bytes(data[start : start + width]) & ones
    return (-1 if value == ones else value), start + width


def _walk_packets(file: BinaryIO) -> int:
    """ISO 13818-1: a transport stream has packets of 188 bytes and does not state their number."""
    return -(-os.fstat(file.fileno()).st_size // TS_PACKET) * TS_PACKET


WALKS: dict[str, Callable[[BinaryIO], int | None]] = {
    "mov": _walk_boxes,
    "avi": _walk_riff,
    "matroska": _walk_ebml,
    "mpegts": _walk_packets,
}
