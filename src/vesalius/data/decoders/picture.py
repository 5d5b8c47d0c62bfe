"""Decode plain image files (PNG, JPEG, BMP, TIFF) with Pillow; lossy or ambiguous conversions are errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vesalius.data.decoders.limits import MAX_PIXELS, check_pixels, decoding, image_error, version_of
from vesalius.errors import ImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""Lower-case suffixes of image files; compared case-insensitively when a folder is searched."""

RGB_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")

# Pillow warns from 89 megapixels and fails from 179, below our limit
if Image.MAX_IMAGE_PIXELS is not None:
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)


def read_picture(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of an 8-bit image file, in the stored orientation.

    Raises ImageError as `decode` does, and if the file has more than 8 bits per channel, a partly transparent pixel, or
    a color mode other than `RGB_MODES`.
    """
    image = decode(path)
    if image.mode.startswith(("I", "F")):
        raise too_deep(str(path), image.mode)
    if image.mode not in RGB_MODES:
        raise image_error(path, f"has the color mode {image.mode}", "unsupported_color_model")
    return np.array(drop_alpha(image, path).convert("RGB"))


def has_exif_rotation(path: Path) -> bool:
    """True if the EXIF header asks viewers to rotate or mirror the image, which `read_picture` does not do."""
    with Image.open(path) as image:
        return image.getexif().get(0x0112, 1) != 1


def decode(path: Path) -> Image.Image:
    """The decoded image in its native color mode.

    Raises ImageError if the file is missing, empty, truncated or not an image, or has several frames or more than
    `MAX_PIXELS` pixels.
    """
    _, n_bytes, _ = version_of(path)
    if n_bytes == 0:
        raise image_error(path, "is empty (0 bytes)", "unreadable_image")
    with decoding(path):
        try:
            opened = Image.open(path)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise image_error(path, f"has more than {MAX_PIXELS // 10**6} megapixels", "image_too_large") from error
        with opened as image:
            _check_header(image, path)
            image.load()
            return image


def _check_header(image: Image.Image, path: Path) -> None:
    """Check size, number of frames and bit depth in the header, before any pixel is decoded."""
    check_pixels(image.height, image.width, str(path))
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise image_error(path, f"has {frames} frames", "multi_frame_file", remedy="save each as an image of its own")
    # Pillow opens 16-bit color as 8-bit RGB and drops the low byte; only the raw mode of its tiles shows this
    if not image.mode.startswith("I") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", [])):
        raise too_deep(str(path), f"16-bit {image.mode}")


def too_deep(where: str, mode: str) -> ImageError:
    """The error for pixels of more than 8 bits per channel; its message starts with `where`."""
    return image_error(where, f"has pixels of more than 8 bits ({mode})", "invalid_bit_depth")


def drop_alpha(image: Image.Image, path: Path) -> Image.Image:
    """The image without its alpha channel; ImageError if a pixel is transparent."""
    if not image.has_transparency_data:
        return image
    if np.asarray(image.convert("RGBA").getchannel("A")).min() < 255:
        raise image_error(path, "is partly transparent", "transparent_image")
    image.info.pop("transparency", None)
    return image.convert({"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode))
