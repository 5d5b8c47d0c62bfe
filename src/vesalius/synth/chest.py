"""X-ray attenuation of the chest (the background of an angiogram), and the collimator at the edges of a frame.

No real image is used. Contrast, noise and line density were tuned by comparison with real angiograms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.ndimage import shift as move

from vesalius.synth.devices import scatter_lines
from vesalius.synth.tubes import REFERENCE_SIZE, Tube, chords


@dataclass(frozen=True)
class Chest:
    """Attenuation of the chest without vessels."""

    still: Float[np.ndarray, "h w"]
    """Static part: spine, ribs, lung vessels, wires on the skin."""
    moving: Float[np.ndarray, "g g"]
    """Part that moves with respiration (diaphragm, edge of the heart), at half the resolution."""

    def at(self, shift_px: tuple[float, float]) -> Float[np.ndarray, "h w"]:
        """Total attenuation, float32, about 0 to 1.5, with the moving part shifted by `shift_px` = (x, y)."""
        size = len(self.still)
        ratio = len(self.moving) / size
        x, y = (shift * ratio for shift in shift_px)
        moved = move(self.moving, (y, x), order=1, mode="nearest") if x or y else self.moving
        return self.still + enlarge(moved, size)


def build_chest(rng: np.random.Generator, size: int) -> Chest:
    """A chest with random tissue texture, diaphragm, spine, ribs, lung and wires."""
    # half the resolution is enough: no structure here is sharper than two pixels
    half = max(32, size // 2)
    y, x = (np.mgrid[:half, :half].astype(np.float32) + 0.5) / half
    field = rng.uniform(0.05, 0.2) * smooth_noise(rng, 2, half)
    for cells, strength in ((5, 0.04), (11, 0.018), (23, 0.018), (50, 0.018), (110, 0.02)):
        field += rng.uniform(0.2, 1.0) * strength * smooth_noise(rng, cells, half)
    # lung and bone markings are lines, unlike the noise above
    for cells, strength in ((9, 0.09), (20, 0.08), (44, 0.08)):
        ridges = np.exp(-((smooth_noise(rng, cells, half) / 0.16) ** 2))
        patches = np.clip(smooth_noise(rng, 4, half) + 0.4, 0, 1)
        field += rng.uniform(0, 1) ** 2 * strength * ridges * patches
    moving = np.zeros_like(field)
    for _ in range(rng.integers(1, 6)):  # diaphragm, edge of the heart, mediastinum
        moving += rng.uniform(0.05, 0.38) * _soft_step(rng, x, y)
    if rng.random() < 0.6:
        field += _spine(rng, x, y)
    if rng.random() < 0.7:
        field += _ribs(rng, x, y)
    if rng.random() < 0.6:  # air in the lung: bright mottle
        lung = np.clip(-smooth_noise(rng, 4, half) - 0.2, 0, 1)
        mottle = smooth_noise(rng, 18, half) + 0.8 * smooth_noise(rng, 40, half)
        field -= lung * (0.15 + rng.uniform(0.02, 0.08) * mottle)
    return Chest(enlarge(field, size) + _lines(rng, size), moving)


def enlarge(field: np.ndarray, size: int) -> np.ndarray:
    """The field resized to (size, size) by bicubic interpolation."""
    return np.asarray(Image.fromarray(field).resize((size, size), Image.Resampling.BICUBIC))


def _lines(rng: np.random.Generator, size: int) -> np.ndarray:
    """Attenuation of vessel-like lines: lung vessels and ECG wires."""
    pixel = REFERENCE_SIZE / size
    total = np.zeros((size, size), dtype=np.float32)
    if rng.random() < 0.6:
        lines = scatter_lines(rng, int(rng.integers(2, 9)), (0.8, 3.5), 0.12, size)
        total += gaussian_filter(chords(lines, size), 1.2 / pixel) * rng.uniform(0.002, 0.012) * pixel
    if rng.random() < 0.2:
        wires = scatter_lines(rng, int(rng.integers(1, 5)), (0.6, 1.6), 0.03, size)
        total += chords(wires, size) * rng.uniform(0.01, 0.05) * pixel
    return total


def puff(rng: np.random.Generator, trunk: Tube, size: int) -> Float[np.ndarray, "h w"]:
    """Attenuation of contrast agent that flows back into the aorta, float32; 0 in seven of ten images."""
    pixel = REFERENCE_SIZE / size
    if rng.random() >= 0.3:
        return np.zeros((size, size), dtype=np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32) + 0.5
    center = (trunk.points[0] + rng.normal(0, 12 / pixel, 2)).tolist()
    distance = np.hypot((x - center[0]) * rng.uniform(0.6, 1.4), y - center[1]) * pixel
    cloud = rng.uniform(0.05, 0.3) * _rise((rng.uniform(10, 24) - distance) / 5)
    return cloud.astype(np.float32)


def smooth_noise(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Gaussian noise on a grid of about `cells` x `cells`, interpolated to (size, size), float32."""
    grid = rng.standard_normal((cells + 2, cells + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))


def _soft_step(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A field that is 1 on one side of a random curve and 0 on the other, with a smooth transition."""
    angle = (np.pi / 2 if rng.random() < 0.5 else rng.uniform(0, 2 * np.pi)) + rng.normal(0, 0.25)
    cos, sin = math.cos(angle), math.sin(angle)
    across = (x - 0.5) * cos + (y - 0.5) * sin
    along = (y - 0.5) * cos - (x - 0.5) * sin
    curve = rng.uniform(-0.2, 0.35) + rng.uniform(-0.6, 1.2) * along**2 + 0.02 * np.sin(along * rng.uniform(6, 16))
    return _rise((across - curve) / float(rng.choice([0.006, 0.015, 0.05])))


def _rise(value: np.ndarray) -> np.ndarray:
    """Smooth step: 0 for large negative values, 0.5 at 0, 1 for large positive values."""
    return 0.5 + 0.5 * value / np.sqrt(1 + value * value)


def _spine(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Attenuation of the spine: a vertical band with dark vertebral endplates."""
    across = x - rng.uniform(0.15, 0.95) - rng.normal(0, 0.12) * (y - 0.5)
    width = rng.uniform(0.08, 0.16)
    band = _rise((across + width) / 0.012) - _rise((across - width) / 0.012)
    wave = np.sin(2 * np.pi * (y * rng.uniform(3, 5.5) + rng.uniform()) + across * rng.normal(0, 2))
    plates = np.exp(-((np.abs(wave) / 0.22) ** 2)) * 0.1
    rim = np.exp(-(((np.abs(across) - width) / 0.012) ** 2)) * 0.1
    return rng.uniform(0.3, 1.0) * band * (0.22 + plates + rim)


def _ribs(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Attenuation of the ribs: oblique parallel bands with dark rims."""
    slope, bow = rng.normal(0, 0.5), rng.normal(0, 0.6)
    phase = (y + slope * x + bow * (x - 0.5) ** 2) * rng.uniform(2.2, 5) + rng.uniform()
    wave = np.sin(2 * np.pi * phase)
    band = _rise((wave - rng.uniform(0, 0.5)) / 0.25)
    return rng.uniform(0.02, 0.09) * (band + 1.5 * band * (1 - band))


def close_collimator(rng: np.random.Generator, size: int) -> np.ndarray:
    """Transmission of the collimator, float32: about 1 in the opening, below 0.5 behind the blades."""
    y, x = (np.ogrid[:size, :size][axis].astype(np.float32) + 0.5 for axis in (0, 1))
    opening = np.ones((size, size), dtype=np.float32)
    if rng.random() < 0.35:
        return opening
    scale = size / REFERENCE_SIZE
    width_px = 20 if rng.random() < 0.2 else 5
    softness_px = float(rng.choice([0.4, 1.0, 3.0]))
    glow, reach_px = rng.uniform(0, 0.5), rng.uniform(4, 25)
    for distance in (x, size - x, y, size - y):
        if rng.random() < 0.75:
            depth = (distance / scale - rng.exponential(width_px)).astype(np.float32)
            # a slight glow along the blades, as from the equalization of a real workstation
            opening *= _rise(depth / softness_px) * (1 + glow * np.exp(-np.abs(depth) / reach_px))
    return opening
