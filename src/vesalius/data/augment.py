"""Data augmentation: one spatial transform for pixels and masks, then intensity changes, blur and noise."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Self

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from PIL import Image, ImageFilter
from pydantic import Field, NonNegativeFloat, model_validator

from vesalius.config import Settings
from vesalius.data.warping import Elastic, SamplingMap
from vesalius.masks import Size
from vesalius.types import Item

UnitInterval = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]

FOLD_LIMIT = 0.4
"""Maximum displacement of control points as a fraction of their spacing; the deformation folds from 0.48 on (Choi & Lee
2000, https://doi.org/10.1006/gmod.2000.0531)."""


class Probabilities(Settings):
    """Probability of applying each augmentation; its strength is sampled independently."""

    rotate_degrees: UnitInterval = 1.0
    """Probability of a random rotation."""
    scale: UnitInterval = 1.0
    """Probability of a random scaling."""
    shift: UnitInterval = 1.0
    """Probability of a random shift."""
    elastic: UnitInterval = 1.0
    """Probability of a random elastic deformation."""
    gamma: UnitInterval = 1.0
    """Probability of a random change of gamma."""
    contrast: UnitInterval = 1.0
    """Probability of a random change of contrast."""
    blur: UnitInterval = 1.0
    """Probability of a random blur."""
    noise: UnitInterval = 1.0
    """Probability of random noise."""


class AugmentSettings(Settings):
    """Strength of each augmentation, sampled uniformly from its range; all augmentations are off by default."""

    flip: UnitInterval = 0.0
    """Probability of a horizontal flip; keep 0 if phrases name a side."""
    flip_vertical: UnitInterval = 0.0
    """Probability of a vertical flip."""
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Maximum rotation about the center, in either direction."""
    scale: Fraction = 0.0
    """Maximum change of scale: 0.2 samples the scale from 0.8 to 1.2."""
    shift: UnitInterval = 0.0
    """Maximum translation as a fraction of the image side, sampled for each axis."""
    elastic: UnitInterval = 0.0
    """Maximum displacement along either axis by a smooth random deformation, as a fraction of the shorter side; the
    typical displacement is a quarter of it."""
    elastic_extent: Annotated[float, Field(ge=0.05, le=1)] = 0.15
    """Spacing of the control points of the deformation, as a fraction of the shorter side."""
    gamma: NonNegativeFloat = 0.0
    """Maximum change of log gamma: 0.3 samples gamma from 0.74 to 1.35."""
    contrast: Fraction = 0.0
    """Maximum change of contrast about the mean gray level: 0.2 samples the factor from 0.8 to 1.2."""
    blur: Annotated[float, Field(ge=0, le=50)] = 0.0
    """Maximum standard deviation of a Gaussian blur, in pixels."""
    noise: NonNegativeFloat = 0.0
    """Maximum standard deviation of Gaussian noise, in gray levels of 255."""
    invert: UnitInterval = 0.0
    """Probability of inverting gray levels."""
    probability: Probabilities = Probabilities()
    """Probability of applying each augmentation whose strength is above 0; 1 by default."""

    @model_validator(mode="after")
    def _does_not_fold(self) -> Self:
        if self.elastic > FOLD_LIMIT * self.elastic_extent:
            raise ValueError(
                f"elastic {self.elastic:g} would fold the image over itself; with elastic_extent "
                f"{self.elastic_extent:g} it may be at most {FOLD_LIMIT * self.elastic_extent:g}"
            )
        return self


def augment(item: Item, settings: AugmentSettings, rng: np.random.Generator) -> Item:
    """A copy of the item after random augmentation; all frames get the same one, and size and prompts stay.

    Output outside the input image repeats its edge pixels (black would look like a collimator, and reflection would
    show objects without masks); masks are False there. All spatial transforms are composed and applied in one bilinear
    resampling: a mask is true where at least half of the pixel is covered.
    """
    uniform, seed = _sample_uniform(rng)
    settings = _select(settings, uniform)
    sampling = _sampling_map(settings, uniform, seed, item.size)
    channels, masks = _to_channels(item.frames), item.masks
    if sampling is not None:
        channels, masks = _warp(channels, masks, sampling)
    channels = _adjust_intensity(channels, settings, uniform)
    if settings.blur:
        channels = _blur(channels, settings.blur * uniform["blur"])
    if settings.noise:
        channels = _add_noise(channels, settings.noise * uniform["noise"], seed)
    return replace(item, frames=_to_frames(channels), masks=masks)


DRAWN_FIRST = (
    *("flip", "flip_vertical", "rotate_degrees", "scale", "shift", "gamma", "contrast", "noise", "invert"),
    "shift_y",
)
DRAWN_LATER = ("elastic", "blur", *(f"apply {name}" for name in Probabilities.model_fields))
"""Add new augmentations at the end: an insertion shifts the random numbers of all names after it in stored runs."""


def _sample_uniform(rng: np.random.Generator) -> tuple[dict[str, float], int]:
    """(name -> random number in [0, 1), seed of the deformation and noise fields).

    Every number is always sampled, so that one setting does not change the random numbers of another. `DRAWN_LATER`
    has a generator of its own, seeded by the seed, so that an addition to it changes neither `DRAWN_FIRST` nor `rng`.
    """
    first = dict(zip(DRAWN_FIRST, rng.random(len(DRAWN_FIRST)).tolist(), strict=True))
    seed = int(rng.integers(2**63))
    later = np.random.default_rng([seed, 1]).random(len(DRAWN_LATER)).tolist()
    return first | dict(zip(DRAWN_LATER, later, strict=True)), seed


def _select(settings: AugmentSettings, uniform: dict[str, float]) -> AugmentSettings:
    """The settings, with strength 0 for augmentations that are randomly skipped."""
    probability = settings.probability
    skipped = [
        name for name in type(probability).model_fields if uniform[f"apply {name}"] >= getattr(probability, name)
    ]
    return settings.model_copy(update=dict.fromkeys(skipped, 0.0))


def _to_range(uniform: float, limit: float) -> float:
    """Map [0, 1] to [-limit, limit]."""
    return (2 * uniform - 1) * limit


def _sampling_map(settings: AugmentSettings, uniform: dict[str, float], seed: int, size: Size) -> SamplingMap | None:
    """All spatial transforms composed into one map; None for the identity."""
    inverse = _inverse_affine(settings, uniform, size)
    amplitude = settings.elastic * uniform["elastic"] * min(size)
    elastic = None
    if amplitude:
        rng = np.random.default_rng([seed, 2])
        elastic = Elastic.sample(rng, size, amplitude, settings.elastic_extent * min(size))
    if elastic is None and np.array_equal(inverse, np.eye(3)):
        return None
    return SamplingMap(size, inverse, elastic)


def _inverse_affine(settings: AugmentSettings, uniform: dict[str, float], size: Size) -> Float64[np.ndarray, "3 3"]:
    """Matrix from an output point (x, y, 1) to its source point in the input."""
    height, width = size
    angle = math.radians(_to_range(uniform["rotate_degrees"], settings.rotate_degrees))
    scale = 1 + _to_range(uniform["scale"], settings.scale)
    mirror_x = -1.0 if uniform["flip"] < settings.flip else 1.0
    mirror_y = -1.0 if uniform["flip_vertical"] < settings.flip_vertical else 1.0
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    center = np.array([width / 2, height / 2])
    shift = np.array(
        [_to_range(uniform["shift"], settings.shift) * width, _to_range(uniform["shift_y"], settings.shift) * height]
    )
    matrix = np.eye(3)
    matrix[:2, :2] = np.diag([mirror_x, mirror_y]) @ np.array([[cos, sin], [-sin, cos]])
    matrix[:2, 2] = center - matrix[:2, :2] @ (center + shift)
    return matrix


def _warp(
    channels: UInt8[np.ndarray, "f c h w"], masks: Bool[np.ndarray, "n f h w"] | None, sampling: SamplingMap
) -> tuple[np.ndarray, np.ndarray | None]:
    size = channels.shape[2:]
    flat = np.zeros((0, *size), bool) if masks is None else masks.reshape(-1, *size)
    moved, moved_masks = sampling.resample(channels.reshape(-1, *size), flat)
    return moved.reshape(channels.shape), None if masks is None else moved_masks.reshape(masks.shape)


def _to_channels(frames: UInt8[np.ndarray, "f h w 3"]) -> UInt8[np.ndarray, "f c h w"]:
    """One channel per frame for gray images, which saves two thirds of the work, else three."""
    first = frames[..., 0]
    gray = np.array_equal(first, frames[..., 1]) and np.array_equal(first, frames[..., 2])
    return np.moveaxis(frames[..., :1] if gray else frames, 3, 1)


def _to_frames(channels: UInt8[np.ndarray, "f c h w"]) -> UInt8[np.ndarray, "f h w 3"]:
    last = np.moveaxis(channels, 1, 3)
    return np.repeat(last, 3, axis=3) if last.shape[3] == 1 else np.ascontiguousarray(last)


def _adjust_intensity(
    channels: UInt8[np.ndarray, "f c h w"], settings: AugmentSettings, uniform: dict[str, float]
) -> UInt8[np.ndarray, "f c h w"]:
    """Apply gamma, contrast and inversion by one lookup table of 256 gray levels for all channels."""
    gamma = math.exp(_to_range(uniform["gamma"], settings.gamma))
    contrast = 1 + _to_range(uniform["contrast"], settings.contrast)
    inverted = uniform["invert"] < settings.invert
    if gamma == 1 and contrast == 1 and not inverted:
        return channels
    table = 255 * (np.arange(256) / 255) ** gamma
    mean = float(np.bincount(channels.ravel(), minlength=256) @ table) / channels.size
    table = (table - mean) * contrast + mean
    table = 255 - table if inverted else table
    return np.clip(np.rint(table), 0, 255).astype(np.uint8).take(channels)


def _blur(channels: UInt8[np.ndarray, "f c h w"], sigma: float) -> UInt8[np.ndarray, "f c h w"]:
    """Gaussian blur, approximated by three box blurs; edge pixels are repeated outside the image."""
    blur = ImageFilter.GaussianBlur(sigma)
    flat = channels.reshape(-1, *channels.shape[2:])
    blurred = [np.asarray(Image.fromarray(channel).filter(blur)) for channel in flat]
    return np.stack(blurred).reshape(channels.shape)


def _add_noise(channels: UInt8[np.ndarray, "f c h w"], std: float, seed: int) -> UInt8[np.ndarray, "f c h w"]:
    """Add Gaussian noise, the same in all channels and different in each frame."""
    shape = (len(channels), 1, *channels.shape[2:])
    noise: Float32[np.ndarray, "f 1 h w"] = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    noise *= np.float32(std)
    # int16: three times as fast as adding in float32, and pixels are integers anyway
    steps = np.clip(np.rint(noise), -255, 255).astype(np.int16)
    return np.clip(channels + steps, 0, 255).astype(np.uint8)
