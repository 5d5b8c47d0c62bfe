"""Data augmentation: one spatial transform for pixels and masks, then gray levels, blur and noise."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Self

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from PIL import Image, ImageFilter
from pydantic import Field, model_validator

from vesalius.config import Settings
from vesalius.data.warping import Elastic, SamplingMap
from vesalius.masks import Size
from vesalius.types import Item

Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(ge=0, lt=1)]
Amount = Annotated[float, Field(ge=0)]

FOLD_LIMIT = 0.4
"""Maximum displacement of control points as a share of their distance; the deformation folds from 0.48 on (Choi & Lee
2000, https://doi.org/10.1006/gmod.2000.0531)."""


class Probabilities(Settings):
    """Probability of each augmentation; its strength is drawn independently."""

    rotate_degrees: Share = 1.0
    """Probability of a random rotation."""
    scale: Share = 1.0
    """Probability of a random scaling."""
    shift: Share = 1.0
    """Probability of a random shift."""
    elastic: Share = 1.0
    """Probability of a random elastic deformation."""
    gamma: Share = 1.0
    """Probability of a random change of gamma."""
    contrast: Share = 1.0
    """Probability of a random change of contrast."""
    blur: Share = 1.0
    """Probability of a random blur."""
    noise: Share = 1.0
    """Probability of random noise."""


class AugmentSettings(Settings):
    """Strength of each augmentation, drawn uniformly from its range; all are off by default."""

    flip: Share = 0.0
    """Probability of a horizontal flip; keep 0 if phrases name a side."""
    flip_vertical: Share = 0.0
    """Probability of a vertical flip."""
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Maximum rotation about the center, in either direction."""
    scale: Part = 0.0
    """Maximum change of scale: 0.2 draws from 0.8 to 1.2."""
    shift: Share = 0.0
    """Maximum translation as a share of the side, drawn for each axis."""
    elastic: Share = 0.0
    """Maximum displacement along either axis by a smooth random deformation, as a share of the shorter side; the typical
    displacement is a quarter of it."""
    elastic_extent: Annotated[float, Field(ge=0.05, le=1)] = 0.15
    """Distance between control points of the deformation, as a share of the shorter side."""
    gamma: Amount = 0.0
    """Maximum change of log gamma: 0.3 draws gamma from 0.74 to 1.35."""
    contrast: Part = 0.0
    """Maximum change of contrast about the mean gray level: 0.2 draws from 0.8 to 1.2."""
    blur: Annotated[float, Field(ge=0, le=50)] = 0.0
    """Maximum standard deviation of a Gaussian blur, in pixels."""
    noise: Amount = 0.0
    """Maximum standard deviation of Gaussian noise, in gray levels of 255."""
    invert: Share = 0.0
    """Probability of inverting gray levels."""
    probability: Probabilities = Probabilities()
    """Probability of each augmentation with a strength above; 1 by default."""

    @model_validator(mode="after")
    def _does_not_fold(self) -> Self:
        if self.elastic > FOLD_LIMIT * self.elastic_extent:
            raise ValueError(
                f"elastic {self.elastic:g} would fold the image over itself; with elastic_extent "
                f"{self.elastic_extent:g} it may be at most {FOLD_LIMIT * self.elastic_extent:g}"
            )
        return self


def augment(item: Item, settings: AugmentSettings, rng: np.random.Generator) -> Item:
    """The item after random augmentation; all frames are changed in the same way, and sizes and prompts are kept.

    Beyond its border the image continues with its edge pixels (a black border would look like a collimator, and a
    mirrored one would show objects without masks); masks are False there. All spatial changes are one map, by which
    pixels and masks are resampled once, bilinearly: a mask is true where at least half of the pixel is covered.
    """
    draw, seed = _draw(rng)
    settings = _select(settings, draw)
    sampling = _sampling_map(settings, draw, seed, item.size)
    planes, masks = _to_planes(item.frames), item.masks
    if sampling is not None:
        planes, masks = _move(planes, masks, sampling)
    planes = _change_gray(planes, settings, draw)
    if settings.blur:
        planes = _blur(planes, settings.blur * draw["blur"])
    if settings.noise:
        planes = _add_noise(planes, settings.noise * draw["noise"], seed)
    return replace(item, frames=_to_frames(planes), masks=masks)


DRAWN_FIRST = (
    *("flip", "flip_vertical", "rotate_degrees", "scale", "shift", "gamma", "contrast", "noise", "invert"),
    "shift_y",
)
DRAWN_LATER = ("elastic", "blur", *(f"apply {name}" for name in Probabilities.model_fields))


def _draw(rng: np.random.Generator) -> tuple[dict[str, float], int]:
    """(name -> number in [0, 1), seed for random fields).

    All numbers are always drawn, so that one setting does not change the draws of another. Augmentations added later
    draw from the seed, so that earlier draws and the generator stay unchanged.
    """
    draw = dict(zip(DRAWN_FIRST, rng.random(len(DRAWN_FIRST)).tolist(), strict=True))
    seed = int(rng.integers(2**63))
    later = np.random.default_rng([seed, 1]).random(len(DRAWN_LATER)).tolist()
    return draw | dict(zip(DRAWN_LATER, later, strict=True)), seed


def _select(settings: AugmentSettings, draw: dict[str, float]) -> AugmentSettings:
    """The settings with 0 for augmentations that are not applied this time."""
    probability = settings.probability
    skipped = [
        name for name in type(probability).model_fields if draw[f"apply {name}"] >= getattr(probability, name)
    ]
    return settings.model_copy(update=dict.fromkeys(skipped, 0.0))


def _spread(share: float, limit: float) -> float:
    """Map [0, 1] to [-limit, limit]."""
    return (2 * share - 1) * limit


def _sampling_map(
    settings: AugmentSettings, draw: dict[str, float], seed: int, size: Size
) -> SamplingMap | None:
    """All spatial changes as one map; None if there are none."""
    inverse = _inverse_affine(settings, draw, size)
    amplitude = settings.elastic * draw["elastic"] * min(size)
    elastic = None
    if amplitude:
        rng = np.random.default_rng([seed, 2])
        elastic = Elastic.drawn(rng, size, amplitude, settings.elastic_extent * min(size))
    if elastic is None and np.array_equal(inverse, np.eye(3)):
        return None
    return SamplingMap(size, inverse, elastic)


def _inverse_affine(
    settings: AugmentSettings, draw: dict[str, float], size: Size
) -> Float64[np.ndarray, "3 3"]:
    """Matrix from a point (x, y, 1) of the output to its source point in the input."""
    height, width = size
    angle = math.radians(_spread(draw["rotate_degrees"], settings.rotate_degrees))
    scale = 1 + _spread(draw["scale"], settings.scale)
    mirror_x = -1.0 if draw["flip"] < settings.flip else 1.0
    mirror_y = -1.0 if draw["flip_vertical"] < settings.flip_vertical else 1.0
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    center = np.array([width / 2, height / 2])
    shift = np.array(
        [_spread(draw["shift"], settings.shift) * width, _spread(draw["shift_y"], settings.shift) * height]
    )
    matrix = np.eye(3)
    matrix[:2, :2] = np.diag([mirror_x, mirror_y]) @ np.array([[cos, sin], [-sin, cos]])
    matrix[:2, 2] = center - matrix[:2, :2] @ (center + shift)
    return matrix


def _move(
    planes: UInt8[np.ndarray, "f c h w"], masks: Bool[np.ndarray, "n f h w"] | None, sampling: SamplingMap
) -> tuple[np.ndarray, np.ndarray | None]:
    size = planes.shape[2:]
    flat = np.zeros((0, *size), bool) if masks is None else masks.reshape(-1, *size)
    moved, moved_masks = sampling.resample(planes.reshape(-1, *size), flat)
    return moved.reshape(planes.shape), None if masks is None else moved_masks.reshape(masks.shape)


def _to_planes(frames: UInt8[np.ndarray, "f h w 3"]) -> UInt8[np.ndarray, "f c h w"]:
    """One plane per frame for gray images, which saves two thirds of the work, else three."""
    first = frames[..., 0]
    gray = np.array_equal(first, frames[..., 1]) and np.array_equal(first, frames[..., 2])
    return np.moveaxis(frames[..., :1] if gray else frames, 3, 1)


def _to_frames(planes: UInt8[np.ndarray, "f c h w"]) -> UInt8[np.ndarray, "f h w 3"]:
    last = np.moveaxis(planes, 1, 3)
    return np.repeat(last, 3, axis=3) if last.shape[3] == 1 else np.ascontiguousarray(last)


def _change_gray(
    planes: UInt8[np.ndarray, "f c h w"], settings: AugmentSettings, draw: dict[str, float]
) -> UInt8[np.ndarray, "f c h w"]:
    """Gamma, contrast and inversion as one lookup table of 256 gray levels for all channels."""
    gamma = math.exp(_spread(draw["gamma"], settings.gamma))
    contrast = 1 + _spread(draw["contrast"], settings.contrast)
    inverted = draw["invert"] < settings.invert
    if gamma == 1 and contrast == 1 and not inverted:
        return planes
    table = 255 * (np.arange(256) / 255) ** gamma
    mean = float(np.bincount(planes.ravel(), minlength=256) @ table) / planes.size
    table = (table - mean) * contrast + mean
    table = 255 - table if inverted else table
    return np.clip(np.rint(table), 0, 255).astype(np.uint8).take(planes)


def _blur(planes: UInt8[np.ndarray, "f c h w"], deviation: float) -> UInt8[np.ndarray, "f c h w"]:
    """Gaussian blur as three box blurs; edge pixels are repeated beyond the border."""
    blur = ImageFilter.GaussianBlur(deviation)
    flat = planes.reshape(-1, *planes.shape[2:])
    return np.stack([np.asarray(Image.fromarray(plane).filter(blur)) for plane in flat]).reshape(planes.shape)


def _add_noise(
    planes: UInt8[np.ndarray, "f c h w"], deviation: float, seed: int
) -> UInt8[np.ndarray, "f c h w"]:
    """Add Gaussian noise, the same in all channels and different in each frame."""
    shape = (len(planes), 1, *planes.shape[2:])
    noise: Float32[np.ndarray, "f 1 h w"] = np.random.default_rng(seed).standard_normal(
        shape, dtype=np.float32
    )
    noise *= np.float32(deviation)
    # int16: three times as fast as adding in float32, and pixels are integers anyway
    steps = np.clip(np.rint(noise), -255, 255).astype(np.int16)
    return np.clip(planes + steps, 0, 255).astype(np.uint8)
