"""Figures of masks: overlays, contours, and six panels that compare a prediction with its ground truth.

Images are uint8 (h, w, 3) RGB, masks bool (h, w). Everything is drawn with Pillow: six panels of a 512 x 512 image take
10 to 30 ms, plus the time to write a PNG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from vesalius.colors import FN_COLOR, FP_COLOR, PHRASE_COLORS, TP_COLOR, Color, phrase_colors
from vesalius.fonts import draw_text, label
from vesalius.masks import Size, dilate

LEGEND = (("TP: in both", TP_COLOR), ("FP: predicted only", FP_COLOR), ("FN: missed", FN_COLOR))
WHITE, INK, GRAY = (255, 255, 255), (24, 24, 27), (96, 96, 104)

PANEL_SIDE = 512
"""Longer side of an image in a panel, in pixels."""
PANEL_WIDTH_MIN = 400
"""Minimum panel width, so that titles and legend fit over a tall and narrow image."""
GAP, LINE, TITLE_TEXT, TEXT = 16, 44, 34, 28
"""Margins, line height and text sizes in pixels. A figure of 1600 pixels shrunk to 512 still has text of 9 pixels."""
TEXT_MIDDLE = 0.42
"""Middle of the text below the top of its line, as a fraction of `LINE`."""
CONTOUR_GRAY = 120
"""Background of contours: the image is darkened until 90 % of its pixels have at most this gray value (of 255)."""
FILL = 0.25
"""Opacity of the fill of a mask in an overlay."""
MIN_COVERAGE = 0.25
"""Minimum coverage of a panel pixel that belongs to the mask; at 0.5, vessels thinner than a pixel would vanish."""


def six_panels(
    image: UInt8[np.ndarray, "h w 3"],
    target: Bool[np.ndarray, "h w"],
    prediction: Bool[np.ndarray, "h w"],
    *,
    title: str,
    prompt: str,
    scores: Mapping[str, float | None],
    color: Color = PHRASE_COLORS[0],
) -> Image.Image:
    """A figure of six panels with legend and scores: image, ground truth, prediction, both contours, and difference.

    Every image is resized to the same longer side with its aspect ratio. Contours and difference are drawn on the
    darkened gray image, so that thin lines stand out. Contours have the `color` of the phrase and run outside the mask,
    so the covered pixels stay visible. Panel titles mark empty masks. `scores` may lack `dice` or `iou`; None is
    shown as a dash. Characters without a font are shown as codes (see `fonts.missing_font`). Raises ValueError for masks of
    another size.
    """
    for name, mask in (("target", target), ("prediction", prediction)):
        if mask.dtype != np.bool_ or mask.shape != image.shape[:2]:
            raise ValueError(f"{name} must be bool {image.shape[:2]}; got {mask.dtype} {mask.shape}")
    size = panel_size(image.shape[:2])
    small = _resize_image(image, size)
    gray = Image.fromarray(small).convert("L")
    light = min(1, CONTOUR_GRAY / max(1, float(np.percentile(np.asarray(gray), 90))))
    dim, dark = (np.asarray(gray.point(_darker(factor)).convert("RGB")) for factor in (light, 0.35))
    coverages = [_coverage(mask, size) for mask in (target, prediction)]
    shown = [coverage >= MIN_COVERAGE for coverage in coverages]
    empty = ["" if mask.any() else label(" (empty)") for mask in (target, prediction)]
    panels = [
        (label("Original"), small),
        (label("Ground truth") + empty[0], _gray(coverages[0])),
        (label("Prediction") + empty[1], _gray(coverages[1])),
        (label("Ground truth contour"), contour(dim, shown[0], color, width=2)),
        (label("Prediction contour"), contour(dim, shown[1], color, width=2)),
        (label("Difference"), _difference(dark, target, prediction)),
    ]
    return _lay_out(panels, size, title, prompt, scores)


def crop_panels(figure: Image.Image, numbers: Sequence[int]) -> Image.Image:
    """The images of some panels of a six-panel figure, side by side without titles; `numbers` are from 0 to 5."""
    width = max(1, (figure.width - GAP) // 3 - GAP)
    top, seam = GAP + 2 * LINE + GAP, 4
    height = max(1, (figure.height - top - LINE - GAP) // 2 - LINE - GAP)
    result = Image.new("RGB", (len(numbers) * (width + seam) - seam, height), GRAY)
    for place, number in enumerate(numbers):
        row, column = divmod(number, 3)
        x, y = GAP + column * (width + GAP), top + row * (LINE + height + GAP) + LINE
        result.paste(figure.crop((x, y, x + width, y + height)), (place * (width + seam), 0))
    return result


def panel_size(size: Size) -> Size:
    """(h, w) of an image in a panel: longer side `PANEL_SIDE`, shorter side at least one pixel."""
    factor = PANEL_SIDE / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    color: Color = PHRASE_COLORS[0],
    alpha: float = FILL,
) -> Image.Image:
    """The image with the mask as a translucent fill and a contour around it; unchanged if the mask is empty.

    The contour runs outside the mask, so a thin vessel stays visible. Its width is one pixel up to `PANEL_SIDE` and
    grows with the image. `alpha` in [0, 1] is the opacity of the fill.
    """
    return _overlay(image, [(mask, color)], alpha)


def overlay_phrases(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Mapping[str, Bool[np.ndarray, "h w"]],
    colors: Mapping[str, Color] | None = None,
    *,
    alpha: float = FILL,
    legend: bool = True,
) -> Image.Image:
    """The image with the masks of several phrases, each in its own color, as by `overlay`.

    `colors` has a color for each phrase; by default those of `phrase_colors` in the order of `masks`. Contours are drawn
    after all fills, so that overlapping masks keep their outlines. With `legend`, a strip under the image names the
    phrases, including those with an empty mask; without it, the picture has the size of the image. KeyError for a phrase
    without a color.
    """
    chosen = phrase_colors(masks) if colors is None else colors
    named = {phrase: chosen[phrase] for phrase in masks}
    drawn = _overlay(image, [(mask, named[phrase]) for phrase, mask in masks.items()], alpha)
    return _with_legend(drawn, named) if legend and named else drawn


def _overlay(
    image: UInt8[np.ndarray, "h w 3"], layers: Sequence[tuple[Bool[np.ndarray, "h w"], Color]], alpha: float
) -> Image.Image:
    width = max(1, round(max(image.shape[:2]) / PANEL_SIDE))
    result = image.copy()
    for mask, color in layers:
        result[mask] = (result[mask] * (1 - alpha) + np.array(color, dtype=np.float32) * alpha).round()
    for mask, color in layers:
        result[_around(mask, width)] = color
    return Image.fromarray(result)


def _with_legend(picture: Image.Image, colors: Mapping[str, Color]) -> Image.Image:
    """The picture above a white strip of color swatches and phrases, in as many lines as its width needs."""
    size = min(TEXT, max(12, picture.width // 28))
    line, gap = round(1.5 * size), size // 2
    positions, x, y = [], gap, picture.height + gap
    scratch = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    for phrase in colors:
        width = min(size + gap + _write(scratch, (0, 0), phrase, size, WHITE), picture.width - 2 * gap)
        if x > gap and x + width > picture.width - gap:
            x, y = gap, y + line
        positions.append((x, y))
        x += width + 2 * gap
    result = Image.new("RGB", (picture.width, y + line + gap), WHITE)
    result.paste(picture, (0, 0))
    draw = ImageDraw.Draw(result)
    for (x, y), (phrase, color) in zip(positions, colors.items(), strict=True):
        draw.rectangle((x, y, x + size, y + size), fill=color, outline=INK)
        left, top = x + size + gap, round(y + size / 2 - LINE * TEXT_MIDDLE)
        _write(draw, (left, top), phrase, size, INK, max(1, picture.width - gap - left))
    return result


def contour(
    image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], color: Color = PHRASE_COLORS[0], width: int = 1
) -> UInt8[np.ndarray, "h w 3"]:
    """A copy of the image with a line of `width` pixels around the mask, outside it."""
    result = image.copy()
    result[_around(mask, width)] = color
    return result


def _around(mask: Bool[np.ndarray, "h w"], width: int) -> Bool[np.ndarray, "h w"]:
    """Pixels outside the mask, up to `width` pixels away from it."""
    wide = mask
    for _ in range(width):
        wide = dilate(wide)
    return wide & ~mask


def _lay_out(
    panels: Sequence[tuple[str, np.ndarray]], size: Size, title: str, prompt: str, scores: Mapping[str, float | None]
) -> Image.Image:
    height, width = size[0], max(size[1], PANEL_WIDTH_MIN)
    top = GAP + 2 * LINE + GAP
    row_height = LINE + height + GAP
    figure = Image.new("RGB", (GAP + 3 * (width + GAP), top + 2 * row_height + LINE + GAP), WHITE)
    draw = ImageDraw.Draw(figure)
    inner = figure.width - 2 * GAP
    _write(draw, (GAP, GAP), title, TITLE_TEXT, INK, inner)
    _write(draw, (GAP, GAP + LINE), label("prompt: {prompt}", prompt=prompt), TEXT, GRAY, inner)
    for index, (name, pixels) in enumerate(panels):
        row, column = divmod(index, 3)
        x, y = GAP + column * (width + GAP), top + row * row_height
        _write(draw, (x, y), name, TEXT, INK, width)
        figure.paste(Image.fromarray(pixels), (x, y + LINE))
    _write_legend(draw, (GAP, figure.height - GAP - LINE), scores)
    return figure


def _write_legend(draw: ImageDraw.ImageDraw, position: tuple[int, int], scores: Mapping[str, float | None]) -> None:
    x, y = position
    for name, color in LEGEND:
        draw.rectangle((x, y + 4, x + TEXT, y + 4 + TEXT), fill=color, outline=INK)
        x += TEXT + 10
        x += _write(draw, (x, y), label(name), TEXT, INK) + GAP + GAP // 2
    for metric, name in (("dice", "Dice"), ("iou", "IoU")):
        if metric in scores:
            value = scores[metric]
            x += _write(draw, (x, y), f"{name} {'–' if value is None else f'{value:.3f}'}", TEXT, INK) + GAP


def _difference(
    dark: UInt8[np.ndarray, "H W 3"], target: Bool[np.ndarray, "h w"], prediction: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "H W 3"]:
    """The dark image with TP, FP and FN pixels, computed at full size and then resized."""
    size = dark.shape[0], dark.shape[1]
    kinds = ((target & prediction, TP_COLOR), (prediction & ~target, FP_COLOR), (target & ~prediction, FN_COLOR))
    covered = [_coverage(mask, size) for mask, _ in kinds]
    total = covered[0] + covered[1] + covered[2]
    used = total > 0  # few pixels of an image are vessels
    opacity = np.stack([coverage[used] for coverage in covered], axis=-1)
    # up to twice the coverage: otherwise a line thinner than a panel pixel would be too faint
    opacity *= np.minimum(2, 1 / total[used])[:, None]
    paint = opacity @ np.array([color for _, color in kinds], dtype=np.float32)
    rest = 1 - opacity.sum(axis=-1, keepdims=True)
    result = dark.copy()
    result[used] = np.clip(paint + dark[used] * rest, 0, 255).round()
    return result


def _darker(factor: float) -> list[int]:
    """Lookup table that multiplies gray values by `factor`."""
    return [round(factor * value) for value in range(256)]


def _resize_image(image: UInt8[np.ndarray, "h w 3"], size: Size) -> UInt8[np.ndarray, "H W 3"]:
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(resized)


def _coverage(mask: Bool[np.ndarray, "h w"], size: Size) -> Float[np.ndarray, "H W"]:
    """Coverage of each output pixel by the mask, float32 in [0, 1]; 0 or 1 if the mask is enlarged."""
    picture = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BOX), dtype=np.float32) / 255


def _gray(coverage: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    values = (coverage * 255).round().astype(np.uint8)
    return np.asarray(Image.fromarray(values).convert("RGB"))


def _write(
    draw: ImageDraw.ImageDraw, position: tuple[int, int], text: str, size: int, color: Color, width: int | None = None
) -> int:
    """Draw one line in the line height `LINE`, truncated with … at `width`; returns the drawn width in pixels."""
    return draw_text(draw, (position[0], position[1] + LINE * TEXT_MIDDLE), text, size, color, width)
