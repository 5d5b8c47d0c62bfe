"""Shared by all decoders: file versions as cache keys, the pixel limit, and parser exceptions as ImageError."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vesalius.codes import CODES
from vesalius.errors import ImageError, VesaliusError

MAX_PIXELS = 200_000_000
"""Maximum number of pixels of an image, slice or frame."""

Version = tuple[Path, int, int]
"""Cache key of a file: path, size in bytes and modification time in ns."""


def image_error(file: Path | str, wrong: str, code: str, part: str = "", remedy: str = "") -> ImageError:
    """An ImageError `FILE, PART: WRONG; REMEDY`; `remedy` defaults to that of the code.

    `part` is a part of the file, such as `frame 3`.
    """
    remedy = remedy or CODES[code].remedy
    where = f"{file}, {part}" if part else file
    path = file if isinstance(file, Path) else None
    return ImageError(f"{where}: {wrong}", code=code, path=path, field=part or None, remedy=remedy)


def missing_file(path: Path | str) -> ImageError:
    """The error for a path that does not exist; it has a code of its own for a URL, which is never downloaded."""
    # Path("https://host/a.png") has one slash; a drive letter of Windows is a single letter
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:/", str(path)):
        url = re.sub(r":/+", "://", str(path), count=1)
        return image_error(url, "is a URL, and nothing is downloaded", "not_local")
    return image_error(path, "there is no such file", "not_found")


def version_of(path: Path) -> Version:
    """The current version of a file; ImageError if the file does not exist, is a folder or is a URL."""
    try:
        state = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise missing_file(path) from error
    if not path.is_file():
        locked = path.is_dir() and not os.access(path, os.R_OK | os.X_OK)
        raise image_error(path, "the folder cannot be listed" if locked else "is not a file", "unreadable_file")
    return path, state.st_size, state.st_mtime_ns


def check_pixels(height: int, width: int, where: str) -> None:
    """Raise ImageError, starting with `where`, if an image of this size has more than `MAX_PIXELS` pixels."""
    if height * width > MAX_PIXELS:
        wrong = f"has {height * width / 1e6:.0f} megapixels; the limit is {MAX_PIXELS // 10**6}"
        raise image_error(where, wrong, "image_too_large")


@contextmanager
def decoding(path: Path, part: str = "") -> Iterator[None]:
    """Convert any exception of a parser in the block (OSError, KeyError, struct.error, ...) to an ImageError.

    Its message names the file and `part`, such as `frame 3`. VesaliusError and MemoryError pass unchanged.
    """
    try:
        yield
    except VesaliusError:
        raise
    except Exception as error:
        if type(error) is MemoryError:  # FFmpeg raises a subclass for an impossible size in a damaged header
            raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise image_error(path, f"cannot be decoded ({reason})", "unreadable_image", part) from error
