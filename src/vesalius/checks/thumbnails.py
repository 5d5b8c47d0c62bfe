"""Thumbnails of samples: the image with the outlines of its annotation, including parts outside the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from vesalius.checks.correction import NotCorrectable, stored_size
from vesalius.colors import SKY_BLUE, VERMILLION, Color, phrase_colors
from vesalius.data.dataset import load_image
from vesalius.data.decoders.limits import MAX_PIXELS
from vesalius.data.images import read_mask
from vesalius.errors import DataError
from vesalius.language import translate
from vesalius.masks import Size, decode_rle
from vesalius.types import Absent, MaskFile, MaskReference, Polygons, RleMask, Sample
from vesalius.visualization import contour

SIDE = 320
"""Longer side of a thumbnail in pixels; it is drawn at twice this size and downsampled for smooth lines."""
OUTLINE = 3
"""Line width in pixels, at twice the final size."""
AS_STATED, RESCALED = VERMILLION, SKY_BLUE
"""Colors of a mask for another image size, at its stated coordinates and rescaled to the image."""
OUTSIDE = (236, 236, 240)
"""Color of the area outside the image."""
MAX_OUTSIDE = 1.0
"""Maximum distance from the image at which outlines are shown, relative to the side of the image."""
MIN_COVERAGE = 64
"""Minimum coverage (0 to 255) of a mask pixel in the thumbnail; with half of 255, thin vessels would vanish."""

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Outline:
    """One object, as an outline or a mask, in pixels of its stored size."""

    color: Color
    line: Points = field(default_factory=list)
    mask: Bool[np.ndarray, "h w"] | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    """(x, y) scale factors from the stored size to the image size."""


@dataclass(frozen=True)
class Thumbnail:
    """A thumbnail image with its legend."""

    picture: Image.Image
    legend: tuple[tuple[Color, str], ...]
    """(color, text) of each entry."""
    undrawn: tuple[str, ...]
    """For each mask that is not drawn, the reason."""


def draw(sample: Sample, colors: Mapping[str, Color] | None = None) -> Thumbnail:
    """The thumbnail of a sample with all its masks; ImageError if the image cannot be read.

    `colors` has a color for each phrase of the sample; by default those of `phrase_colors`. A mask for another image size is drawn twice: at its stated coordinates, and rescaled to the
    image.
    """
    image = load_image(sample)
    size = image.shape[0], image.shape[1]
    colors = phrase_colors(sample.prompts) if colors is None else colors
    outlines: list[Outline] = []
    undrawn: list[str] = []
    for prompt, objects in zip(sample.prompts, sample.masks or ((),) * len(sample.prompts), strict=True):
        for reference in objects:
            try:
                outlines += _outlines(reference, colors[prompt], sample.size, size)
            except (DataError, ValueError) as error:
                undrawn.append(f"{prompt!r}: {error}")
    legend: tuple[tuple[Color, str], ...]
    if any(outline.scale != (1, 1) for outline in outlines):
        legend = ((AS_STATED, translate("as stated")), (RESCALED, translate("rescaled to the image")))
    else:
        legend = tuple((colors[prompt], prompt) for prompt in sample.prompts)
    return Thumbnail(_draw(image, outlines), legend, tuple(undrawn))


def _outlines(reference: MaskReference, color: Color, stated: Size | None, size: Size) -> Iterator[Outline]:
    if isinstance(reference, Absent):
        return
    if isinstance(reference, Polygons):
        drawn, lines, mask = stated or size, [_points(part) for part in reference.parts], None
    else:
        drawn, lines = stored_size(reference), [[]]
        mask = _read(reference, drawn)
    scale = size[1] / drawn[1], size[0] / drawn[0]
    for line in lines:
        if drawn != size:
            yield Outline(AS_STATED, line, mask)
        yield Outline(color if drawn == size else RESCALED, line, mask, scale)


def _read(reference: RleMask | MaskFile, size: Size) -> Bool[np.ndarray, "h w"]:
    if size[0] * size[1] > MAX_PIXELS:
        raise NotCorrectable(f"has more than {MAX_PIXELS // 10**6} megapixels")
    if isinstance(reference, RleMask):
        return decode_rle(reference.rle)
    return read_mask(reference.path, size, reference.values, reference.known)


def _points(part: Sequence[float]) -> Points:
    pairs = np.array(part[: len(part) // 2 * 2], dtype=float).reshape(-1, 2)
    return [(float(x), float(y)) for x, y in pairs[np.isfinite(pairs).all(axis=1)]]


def _draw(image: UInt8[np.ndarray, "h w 3"], outlines: Sequence[Outline]) -> Image.Image:
    """Image and outlines on a canvas that contains both."""
    height, width = image.shape[:2]
    left, top, right, bottom = _extent(outlines, (height, width))
    zoom = 2 * SIDE / max(right - left, bottom - top)

    def to_canvas(x: float, y: float) -> tuple[float, float]:
        return (x - left) * zoom, (y - top) * zoom

    canvas = Image.new("RGB", _whole(right - left, bottom - top, zoom), OUTSIDE)
    pixels = Image.fromarray(image)
    canvas.paste(pixels.resize(_whole(width, height, zoom), Image.Resampling.BILINEAR), _corner(to_canvas(0, 0)))
    pen = ImageDraw.Draw(canvas)
    for each in outlines:
        # clip points far outside the canvas, because Pillow uses 32-bit coordinates
        line = [to_canvas(x * each.scale[0], y * each.scale[1]) for x, y in each.line]
        line = [(min(max(x, -1e5), 1e5), min(max(y, -1e5), 1e5)) for x, y in line]
        if line:
            pen.line([*line, line[0]], fill=each.color, width=OUTLINE)
    for each in outlines:
        if each.mask is not None:
            canvas = _with_mask(canvas, each, zoom, _corner(to_canvas(0, 0)))
    return canvas.resize((max(1, canvas.width // 2), max(1, canvas.height // 2)), Image.Resampling.BOX)


def _with_mask(canvas: Image.Image, outline: Outline, zoom: float, corner: tuple[int, int]) -> Image.Image:
    assert outline.mask is not None
    height, width = outline.mask.shape
    extent = _whole(width * outline.scale[0], height * outline.scale[1], zoom)
    coverage = Image.fromarray(outline.mask.astype(np.uint8) * 255).resize(extent, Image.Resampling.BOX)
    whole = Image.new("L", canvas.size)
    whole.paste(coverage, corner)
    shown = np.asarray(whole) >= MIN_COVERAGE
    return Image.fromarray(contour(np.asarray(canvas), shown, outline.color, width=OUTLINE - 1))


def _extent(outlines: Sequence[Outline], size: Size) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the shown area: the image, and outlines up to `MAX_OUTSIDE` outside it."""
    height, width = size
    xs, ys = [0.0, float(width)], [0.0, float(height)]
    for each in outlines:
        corners = each.line
        if each.mask is not None:
            corners = [(float(each.mask.shape[1]), float(each.mask.shape[0]))]
        xs += [x * each.scale[0] for x, _ in corners]
        ys += [y * each.scale[1] for _, y in corners]
    return (
        max(min(xs), -MAX_OUTSIDE * width),
        max(min(ys), -MAX_OUTSIDE * height),
        min(max(xs), (1 + MAX_OUTSIDE) * width),
        min(max(ys), (1 + MAX_OUTSIDE) * height),
    )


def _whole(width: float, height: float, zoom: float) -> tuple[int, int]:
    return max(1, round(width * zoom)), max(1, round(height * zoom))


def _corner(point: tuple[float, float]) -> tuple[int, int]:
    return round(point[0]), round(point[1])
