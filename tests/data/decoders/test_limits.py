"""What decoders share: one sentence for all that a parser raises."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from vesalius.data.decoders.limits import check_pixels, decoding, version_of
from vesalius.errors import AnnotationError, ImageError


class StatedSizeError(OSError, MemoryError):
    """As FFmpeg raises it for a size that a broken header asks for."""


@pytest.mark.parametrize(
    "error",
    [OSError(5, "no such byte"), KeyError("PixelData"), struct.error("short"), StatedSizeError("huge")],
)
def test_whatever_a_parser_raises_is_one_image_error(error: Exception) -> None:
    with (
        pytest.raises(ImageError, match=r"^a\.mp4, frame 3: cannot be decoded \(.+\); copy it") as caught,
        decoding(Path("a.mp4"), "frame 3"),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [MemoryError(), AnnotationError("mine"), KeyboardInterrupt()])
def test_lack_of_memory_and_our_own_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, decoding(Path("a.mp4")):
        raise error
    assert caught.value is error


def test_a_version_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    first = version_of(path)
    path.write_bytes(b"22")
    assert version_of(path) != first
    for missing in (tmp_path / "b", tmp_path / "a\0b", tmp_path):
        with pytest.raises(ImageError, match="give"):
            version_of(missing)


def test_pictures_as_large_as_images_may_be_pass() -> None:
    check_pixels(10_000, 20_000, "a")
    with pytest.raises(ImageError, match=r"^a: has 200 megapixels a picture, 200 are allowed"):
        check_pixels(10_000, 20_001, "a")
