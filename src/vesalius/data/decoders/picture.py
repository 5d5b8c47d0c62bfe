"""Decode plain image files: PNG, JPEG, BMP, TIFF, WebP, GIF and PNM; ambiguous conversions are errors.

Pillow decodes all of them, except 16-bit colors (`wide_colors`) and some pixel types of TIFF (`tiff_pages`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Shaped
from PIL import Image, UnidentifiedImageError

from vesalius.data.decoders.decoded import Decoded, show, turn
from vesalius.data.decoders.exif import TAG, UPRIGHT, read_orientation, valid_orientation
from vesalius.data.decoders.limits import MAX_PIXELS, check_pixels, decoding, image_error, version_of
from vesalius.data.decoders.tiff_pages import MAGIC, TiffFile, gray_type, is_white_zero, needs_tifffile
from vesalius.data.decoders.wide_colors import is_wide, read_wide
from vesalius.errors import ImageError
from vesalius.window import AUTO, Range, Window

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
"""Pillow's names of the formats that are read; MPO is a JPEG."""
SUFFIXES = tuple(".png .jpg .jpeg .jpe .jfif .bmp .tif .tiff .webp .gif .ppm .pgm .pbm .pnm".split())
"""Lower-case suffixes of image files; compared case-insensitively when a folder is searched."""

SERIES_SUFFIXES = (".tif", ".tiff", ".gif", ".webp")
"""Suffixes of image files whose frames can be read one by one; an animated PNG is refused."""

RGB_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")
SUBFILE_TYPE, REDUCED = 254, 1
"""TIFF tag, and its bit for a page that is a smaller copy of another one."""

# Pillow warns from 89 megapixels and fails from 179, below our limit
if Image.MAX_IMAGE_PIXELS is not None:
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)


@dataclass(frozen=True)
class Stored:
    """The values of one image as stored, but upright."""

    values: Shaped[np.ndarray, "h w *c"]
    """(h, w), or RGB (h, w, 3), of any integer or float type."""
    orientation: int = UPRIGHT
    """EXIF orientation of the file, by which `values` were turned."""
    white_is_zero: bool = False
    """True if the lowest values are white."""

    def show(self, window: Window, where: Path | str, find_range: Callable[[], Range]) -> Decoded:
        """The values as displayed; arguments as for `decoded.show`."""
        shown = show(self.values, window, where, find_range)
        if self.orientation == UPRIGHT and not self.white_is_zero:
            return shown
        pixels = 255 - shown.pixels if self.white_is_zero else shown.pixels
        return replace(shown, pixels=pixels, orientation=self.orientation)


class Pages(Protocol):
    """An open image file, for one thread at a time."""

    frames: tuple[int, ...]
    """The pages that are images of their own, without smaller copies of other pages."""

    def read(self, page: int) -> Stored:
        """The values of a page.

        ImageError if it cannot be decoded, is partly transparent, has more than `MAX_PIXELS` pixels or a color mode
        other than `RGB_MODES`.
        """

    def close(self) -> None:
        """Close the file."""


def read_picture(path: Path, window: Window = AUTO) -> Decoded:
    """An image file as displayed: RGB, upright by its EXIF orientation, deep pixels under the window.

    Raises ImageError as `open_pages` and `Pages.read`, and if the file has several frames, or a pixel that is NaN or
    infinite.
    """
    stored = read_stored(path)
    values = stored.values
    return stored.show(window, path, lambda: window.find_range([values], values.size, path))


def read_stored(path: Path) -> Stored:
    """The values of an image file with one frame; raises ImageError as `read_picture` does."""
    with closing(open_pages(path)) as pages:
        if len(pages.frames) != 1:
            remedy = "" if path.suffix.lower() in SERIES_SUFFIXES else "save each as an image of its own"
            raise image_error(path, f"has {len(pages.frames)} frames", "multi_frame_file", remedy=remedy)
        return pages.read(pages.frames[0])


def open_pages(path: Path) -> Pages:
    """The open file; ImageError if it is missing, empty, not an image, or has more than `MAX_PIXELS` pixels."""
    try:
        image = _open(path)
    except ImageError as error:
        if isinstance(error.__cause__, UnidentifiedImageError) and _is_tiff(path):
            return TiffPages(path)
        raise
    try:
        with decoding(path):
            if image.format != "TIFF" or not needs_tifffile(image):
                return PillowPages(image, path)
    except BaseException:
        image.close()
        raise
    image.close()
    return TiffPages(path)


class TiffPages:
    """A TIFF file opened by tifffile."""

    def __init__(self, path: Path) -> None:
        self._file = TiffFile(path)
        self.frames = self._file.frames

    def read(self, page: int) -> Stored:
        """The values of a page, as the interface says."""
        values, orientation, white_is_zero = self._file.read(page)
        return Stored(turn(values, orientation), orientation, white_is_zero)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class PillowPages:
    """An image file opened by Pillow."""

    def __init__(self, image: Image.Image, path: Path) -> None:
        self._image, self._path = image, path
        self._is_tiff = image.format == "TIFF"
        self._wide: dict[int, bool] = {}
        self._n = count_frames(image)
        self.frames = tuple(range(self._n))
        if self._n > 1 and self._is_tiff:
            self.frames = tuple(page for page in range(self._n) if not self._is_reduced(page))

    def _is_reduced(self, page: int) -> bool:
        self._image.seek(page)
        return bool(self._image.tag_v2.get(SUBFILE_TYPE, 0) & REDUCED)  # type: ignore[attr-defined]

    def read(self, page: int) -> Stored:
        """The values of a page, as the interface says; 8-bit images of all color modes become RGB."""
        image, orientation = self._image, UPRIGHT
        with decoding(self._path, f"frame {page}" if self._n > 1 else ""):
            if self._n > 1:
                image.seek(page)
                check_pixels(image.height, image.width, str(self._path))
            if self._is_tiff:  # Pillow turns it as it loads it, and forgets the orientation
                orientation = valid_orientation(image.tag_v2.get(TAG))  # type: ignore[attr-defined]
            if self._wide.setdefault(page, is_wide(image)):
                values, exif = self._read_wide(page)
            else:
                image.load()
                values, exif = self._read_loaded(), image.info.get("exif", b"")
        white_is_zero = self._is_tiff and image.mode.startswith(("I", "F")) and is_white_zero(image)
        if not self._is_tiff and exif:
            orientation = read_orientation(exif)
            values = turn(values, orientation)
        return Stored(values, orientation, white_is_zero)

    def _read_loaded(self) -> Shaped[np.ndarray, "h w *c"]:
        image = self._image
        if image.mode in RGB_MODES:
            return np.array(drop_alpha(image, self._path).convert("RGB"))
        if not image.mode.startswith(("I", "F")):
            raise image_error(self._path, f"has the color mode {image.mode}", "unsupported_color_model")
        values = np.asarray(image)
        if image.mode == "I":
            dtype = gray_type(image) if self._is_tiff else np.dtype(np.uint16)
            return values.astype(dtype)
        return values.astype(values.dtype.newbyteorder("="))

    def _read_wide(self, page: int) -> tuple[Shaped[np.ndarray, "h w *c"], bytes]:
        def open_at_page() -> Image.Image:
            image = _open(self._path)
            if page:
                image.seek(page)
            return image

        found = read_wide(open_at_page)
        if found is None:
            wrong = f"has more than 8 bits per channel ({self._image.mode})"
            raise image_error(self._path, wrong, "invalid_bit_depth")
        channels, exif = found
        n = channels.shape[2]
        if n in (2, 4) and channels[:, :, -1].min() < np.iinfo(np.uint16).max:
            raise image_error(self._path, "is partly transparent", "transparent_image")
        return (channels[:, :, 0] if n == 2 else np.ascontiguousarray(channels[:, :, :3])), exif

    def close(self) -> None:
        """Close the file."""
        self._image.close()


def count_frames(image: Image.Image) -> int:
    """Number of frames of an image opened by Pillow; 1 for a photo with previews or depth maps beside it (MPO)."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def decode(path: Path) -> Image.Image:
    """The decoded image in its native color mode, for masks.

    Raises ImageError if the file is missing, empty, truncated or not an image, or has several frames, more than
    `MAX_PIXELS` pixels or 16-bit colors.
    """
    with _open(path) as image, decoding(path):
        if (n := count_frames(image)) > 1:
            remedy = "save each as an image of its own"
            raise image_error(path, f"has {n} frames", "multi_frame_file", remedy=remedy)
        if is_wide(image):
            raise image_error(path, f"has more than 8 bits per channel ({image.mode})", "invalid_bit_depth")
        image.load()
        return image


def _open(path: Path) -> Image.Image:
    """The file, opened by Pillow and not yet loaded."""
    _, n_bytes, _ = version_of(path)
    if n_bytes == 0:
        raise image_error(path, "is empty (0 bytes)", "unreadable_image")
    with decoding(path):
        try:
            image = Image.open(path, formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise image_error(path, f"has more than {MAX_PIXELS // 10**6} megapixels", "image_too_large") from error
    check_pixels(image.height, image.width, str(path))
    return image


def is_turned(path: Path) -> bool:
    """True if the EXIF orientation of an image file asks viewers to turn it; False if the file cannot be read."""
    with suppress(ImageError), _open(path) as image:
        if image.format == "TIFF":
            return valid_orientation(image.tag_v2.get(TAG)) != UPRIGHT  # type: ignore[attr-defined]
        if image.format == "PNG" and b"eXIf" in path.read_bytes():
            with decoding(path):
                image.load()  # the chunk may follow the pixels
        return read_orientation(image.info.get("exif", b"")) != UPRIGHT
    return False


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC[0])) in MAGIC


def drop_alpha(image: Image.Image, path: Path) -> Image.Image:
    """The image without its alpha channel; ImageError if a pixel is transparent."""
    if not image.has_transparency_data:
        return image
    if np.asarray(image.convert("RGBA").getchannel("A")).min() < 255:
        raise image_error(path, "is partly transparent", "transparent_image")
    image.info.pop("transparency", None)
    return image.convert({"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode))
