"""Measurements of samples, without images and masks, so that those of a large dataset fit in memory."""

from __future__ import annotations

from dataclasses import dataclass

from vesalius.data.perceptual_hash import ImageHashes
from vesalius.masks import Size
from vesalius.window import Range


@dataclass(frozen=True)
class TargetMeasurement:
    """Area and width of one target: the union of a phrase's objects in one sample."""

    phrase: str
    area_fraction: float
    """Area divided by the area of the image, in [0, 1]."""
    width_px: tuple[float, float] | None
    """(minimum, median) width along the skeleton in pixels; None for an empty mask."""
    skeleton: int
    """Number of skeleton pixels."""
    thin: int
    """Number of skeleton pixels where the mask is narrower than one cell of the model's mask grid."""


@dataclass(frozen=True)
class Measurement:
    """Size, hashes and target measurements of one sample."""

    id: str
    split: str
    """Key of `Report.parts`."""
    file: str
    """Path of the image."""
    group: str | None
    sequence: str | None
    size: Size | None = None
    """(h, w); None if the image cannot be read."""
    hashes: ImageHashes | None = None
    depth: str = ""
    """Type of the stored values, such as `8-bit` or `32-bit float`; "" if the image cannot be read."""
    window: Range | None = None
    """Stored values that are black and white; None if they are gray levels already."""
    targets: tuple[TargetMeasurement, ...] = ()
    """Empty if the sample is not annotated or a mask has another size."""
