"""Images as users of Python give them: paths, encoded files in memory, PIL images, arrays and tensors."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Union

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vesalius.arrays import as_rgb, is_in_memory
from vesalius.calls import describe
from vesalius.data.images import decode_image, frame_id, sample_id
from vesalius.errors import SettingError, VesaliusError
from vesalius.window import AUTO, Window

if TYPE_CHECKING:
    from torch import Tensor

Picture = Union[str, "os.PathLike[str]", bytes, IO[bytes], Image.Image, np.ndarray, "Tensor"]
"""One image: a path, the bytes of an encoded file, a binary file object, a PIL image, a NumPy array or a torch tensor."""


def is_picture(value: object) -> bool:
    """True for one image, False for a list of images and for anything else."""
    kinds = str | os.PathLike | bytes | bytearray | memoryview
    return isinstance(value, kinds) or hasattr(value, "read") or is_in_memory(value)


def held(image: Any) -> Any:
    """The image in a form that can be read repeatedly: a file object becomes its bytes.

    SettingError for a value that is no image.
    """
    if not is_picture(image):
        raise SettingError(
            "an image is a path, the bytes of a file, a PIL image, a NumPy array or a torch tensor; "
            f"got {describe(image)}",
            code="bad_value",
            field="image",
        )
    if is_in_memory(image) or isinstance(image, str | os.PathLike):
        return image
    try:
        content = image.read() if hasattr(image, "read") else bytes(image)
    except (OSError, ValueError) as error:  # closed, or not readable
        message = f"the file object cannot be read ({error}); open the file again, or give its path"
        raise SettingError(message, code="bad_value", field="image") from error
    if not isinstance(content, bytes):
        raise SettingError("a file object must be opened in binary mode", code="bad_value", field="image")
    return content


def as_pixels(
    image: Any, frame: int | None = None, window: Window = AUTO, name: str = "the image"
) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of an image given as a path, bytes, a file object, a PIL image, an array or a tensor.

    `frame` is the index of a frame, from 0, in a file with several; `window` maps values of more than 8 bits. Raises
    ImageError as `read_image` does; SettingError for a value that is no image, for arrays that `as_rgb` refuses, and for
    `frame` with pixels. `name` names an image without a path in messages.
    """
    image = held(image)
    if is_in_memory(image):
        if frame is not None:
            raise SettingError(
                "frame is for files with several frames; an array or a PIL image is one frame",
                code="conflicting_settings",
                field="frame",
            )
        return as_rgb(image, window, name)
    if isinstance(image, bytes):
        return _read_bytes(image, frame, window, name)
    return decode_image(Path(image), frame, window=window).pixels


def picture_ids(images: Sequence[Any], frame: int | None = None) -> list[str]:
    """An id for each image: the stem of its path; without a path `image`, or in a list `image0`, `image1`, ...

    Paths with equal stems get their folders as well: `a/1.png` and `b/1.png` give `a__1` and `b__1`.
    """
    paths = [Path(image) if isinstance(image, str | os.PathLike) else None for image in images]
    stems = [None if path is None else sample_id(Path(path.name or "image")) for path in paths]
    count = Counter(stems)
    ids = []
    for index, (path, stem) in enumerate(zip(paths, stems, strict=True)):
        if path is None or stem is None:
            ids.append("image" if len(images) == 1 else f"image{index}")
            continue
        name = stem if count[stem] == 1 else sample_id(Path(*path.parts[path.is_absolute() :]))
        ids.append(name if frame is None else frame_id(name, frame))
    return ids


def _read_bytes(content: bytes, frame: int | None, window: Window, name: str) -> np.ndarray:
    # decoders of DICOM, volumes and video read files; without a suffix, a file is recognized by its content
    with tempfile.TemporaryDirectory(prefix="vesalius-") as folder:
        path = Path(folder) / "image"
        path.write_bytes(content)
        try:
            return decode_image(path, frame, window=window).pixels
        except VesaliusError as error:
            message = str(error).replace(str(path), name)
            raise type(error)(message, code=error.code, field=error.field, remedy=error.remedy) from error
