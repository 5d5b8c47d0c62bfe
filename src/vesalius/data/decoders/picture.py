"""Plain image files (PNG, JPEG, BMP, TIFF), decoded by Pillow; what a decoder would drop or guess is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from vesalius.data.decoders.limits import MAX_PIXELS
from vesalius.errors import ImageError, VesaliusError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""File endings that count as an image when a folder is searched, in any letter case."""

RGB_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")

# Pillow's own limit lies at 89 megapixels, with a warning, and at 179 with an error; ours must come first
if Image.MAX_IMAGE_PIXELS is not None:
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)


def read_picture(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of an 8-bit image file; ImageError as for `vesalius.data.images.read_image`."""
    image = decode(path)
    if image.mode.startswith(("I", "F")):
        raise too_deep(str(path), image.mode)
    if image.mode not in RGB_MODES:
        raise ImageError(f"{path}: has the color mode {image.mode}; save it as RGB or gray")
    return np.array(drop_alpha(image, path).convert("RGB"))


def stored_turned(path: Path) -> bool:
    """Whether the file asks viewers to turn or mirror it (EXIF), which `read_image` does not do."""
    with Image.open(path) as image:
        return image.getexif().get(0x0112, 1) != 1


def decode(path: Path) -> Image.Image:
    """One decoded frame of at most `MAX_PIXELS`, in its own mode; ImageError otherwise."""
    try:
        if not path.is_file():
            raise ImageError(
                f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}; give an image file"
            )
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: is empty (0 bytes); copy it again from its source")
        with Image.open(path) as image:
            _check_header(image, path)
            image.load()
            return image
    except (VesaliusError, MemoryError):  # a signal may end the run in here
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{path}: has more than {MAX_PIXELS // 10**6} megapixels; cut it into tiles first"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: is not an image that can be decoded; save it as PNG") from error
    # Pillow's decoders raise whatever their parser met: OSError, SyntaxError, struct.error
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{path}: cannot be decoded ({reason}); copy it again from its source") from error


def _check_header(image: Image.Image, path: Path) -> None:
    """Refuse what the header alone shows, before any pixel is decoded."""
    if image.width * image.height > MAX_PIXELS:
        megapixels = image.width * image.height / 1e6
        raise ImageError(
            f"{path}: has {megapixels:.0f} megapixels, {MAX_PIXELS // 10**6} are allowed; cut it into tiles"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(f"{path}: has {frames} frames; save each as an image of its own")
    # Pillow opens 16-bit color as 8-bit RGB and drops the low byte; only the raw mode of its tiles tells
    if not image.mode.startswith("I") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", [])):
        raise too_deep(str(path), f"16-bit {image.mode}")


def too_deep(source: str, mode: str) -> ImageError:
    return ImageError(
        f"{source}: has pixels of more than 8 bits ({mode}); convert to 8 bits first, with the window you want"
    )


def drop_alpha(image: Image.Image, path: Path) -> Image.Image:
    """The image without its alpha channel; ImageError where a pixel is transparent."""
    if not image.has_transparency_data:
        return image
    if np.asarray(image.convert("RGBA").getchannel("A")).min() < 255:
        raise ImageError(
            f"{path}: is partly transparent; put it on the background you want and save it without alpha"
        )
    image.info.pop("transparency", None)
    return image.convert({"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode))
