"""Images in memory as 8-bit RGB: NumPy arrays, torch tensors and PIL images of any depth and axis order.

This module imports no torch; a tensor exists only after its caller has imported torch.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vesalius.errors import ImageError, SettingError
from vesalius.window import AUTO, Window, to_8_bit

CHANNELS = (1, 3, 4)
"""Channels of an image: gray, RGB, RGB with alpha."""
OPAQUE = {"u1": 255, "u2": 65535}
"""Alpha of an opaque pixel by dtype; 255 for other integers, and 1 or 255 for floats."""


def is_tensor(value: object) -> bool:
    """True for a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_in_memory(value: object) -> bool:
    """True for a NumPy array, a torch tensor or a PIL image."""
    return isinstance(value, np.ndarray | Image.Image) or is_tensor(value)


def as_rgb(image: Any, window: Window = AUTO, name: str = "the image") -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of a NumPy array, a torch tensor on any device, or a PIL image of any mode.

    An array is (h, w), or has 1, 3 or 4 channels as its last or first axis. With the window `auto`, uint8 keeps its
    values, floats in [0, 1] are multiplied by 255, and other values are mapped linearly, the lowest of the image to 0
    and the highest to 255. Alpha must be opaque. SettingError for another shape or dtype, and for an axis order that is
    ambiguous; ImageError for transparent pixels, for NaN or infinite values, and for a PIL image that cannot be decoded.
    `name` begins the messages.
    """
    if isinstance(image, Image.Image):
        values = _from_pil(image, name)
    elif is_tensor(image):
        values = _from_tensor(image, name)
    else:
        values = np.asarray(image)
    if values.dtype.kind not in "buif":
        raise _refusal(name, f"has the dtype {values.dtype}; give numbers")
    values = _channels_last(values, name)
    if values.shape[2] == 4:
        values = _without_alpha(values, name)
    pixels, _ = to_8_bit(values, window, name)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)


def _from_tensor(image: Any, name: str) -> np.ndarray:
    try:
        tensor = image.detach().cpu()
        # NumPy has no bfloat16
        return np.asarray((tensor.float() if tensor.dtype.is_floating_point else tensor).numpy())
    except (TypeError, NotImplementedError, RuntimeError) as error:  # sparse, quantized, or without values (meta)
        raise _refusal(name, f"is a tensor that NumPy cannot read ({error}); give a dense tensor") from error


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    try:
        image.load()
    except (AssertionError, ValueError) as error:
        raise _refusal(name, "is a PIL image that was closed, or is damaged; open it again") from error
    except (OSError, SyntaxError) as error:  # Pillow decodes a file when its pixels are needed
        raise ImageError(
            f"{name}: cannot be decoded ({error}); copy its file again from its source",
            code="unreadable_image",
            field="image",
        ) from error
    try:
        if image.mode == "L" or image.mode.startswith(("I", "F")):
            return np.array(image)
        return np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    except ValueError as error:  # Pillow cannot convert this mode
        raise ImageError(
            f"{name}: has the color mode {image.mode}; convert it to RGB", code="unsupported_color_model", field="image"
        ) from error


def _channels_last(values: np.ndarray, name: str) -> np.ndarray:
    """The array as (h, w, c) with c in `CHANNELS`."""
    shape = values.shape
    if values.size == 0:
        raise _refusal(name, f"has no pixels (shape {shape})")
    if values.ndim == 2:
        return values[:, :, None]
    if values.ndim == 4:
        raise _refusal(name, f"has 4 axes (shape {shape}); give a batch as a list of images")
    last, first = (values.ndim == 3 and shape[axis] in CHANNELS for axis in (2, 0))
    if last and first:
        wrong = f"has the shape {shape}, where the first or the last axis may be the channels; give a PIL image"
        raise _refusal(name, wrong)
    if not last and not first:
        wrong = f"has the shape {shape}; an array is (h, w), or has 1, 3 or 4 channels as its last or first axis"
        raise _refusal(name, wrong)
    return values if last else values.transpose(1, 2, 0)


def _without_alpha(values: np.ndarray, name: str) -> np.ndarray:
    alpha = values[:, :, 3]
    opaque = (1, 255) if values.dtype.kind == "f" else (OPAQUE.get(values.dtype.str[1:], 255),)
    if alpha.min() != alpha.max() or alpha.flat[0] not in opaque:
        raise ImageError(
            f"{name}: is partly transparent; flatten it onto a background and give it without alpha",
            code="transparent_image",
            field="image",
        )
    return values[:, :, :3]


def _refusal(name: str, wrong: str) -> SettingError:
    return SettingError(f"{name}: {wrong}", code="bad_value", field="image")
