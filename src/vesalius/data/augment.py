"""Random changes of training images: one affine map for pixels and masks, then grey levels."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field

from vesalius.config import Settings
from vesalius.masks import Size
from vesalius.types import Item

Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(ge=0, lt=1)]
Amount = Annotated[float, Field(ge=0)]


class AugmentSettings(Settings):
    """How much may change; everything is off by default. Ranges are drawn from evenly."""

    flip: Share = 0.0
    """Probability of mirroring left and right; keep 0 where phrases name a side."""
    flip_vertical: Share = 0.0
    """Probability of mirroring top and bottom."""
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest turn about the centre, either way."""
    scale: Part = 0.0
    """Largest change of size: 0.2 draws from 0.8 to 1.2."""
    shift: Share = 0.0
    """Largest shift, as a share of the side, each axis by itself."""
    gamma: Amount = 0.0
    """Largest change of the logarithm of gamma: 0.3 draws gamma from 0.74 to 1.35."""
    contrast: Part = 0.0
    """Largest change of contrast about the mean grey level: 0.2 draws from 0.8 to 1.2."""
    noise: Amount = 0.0
    """Largest standard deviation of Gaussian noise, in grey levels of 255."""
    invert: Share = 0.0
    """Probability of exchanging bright and dark."""


def augment(item: Item, settings: AugmentSettings, rng: np.random.Generator) -> Item:
    """The item after random changes; sizes, prompts and the number of frames stay. All frames change alike.

    The image continues beyond its border with its edge pixels (a black border would look like a collimator,
    and a mirrored one would show objects that no mask has); masks are False there. Both are resampled
    bilinearly; a mask is true where at least half is covered.
    """
    # all numbers are drawn whatever is switched on, so that one setting does not change what another draws
    draw = dict(zip(AugmentSettings.model_fields, rng.random(len(AugmentSettings.model_fields)), strict=True))
    shift_y = rng.random()
    noise_seed = int(rng.integers(2**63))
    inverse = _inverse_affine(settings, draw, shift_y, item.size)
    frames, masks = item.frames, item.masks
    if not np.array_equal(inverse, np.eye(3)):
        frames = np.stack([_warp_frame(frame, inverse) for frame in frames])
        if masks is not None:
            masks = np.stack([_warp_mask(each, inverse) for mask in masks for each in mask]).reshape(
                masks.shape
            )
    frames = _change_grey(frames, settings, draw)
    if settings.noise:
        frames = _add_noise(frames, settings.noise * draw["noise"], noise_seed)
    return Item(item.id, frames, item.prompts, masks)


def _spread(share: float, limit: float) -> float:
    """-limit to limit for a share of 0 to 1."""
    return (2 * share - 1) * limit


def _inverse_affine(
    settings: AugmentSettings, draw: dict[str, float], shift_y: float, size: Size
) -> np.ndarray:
    """(3, 3): a point (x, y, 1) of the result to the point of the original that is shown there."""
    height, width = size
    angle = math.radians(_spread(draw["rotate_degrees"], settings.rotate_degrees))
    scale = 1 + _spread(draw["scale"], settings.scale)
    mirror_x = -1.0 if draw["flip"] < settings.flip else 1.0
    mirror_y = -1.0 if draw["flip_vertical"] < settings.flip_vertical else 1.0
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    centre = np.array([width / 2, height / 2])
    shift = np.array(
        [_spread(draw["shift"], settings.shift) * width, _spread(shift_y, settings.shift) * height]
    )
    matrix = np.eye(3)
    matrix[:2, :2] = np.diag([mirror_x, mirror_y]) @ np.array([[cos, sin], [-sin, cos]])
    matrix[:2, 2] = centre - matrix[:2, :2] @ (centre + shift)
    return matrix


def _warp_frame(frame: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    # the corners of the result reach furthest out; Pillow itself would fill what lies outside with black
    corners = inverse @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    over_x = max(-corners[0].min(), corners[0].max() - width, 0)
    over_y = max(-corners[1].min(), corners[1].max() - height, 0)
    x, y = math.ceil(over_x) + 1, math.ceil(over_y) + 1
    padded = inverse.copy()
    padded[:2, 2] += x, y
    source = Image.fromarray(np.pad(frame, ((y, y), (x, x), (0, 0)), mode="edge"))
    return _warp(source, padded, (height, width))


def _warp_mask(mask: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    if not mask.any():
        return mask
    return _warp(Image.fromarray(mask.astype(np.uint8) * 255), inverse, (mask.shape[0], mask.shape[1])) > 127


def _warp(source: Image.Image, inverse: np.ndarray, size: Size) -> np.ndarray:
    coefficients = inverse[:2].ravel().tolist()
    moved = source.transform(
        (size[1], size[0]), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    return np.array(moved)


def _change_grey(frames: np.ndarray, settings: AugmentSettings, draw: dict[str, float]) -> np.ndarray:
    """Gamma, then contrast, then inversion, as one table of 256 grey levels for all channels."""
    gamma = math.exp(_spread(draw["gamma"], settings.gamma))
    contrast = 1 + _spread(draw["contrast"], settings.contrast)
    inverted = draw["invert"] < settings.invert
    if gamma == 1 and contrast == 1 and not inverted:
        return frames
    table = 255 * (np.arange(256) / 255) ** gamma
    mean = float(np.bincount(frames.ravel(), minlength=256) @ table) / frames.size
    table = (table - mean) * contrast + mean
    table = 255 - table if inverted else table
    return np.clip(np.rint(table), 0, 255).astype(np.uint8)[frames]


def _add_noise(frames: np.ndarray, deviation: float, seed: int) -> np.ndarray:
    """The same noise in all three channels, as in grey images, and other noise in each frame."""
    noise = np.random.default_rng(seed).standard_normal((*frames.shape[:3], 1), dtype=np.float32)
    noise *= np.float32(deviation)
    # int16: three times as fast as adding in float32, and the pixels are whole numbers anyway
    steps = np.clip(np.rint(noise), -255, 255).astype(np.int16)
    return np.clip(frames + steps, 0, 255).astype(np.uint8)
