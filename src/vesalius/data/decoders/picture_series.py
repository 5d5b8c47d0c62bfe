"""Read image files with several frames: TIFF with several pages, and animations in GIF and WebP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from vesalius.data.decoders.decoded import Decoded
from vesalius.data.decoders.limits import decoding, version_of
from vesalius.data.decoders.picture import SERIES_SUFFIXES, Pages, open_pages
from vesalius.data.decoders.tiff_pages import MAGIC
from vesalius.errors import ImageError
from vesalius.window import AUTO, Range, Window

SUFFIXES = SERIES_SUFFIXES
ANIMATED_WEBP = 2
"""Bit of the flags of an extended WebP header."""


def recognize(path: Path, head: bytes) -> bool:
    """True for a file with more than one frame, given its first bytes; a damaged file is none."""
    animated = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and any(each & ANIMATED_WEBP for each in head[20:21])
    if not animated and not head.startswith((*MAGIC, b"GIF8")):
        return False
    try:
        return count_frames(path) > 1
    except ImageError:
        return False


def count_frames(path: Path) -> int:
    """Number of frames, without smaller copies of TIFF pages; ImageError for a damaged file."""
    return _count(*version_of(path))


@lru_cache(maxsize=1024)
def _count(path: Path, size: int, time_ns: int) -> int:
    with closing(open_pages(path)) as pages:
        return len(pages.frames)


class SeriesDecoder:
    """Decoder of one open file with several frames, for one thread at a time.

    Frames of an animation that are read in order are decoded once each.
    """

    def __init__(self, path: Path) -> None:
        self._version = version_of(path)
        self._pages = open_pages(path)
        self.n_frames = len(self._pages.frames)

    def read(self, frame: int, window: Window = AUTO) -> Decoded:
        """A frame as displayed; all frames of the file share one range of values.

        Raises ImageError if the frame cannot be read or has a pixel that is NaN or infinite.
        """
        path = self._version[0]
        stored = self._pages.read(self._pages.frames[frame])
        return stored.show(window, f"{path}, frame {frame}", lambda: _find_range(*self._version, window))

    def close(self) -> None:
        """Close the file."""
        self._pages.close()


@lru_cache(maxsize=1024)
def _find_range(path: Path, size: int, time_ns: int, window: Window) -> Range:
    """The range over all frames; reads the file once."""
    with closing(open_pages(path)) as pages:
        return window.find_range(_read_all(pages), len(pages.frames) * pages.read(pages.frames[0]).values.size, path)


def _read_all(pages: Pages) -> Iterator[np.ndarray]:
    for page in pages.frames:
        yield pages.read(page).values


def frame_time_ms(path: Path) -> float | None:
    """Mean time between the frames of an animation in ms; None if the file does not state it, like all TIFF files."""
    with decoding(path), Image.open(path, formats=("GIF", "WEBP", "TIFF")) as image:
        times = []
        for frame in range(count_frames(path) if image.format != "TIFF" else 0):
            image.seek(frame)
            image.load()  # WebP states the time of a frame with its pixels
            times.append(float(image.info.get("duration") or 0))
    mean = sum(times) / max(len(times), 1)
    return mean if mean > 0 else None
