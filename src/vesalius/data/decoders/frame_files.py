"""Files of several frames (DICOM, NIfTI, video): detected by their first bytes, counted, and read frame by frame."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from vesalius.data.decoders import dicom_image as dicom
from vesalius.data.decoders import nifti, video
from vesalius.data.decoders.limits import Version, image_error, version_of

HEAD_BYTES = 512


class FrameDecoder(Protocol):
    """One open file; used by one thread at a time."""

    n_frames: int

    def read(self, frame: int) -> np.ndarray:
        """uint8 (h, w, 3) of a frame, counted from 0, as it is meant to be displayed."""

    def close(self) -> None:
        """Close the file."""


@dataclass(frozen=True)
class FrameFile:
    """One kind of file. Each function raises ImageError, naming the file, and MissingExtraError."""

    suffixes: tuple[str, ...]
    """File endings in lower case that count as this kind when a folder is searched; files with an unknown ending, or
    none, are recognized by content."""
    recognize: Callable[[Path, bytes], bool]
    """True for files of this kind, by path and the first `HEAD_BYTES` bytes; imports nothing."""
    count_frames: Callable[[Path], int]
    """Number of frames, by the header if it states one."""
    open: Callable[[Path], FrameDecoder]
    frame_time_ms: Callable[[Path], float | None]
    """Mean time between frames; None if the file does not state it."""


KINDS: dict[str, FrameFile] = {
    "dicom": FrameFile(
        dicom.SUFFIXES, dicom.recognize, dicom.count_frames, dicom.DicomDecoder, dicom.frame_time_ms
    ),
    "nifti": FrameFile(
        nifti.SUFFIXES, nifti.recognize, nifti.count_frames, nifti.NiftiDecoder, lambda path: None
    ),
    "video": FrameFile(
        video.SUFFIXES, video.recognize, video.count_frames, video.VideoDecoder, video.frame_time_ms
    ),
}

SUFFIXES = tuple(suffix for kind in KINDS.values() for suffix in kind.suffixes)


def kind_of(path: Path) -> FrameFile | None:
    """The kind of a file; None if it is none of `KINDS` or cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except (OSError, ValueError):
        return None
    return next((kind for kind in KINDS.values() if kind.recognize(path, head)), None)


class FrameReader:
    """Reads frames of any files and keeps the last `MAX_OPEN` decoders open until `close`.

    Frames read in order are decoded once each; without an open decoder, each frame of a video is decoded from the key
    frame before it, and a compressed volume is unpacked up to it. Threads may share a reader: a decoder is used by
    one thread at a time.
    """

    MAX_OPEN = 8

    def __init__(self) -> None:
        self._idle: list[tuple[Version, FrameDecoder]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read(self, path: Path, frame: int | None) -> np.ndarray | None:
        """uint8 (h, w, 3) of a frame; None if the file is none of `KINDS`.

        Raises ImageError if the file has no such frame, or several and `frame` is None.
        """
        kind = kind_of(path)
        if kind is None:
            return None
        with self._borrow(kind, path) as decoder:
            n = decoder.n_frames
            if frame is None and n != 1:
                raise image_error(path, f"has {n} frames", "multi_frame_file")
            if frame is not None and not 0 <= frame < n:
                raise image_error(
                    path,
                    f"has {n} frames, so there is no frame {frame} (they count from 0)",
                    "frame_count_mismatch",
                )
            return decoder.read(frame or 0)

    def close(self) -> None:
        """Close all files; the reader may be used again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, decoder in idle:
            decoder.close()

    @contextmanager
    def _borrow(self, kind: FrameFile, path: Path) -> Iterator[FrameDecoder]:
        """The decoder of the file that was used last, or a new one; closed if reading fails."""
        version = version_of(path)
        with self._lock:
            at = max((i for i, (key, _) in enumerate(self._idle) if key == version), default=None)
            decoder = None if at is None else self._idle.pop(at)[1]
        if decoder is None:
            decoder = kind.open(path)
        try:
            yield decoder
        except BaseException:
            decoder.close()
            raise
        with self._lock:
            self._idle.append((version, decoder))
            surplus = self._idle[: -self.MAX_OPEN]
            del self._idle[: -self.MAX_OPEN]
        for _, each in surplus:
            each.close()
