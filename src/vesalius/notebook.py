"""How a prediction looks in a notebook or script: overlay, figure, PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from vesalius.arrays import as_rgb, is_in_memory
from vesalius.calls import describe
from vesalius.colors import Color
from vesalius.errors import SettingError
from vesalius.fonts import chart_families, drawable
from vesalius.masks import Size
from vesalius.visualization import overlay_phrases

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_SIDE = 768
"""Longer side of a PNG shown in a notebook, in pixels."""
PANEL_INCHES, DPI = 4.5, 100


def check_picture(image: Any, size: Size) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of a PIL image, array or tensor; SettingError for anything else and for another size than `size`."""
    if not is_in_memory(image):
        raise SettingError(
            f"image must be a PIL image, an array or a tensor; got {describe(image)}", code="bad_value", field="image"
        )
    pixels = as_rgb(image)
    if pixels.shape[:2] != size:
        raise SettingError(
            f"the image has {pixels.shape[0]} x {pixels.shape[1]} pixels (h x w), but the prediction is for "
            f"{size[0]} x {size[1]}; give the image that was predicted",
            code="size_mismatch",
            field="image",
        )
    return pixels


def draw_figure(
    picture: UInt8[np.ndarray, "h w 3"],
    prompt: str,
    mask: Bool[np.ndarray, "h w"],
    probability: Float32[np.ndarray, "h w"] | None,
    title: str,
    color: Color,
) -> Figure:
    """A matplotlib figure: overlay with its legend, and the probabilities if they are known; pyplot is not used."""
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        """A figure that a notebook shows also if pyplot was never imported."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png")
            return buffer.getvalue()

    panels = 1 if probability is None else 2
    height = PANEL_INCHES * min(2.0, max(0.5, mask.shape[0] / mask.shape[1])) + 0.6
    figure = ShownFigure(figsize=(PANEL_INCHES * panels + 0.8 * (panels - 1), height), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    # the legend is drawn by Pillow, with a font that has the characters of the phrase
    axes[0].imshow(overlay_phrases(picture, {prompt: mask}, {prompt: color}))
    axes[0].set_title(drawable(title), fontsize="medium", family=chart_families(title), parse_math=False)
    if probability is not None:
        shown = axes[1].imshow(probability, vmin=0, vmax=1, cmap="gray")
        axes[1].set_title("probability", fontsize="medium")
        figure.colorbar(shown, ax=axes[1], fraction=0.046)
    for each in axes:
        each.set_axis_off()
    return figure


def encode_png(picture: Image.Image) -> bytes:
    """The picture as PNG; its longer side has at most `LONGEST_SIDE` pixels."""
    factor = min(1.0, LONGEST_SIDE / max(picture.size))
    if factor < 1:
        size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
        picture = picture.resize(size, Image.Resampling.BOX if picture.mode == "L" else Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
