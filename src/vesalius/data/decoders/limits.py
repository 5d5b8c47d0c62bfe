"""File versions as cache keys, the limit on pixels, and one error for everything that a parser raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vesalius.codes import CODES
from vesalius.errors import ImageError, VesaliusError

MAX_PIXELS = 200_000_000
"""Maximum number of pixels of an image, slice or frame."""

Version = tuple[Path, int, int]
"""Path, size in bytes and modification time in ns: the key of everything that is cached about a file."""


def image_error(file: Path | str, wrong: str, code: str, part: str = "", remedy: str = "") -> ImageError:
    """The error `FILE, PART: WRONG; REMEDY`; the remedy of the table of codes unless another one is given.

    `part` is a part of the file, such as `frame 3`.
    """
    remedy = remedy or CODES[code].remedy
    where = f"{file}, {part}" if part else file
    path = file if isinstance(file, Path) else None
    return ImageError(f"{where}: {wrong}", code=code, path=path, field=part or None, remedy=remedy)


def version_of(path: Path) -> Version:
    """The current version of a file; ImageError if the file does not exist or is a folder."""
    try:
        state = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise image_error(path, "there is no such file", "not_found") from error
    if not path.is_file():
        raise image_error(path, "is a folder", "unreadable_file")
    return path, state.st_size, state.st_mtime_ns


def check_pixels(height: int, width: int, where: str) -> None:
    """Raise ImageError, beginning with `where`, if an image of this size has more than `MAX_PIXELS` pixels."""
    if height * width > MAX_PIXELS:
        wrong = f"has {height * width / 1e6:.0f} megapixels, {MAX_PIXELS // 10**6} are allowed"
        raise image_error(where, wrong, "image_too_large")


@contextmanager
def decoding(path: Path, part: str = "") -> Iterator[None]:
    """Turn every exception of a library's parser (OSError, KeyError, struct.error, ...) into one ImageError.

    The message names the file and `part`, such as `frame 3`. VesaliusError and MemoryError pass unchanged.
    """
    try:
        yield
    except VesaliusError:
        raise
    except Exception as error:
        if type(error) is MemoryError:  # FFmpeg's subclass means a size that a broken header asks for
            raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise image_error(path, f"cannot be decoded ({reason})", "unreadable_image", part) from error
