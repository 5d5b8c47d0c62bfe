"""Files that hold several frames: how each kind is known by its first bytes, counted and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vesalius.data.decoders import dicom_image as dicom
from vesalius.data.decoders import nifti, video
from vesalius.errors import ImageError

HEAD_BYTES = 512


@dataclass(frozen=True)
class FrameFile:
    """One kind of file. Each function raises ImageError, naming the file, and MissingExtraError."""

    suffixes: tuple[str, ...]
    """In small letters; what counts as such a file when a folder is searched. An unknown suffix, or none, is looked into."""
    recognize: Callable[[Path, bytes], bool]
    """By path and first bytes (`HEAD_BYTES` of them); imports nothing."""
    count_frames: Callable[[Path], int]
    """Frames of the file, from its header where it has one."""
    read_frame: Callable[[Path, int], np.ndarray]
    """uint8 (h, w, 3) of a frame, counted from 0, as it is meant to be looked at."""


KINDS: dict[str, FrameFile] = {
    "dicom": FrameFile(dicom.SUFFIXES, dicom.recognize, dicom.count_frames, dicom.read_frame),
    "nifti": FrameFile(nifti.SUFFIXES, nifti.recognize, nifti.count_frames, nifti.read_frame),
    "video": FrameFile(video.SUFFIXES, video.recognize, video.count_frames, video.read_frame),
}

SUFFIXES = tuple(suffix for kind in KINDS.values() for suffix in kind.suffixes)


def kind_of(path: Path) -> FrameFile | None:
    """The kind of a file, None where it is none of `KINDS` or cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except (OSError, ValueError):
        return None
    return next((kind for kind in KINDS.values() if kind.recognize(path, head)), None)


def read_frame(path: Path, frame: int | None) -> np.ndarray | None:
    """uint8 (h, w, 3), or None where the file is none of `KINDS`.

    Raises ImageError where there is no such frame, or where none is named and the file has several.
    """
    kind = kind_of(path)
    if kind is None:
        return None
    n = kind.count_frames(path)
    if frame is None and n != 1:
        raise ImageError(f"{path}: has {n} frames; name one, or give the file itself to predict or import")
    if frame is not None and frame >= n:
        raise ImageError(f"{path}: has {n} frames, so there is no frame {frame} (they count from 0)")
    return kind.read_frame(path, frame or 0)
