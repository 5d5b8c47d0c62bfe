"""Limits and error handling of the decoders."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tests.codes import raises_code

from vesalius.data.decoders.limits import check_pixels, decoding, version_of
from vesalius.errors import AnnotationError, ImageError


class StatedSizeError(OSError, MemoryError):
    """Stand-in for the exception that FFmpeg raises for an absurd size in a damaged header."""


@pytest.mark.parametrize(
    "error", [OSError(5, "no such byte"), KeyError("PixelData"), struct.error("short"), StatedSizeError("huge")]
)
def test_every_exception_of_a_parser_becomes_an_image_error(error: Exception) -> None:
    with raises_code(ImageError, "unreadable_image", "a.mp4, frame 3: ") as caught, decoding(Path("a.mp4"), "frame 3"):
        raise error
    assert caught.value.__cause__ is error
    assert (caught.value.path, caught.value.field) == ("a.mp4", "frame 3")


@pytest.mark.parametrize(
    "error", [MemoryError(), AnnotationError("mine", code="invalid_annotation"), KeyboardInterrupt()]
)
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
    for missing in (tmp_path / "b", tmp_path / "a\0b"):
        with raises_code(ImageError, "not_found"):
            version_of(missing)
    with raises_code(ImageError, "unreadable_file"):
        version_of(tmp_path)


def test_the_limit_is_200_megapixels() -> None:
    check_pixels(10_000, 20_000, "a")
    with raises_code(ImageError, "image_too_large", "a: has 200 megapixels; the limit is 200"):
        check_pixels(10_000, 20_001, "a")
