"""Files with frames (DICOM, NIfTI, video, TIFF pages, animations): detection, frame counts, reading of single frames."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from vesalius.data.decoders import dicom_image as dicom
from vesalius.data.decoders import nifti, picture_series, video
from vesalius.data.decoders.decoded import Decoded
from vesalius.data.decoders.limits import Version, image_error, version_of
from vesalius.data.decoders.picture import SUFFIXES as PICTURE_SUFFIXES
from vesalius.window import AUTO, Window

HEAD_BYTES = 512


class FrameDecoder(Protocol):
    """Interface of the decoder of one open file; used by one thread at a time."""

    n_frames: int

    def read(self, frame: int, window: Window = AUTO) -> Decoded:
        """A frame (from 0) as displayed under the window."""

    def close(self) -> None:
        """Close the file."""


@dataclass(frozen=True)
class FrameFile:
    """One kind of multi-frame file. Its functions raise ImageError, naming the file, and MissingExtraError."""

    suffixes: tuple[str, ...]
    """File suffixes of this kind in lower case; files with other suffixes, or none, are recognized by content."""
    recognize: Callable[[Path, bytes], bool]
    """True for files of this kind, given path and first `HEAD_BYTES` bytes; loads no optional library."""
    count_frames: Callable[[Path], int]
    """Number of frames, from the header if stated there."""
    open: Callable[[Path], FrameDecoder]
    frame_time_ms: Callable[[Path], float | None]
    """Mean time between frames in ms; None if the file does not state it."""


KINDS: dict[str, FrameFile] = {
    "dicom": FrameFile(dicom.SUFFIXES, dicom.recognize, dicom.count_frames, dicom.DicomDecoder, dicom.frame_time_ms),
    "nifti": FrameFile(nifti.SUFFIXES, nifti.recognize, nifti.count_frames, nifti.NiftiDecoder, lambda path: None),
    "video": FrameFile(video.SUFFIXES, video.recognize, video.count_frames, video.VideoDecoder, video.frame_time_ms),
    "pages": FrameFile(
        picture_series.SUFFIXES,
        picture_series.recognize,
        picture_series.count_frames,
        picture_series.SeriesDecoder,
        picture_series.frame_time_ms,
    ),
}

SUFFIXES = tuple(suffix for kind in KINDS.values() for suffix in kind.suffixes)


def kind_of(path: Path) -> FrameFile | None:
    """The entry of `KINDS` for a file; None if there is none or the file cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except (OSError, ValueError):
        return None
    return next((kind for kind in KINDS.values() if kind.recognize(path, head)), None)


def series_of(path: Path) -> FrameFile | None:
    """As `kind_of`, but a file with a suffix of single images is opened only if that format may have several frames."""
    suffix = path.suffix.lower()
    if suffix in PICTURE_SUFFIXES and suffix not in picture_series.SUFFIXES:
        return None
    kind = kind_of(path)
    return kind if suffix not in PICTURE_SUFFIXES or kind is KINDS["pages"] else None


class FrameReader:
    """Reader of single frames that keeps the last `MAX_OPEN` decoders open until `close`.

    Frames read in order are decoded once each. Without an open decoder, each frame of a video is decoded from the key
    frame before it, and a compressed volume is decompressed up to it. Threads may share a reader: a decoder is used by
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

    def read(self, path: Path, frame: int | None, window: Window = AUTO) -> Decoded | None:
        """A frame as displayed under the window; None if the file is none of `KINDS`.

        Raises ImageError if the file has no such frame, or has several frames and `frame` is None.
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
                    path, f"has {n} frames, so there is no frame {frame} (numbered from 0)", "frame_count_mismatch"
                )
            return decoder.read(frame or 0, window)

    def close(self) -> None:
        """Close all files; the reader may be used again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, decoder in idle:
            decoder.close()

    @contextmanager
    def _borrow(self, kind: FrameFile, path: Path) -> Iterator[FrameDecoder]:
        """The most recently used idle decoder of the file, or a new one; it is closed if the block fails."""
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
