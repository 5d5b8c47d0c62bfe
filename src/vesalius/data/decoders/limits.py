"""What decoders share: the version of a file that is remembered, a limit, and one sentence for all faults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vesalius.errors import ImageError, VesaliusError

MAX_PIXELS = 200_000_000
"""Pixels that one image, slice or frame may have."""

Version = tuple[Path, int, int]
"""Path, size and time of change: what is known of a file is remembered by these."""


def version_of(path: Path) -> Version:
    """The version of a file as it is now; ImageError where there is none."""
    try:
        state = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise ImageError(f"{path}: there is no such file; give one that exists") from error
    if not path.is_file():
        raise ImageError(f"{path}: is a folder; give a file")
    return path, state.st_size, state.st_mtime_ns


def check_pixels(height: int, width: int, place: str) -> None:
    """Raise ImageError, beginning with `place`, where a picture has more pixels than an image may."""
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"{place}: has {height * width / 1e6:.0f} megapixels a picture, "
            f"{MAX_PIXELS // 10**6} are allowed; make it smaller first"
        )


@contextmanager
def decoding(path: Path, part: str = "") -> Iterator[None]:
    """Turn whatever a library's parser raises (OSError, KeyError, struct.error, ...) into one ImageError.

    It names the file and `part`, such as `frame 3`. Our own errors and a lack of memory pass as they are.
    """
    try:
        yield
    except VesaliusError:
        raise
    except Exception as error:
        if type(error) is MemoryError:  # FFmpeg's own kind is a size that a broken header asks for
            raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        place = f"{path}, {part}" if part else str(path)
        raise ImageError(f"{place}: cannot be decoded ({reason}); copy it again from its source") from error
