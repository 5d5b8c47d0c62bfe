"""Read image files as 8-bit RGB and mask files as boolean arrays, and derive ids; ambiguous files are errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from PIL import Image

from vesalius.calls import check_kind, checked, describe
from vesalius.data.decoders.decoded import Decoded
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.data.decoders.limits import image_error
from vesalius.data.decoders.picture import SUFFIXES, decode, drop_alpha, read_picture
from vesalius.errors import AnnotationError, SettingError
from vesalius.masks import Size
from vesalius.types import Sample, Value
from vesalius.window import AUTO, Window

MASK_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16", "I;16L", "I;16B", "I;16N")


@checked
def read_image(
    path: str | Path, frame: int | None = None, reader: FrameReader | None = None, window: Any = AUTO
) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of an image file, or of one frame of a DICOM file, volume, video, animation or TIFF with pages.

    Photos are turned upright by their EXIF orientation. `window`, as `Window.parse` reads it, maps values of more than 8
    bits to gray levels. A `reader` keeps the file open from one frame to the next. Raises ImageError, naming the file, if
    it is missing, empty, truncated or not an image, has more than `MAX_PIXELS` pixels, a partly transparent
    pixel, a pixel that is NaN or infinite (except NIfTI), or no such frame.

    >>> from vesalius.synth import write_dataset
    >>> _ = write_dataset("angiograms", 2, size=64, num_workers=0)
    >>> read_image("angiograms/images/synth_00000.png").shape
    (64, 64, 3)
    """
    check_kind(path, str | Path, "path", "the path of an image")
    check_kind(reader, FrameReader | None, "reader", "a FrameReader")
    return decode_image(Path(path), check_frame(frame), reader, Window.of(window)).pixels


def check_frame(frame: Any) -> int | None:
    """The index of a frame as an int, or None; SettingError for any other value and for a negative index."""
    if frame is None:
        return None
    if isinstance(frame, bool) or not isinstance(frame, int | np.integer) or frame < 0:
        message = f"frame is the index of a frame, from 0; got {describe(frame)}"
        raise SettingError(message, code="bad_value", field="frame")
    return int(frame)


def decode_image(
    path: Path, frame: int | None = None, reader: FrameReader | None = None, window: Window = AUTO
) -> Decoded:
    """The pixels as for `read_image`, with the range of values that is shown, depth and orientation."""
    if frame is not None or path.suffix.lower() not in SUFFIXES:
        if reader is not None:
            decoded = reader.read(path, frame, window)
        else:
            with FrameReader() as single:
                decoded = single.read(path, frame, window)
        if decoded is not None:
            return decoded
    if frame:
        raise image_error(path, f"is a single image and has no frame {frame}", "frame_count_mismatch")
    return read_picture(path, window)


def with_window(samples: Iterable[Sample], window: Window) -> list[Sample]:
    """The samples, of which those without a window of their own have this one."""
    return [replace(each, window=window) if each.window == AUTO != window else each for each in samples]


def read_mask(
    path: Path, size: Size, values: Sequence[Value] | None = None, known: Sequence[Value] = ()
) -> Bool[np.ndarray, "h w"]:
    """Mask in an image file: true where the gray level or palette index is not 0.

    With `values`, the file is a class map, and the mask is true where the pixel has one of these values; `known` lists
    the values of all classes. They are either all gray levels or palette indices, or all colors. Raises AnnotationError
    if the file is not of `size` (code `size_mismatch`), if classes are not colors and the channels differ or palette
    index 0 is not black (`ambiguous_mask`), or if a pixel of a class map is neither background (0 or black) nor of a
    known class (`unknown_mask_value`); ImageError if the file cannot be read.
    """
    image = decode(path)
    if (image.height, image.width) != size:
        raise AnnotationError(
            f"{path}: the mask is {image.height} x {image.width} pixels (h x w) but its image is {size[0]} x {size[1]}",
            code="size_mismatch",
            path=path,
            remedy="draw it on the image itself, or resize it",
        )
    if values is None:
        return _levels(image, path) != 0
    colored = any(isinstance(value, tuple) for value in values)
    pixels = _packed_colors(image, path) if colored else _levels(image, path)
    numbers = {_number(value): value for value in (*values, *known)}
    others = pixels[~np.isin(pixels, [0, *numbers])]
    if len(others):
        raise _unknown_value(path, others, list(numbers.values()), colored)
    return np.isin(pixels, [_number(value) for value in values])


def mask_values(path: Path) -> list[int]:
    """Distinct gray levels or palette indices of a mask file, ascending, at most the lowest 256.

    Raises AnnotationError if its channels differ or its palette does not start with black; ImageError if the file
    cannot be read.
    """
    return [int(level) for level in np.unique(_levels(decode(path), path))[:256]]


def sample_id(path: PurePath) -> str:
    """The id of an image, from its path under the data root: `images/p1/a.png` and `p1/a.png` both give `p1__a`.

    A leading `images/` is dropped, so that an annotation file gives the same ids as the folder it describes.
    """
    suffix = "".join(path.suffixes[-2:]) if path.name.lower().endswith(".nii.gz") else path.suffix
    # a file named by a DICOM UID, 1.2.840.113, has no suffix at all
    parts = (path if suffix[1:].isdigit() else path.with_name(path.name.removesuffix(suffix))).parts
    return "__".join(parts[1:] if parts[0] == "images" and len(parts) > 1 else parts)


def frame_id(name: str, frame: int) -> str:
    """The id of one frame of the file with the id `name`: `cine__0012`."""
    return f"{name}__{frame:04d}"


def list_images(folder: Path) -> list[Path]:
    """Image files at any depth in the folder, sorted by path, except hidden ones."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))


def _levels(image: Image.Image, path: Path) -> Integer[np.ndarray, "h w"]:
    """Gray levels or palette indices of a mask."""
    if image.mode not in MASK_MODES:
        raise AnnotationError.at(
            path,
            f"has the color mode {image.mode}; save the mask as 8-bit gray, 0 for background",
            code="unsupported_color_model",
        )
    pixels = np.asarray(drop_alpha(image, path))
    if image.mode == "P" and any((image.getpalette("RGB") or ())[:3]):
        raise AnnotationError.at(
            path,
            "color 0 of the palette is not black; save the mask as 8-bit gray, 0 for background",
            code="ambiguous_mask",
        )
    if pixels.ndim == 2:
        return pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels
    if (pixels != pixels[:, :, :1]).any():
        raise AnnotationError.at(
            path,
            "the mask has several colors; save one 8-bit gray mask per object, 0 for background",
            code="ambiguous_mask",
        )
    return pixels[:, :, 0]


def _packed_colors(image: Image.Image, path: Path) -> Integer[np.ndarray, "h w"]:
    """The color of each pixel of a mask as one 24-bit number."""
    if image.mode not in MASK_MODES or image.mode.startswith("I"):
        raise AnnotationError.at(
            path,
            f"has the color mode {image.mode}, but its classes are colors; save the mask as RGB",
            code="unsupported_color_model",
        )
    pixels = np.asarray(drop_alpha(image, path).convert("RGB")).astype(np.int32)
    return pixels[:, :, 0] << 16 | pixels[:, :, 1] << 8 | pixels[:, :, 2]


def _number(value: Value) -> int:
    """A class value as the number in the arrays of `_levels` or `_packed_colors`."""
    return value if isinstance(value, int) else value[0] << 16 | value[1] << 8 | value[2]


def _unknown_value(path: Path, others: np.ndarray, known: Sequence[Value], colored: bool) -> AnnotationError:
    """The error for pixel values without a class; names the most frequent one."""
    levels, counts = np.unique(others, return_counts=True)
    value = int(levels[counts.argmax()])
    shown = [value >> 16, value >> 8 & 255, value & 255] if colored else value
    more = f" and {len(levels) - 1} more" if len(levels) > 1 else ""
    names = ", ".join(str(list(each) if isinstance(each, tuple) else each) for each in known)
    return AnnotationError.at(
        path,
        f"has values that are not in the table of classes ({names}): {shown} (pixels: {counts.max()}){more}; "
        "add them there, or correct these pixels",
        code="unknown_mask_value",
    )
