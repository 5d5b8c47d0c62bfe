"""Read TIFF files with pixel types that Pillow does not have, by tifffile.

They are 64-bit and 16-bit floats, float colors, signed 8 bits, 16-bit colors in separate planes, and some
compressed files in the other byte order. Without
imagecodecs, tifffile reads uncompressed, Deflate, PackBits, LZMA and Zstandard files.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from vesalius.data.decoders.exif import TAG, valid_orientation
from vesalius.data.decoders.limits import check_pixels, decoding, image_error

NATIVE = b"II" if sys.byteorder == "little" else b"MM"
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BITS, PHOTOMETRIC, PLANES, SAMPLE_FORMAT = 258, 262, 284, 339
"""Numbers of TIFF tags."""
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
"""Values of the tag PhotometricInterpretation."""
SEPARATE = 2
"""Value of the tag PlanarConfiguration for colors in separate planes."""
MAX_VALUES = 4
"""Maximum number of values per pixel: channels, times the slices of a volume."""
UNSIGNED, UNDEFINED = 1, 4
"""Values of the tag SampleFormat that mean unsigned integers."""


def needs_tifffile(image: Image.Image) -> bool:
    """True if Pillow has opened this TIFF with another pixel type than that of the file."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits, formats = max(tags.get(BITS, (1,))), set(tags.get(SAMPLE_FORMAT, (UNSIGNED,)))
    if bits <= 8:
        return not formats <= {UNSIGNED, UNDEFINED}
    if image.mode in ("I", "F"):  # libtiff decompresses to native byte order, and Pillow swaps it again
        return tags.prefix != NATIVE and image.info["compression"] != "raw"
    return not image.mode.startswith("I") and tags.get(PLANES) == SEPARATE


def gray_type(image: Image.Image) -> np.dtype[Any]:
    """The type of the values of a gray TIFF with Pillow's mode I, which is always signed with 32 bits."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    signed = not set(tags.get(SAMPLE_FORMAT, (UNSIGNED,))) <= {UNSIGNED, UNDEFINED}
    return np.dtype(f"{'i' if signed else 'u'}{max(tags.get(BITS, (32,))) // 8}")


def is_white_zero(image: Image.Image) -> bool:
    """True if the header of a TIFF states that the value 0 is white."""
    return image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO  # type: ignore[attr-defined]


class TiffFile:
    """A TIFF file opened by tifffile, for one thread at a time."""

    def __init__(self, path: Path) -> None:
        import tifffile

        self._path = path
        with decoding(path):
            self._file = tifffile.TiffFile(path)
            try:
                pages: Any = self._file.pages
                self.frames = tuple(index for index, page in enumerate(pages) if not page.is_reduced)
            except BaseException:
                self._file.close()
                raise

    def read(self, page: int) -> tuple[Shaped[np.ndarray, "h w *c"], int, bool]:
        """(values, EXIF orientation, whether the lowest values are white) of a page.

        ImageError for more than `MAX_PIXELS` pixels, a color model other than gray and RGB, or a compression that needs
        imagecodecs.
        """
        with decoding(self._path, f"frame {page}" if len(self.frames) > 1 else ""):
            found: Any = self._file.pages[page]
            check_pixels(found.imagelength, found.imagewidth, str(self._path))
            per_pixel = found.size // max(found.imagelength * found.imagewidth, 1)
            if per_pixel > MAX_VALUES:  # checked before decoding, because a small file may state millions
                wrong = f"has {per_pixel} values per pixel"
                raise image_error(self._path, wrong, "unsupported_color_model")
            values = found.asarray()
        if found.planarconfig == SEPARATE and values.ndim == 3:
            values = np.moveaxis(values, 0, 2)
        color = found.photometric == RGB and values.ndim == 3 and values.shape[2] == 3
        gray = found.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and values.ndim == 2
        if not (color or gray) or values.dtype.kind not in "uif":
            wrong = f"has pixels of the type {values.dtype} with the color model {found.photometric}"
            raise image_error(self._path, wrong, "unsupported_color_model")
        orientation = found.tags.get(TAG)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        return values, valid_orientation(orientation and orientation.value), found.photometric == WHITE_IS_ZERO

    def close(self) -> None:
        """Close the file."""
        self._file.close()
