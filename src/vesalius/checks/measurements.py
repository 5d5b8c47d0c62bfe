"""What is measured of each sample, once, and kept: small records of which a dataset may have many."""

from __future__ import annotations

from dataclasses import dataclass

from vesalius.data.perceptual_hash import ImageHashes
from vesalius.masks import Size


@dataclass(frozen=True)
class TargetMeasurement:
    """One phrase of a sample: the union of its objects."""

    phrase: str
    share: float
    """Of the image's pixels, in [0, 1]."""
    width_px: tuple[float, float] | None
    """(least, median) width along the skeleton; None for an empty mask."""
    skeleton: int
    """Pixels of the skeleton."""
    thin: int
    """Those where the mask is thinner than one cell of the model's mask grid."""


@dataclass(frozen=True)
class Measurement:
    """One sample."""

    id: str
    split: str
    """A key of `Report.parts`."""
    file: str
    """The image."""
    group: str | None
    sequence: str | None
    size: Size | None = None
    """(h, w); None where the image cannot be read."""
    hashes: ImageHashes | None = None
    targets: tuple[TargetMeasurement, ...] = ()
    """Empty where the sample is not annotated or a mask does not fit."""
