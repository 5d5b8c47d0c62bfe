"""Synthetic coronary angiograms with exact masks: X-ray physics over the geometry of `phantom`.

Every tube has one geometry, from which both its shadow (Beer-Lambert) and its mask come. Vessels are dark on
a brighter background. Contrast, noise and background were set beside real angiograms; none is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.ndimage import gaussian_filter

from vesalius.data.phantom import REFERENCE_SIZE, Tube, bend_catheter, chords, grow_tree, scatter_lines
from vesalius.data.writers import sa2va_json
from vesalius.errors import OutputError, SettingError
from vesalius.files import replacing
from vesalius.masks import encode_rle
from vesalius.types import Item, RleMask, Sample

PROMPTS = ("blood vessel", "catheter")
SMALLEST_SIZE = 64


def draw(seed: int, index: int, size: int = REFERENCE_SIZE) -> Item:
    """Synthetic angiogram number `index` of a series: a grey frame, masks of the vessels and of the catheter.

    The same arguments give the same bytes. Twigs and vessels elsewhere are drawn but, as in real annotations,
    are not in the mask; nor is what the collimator hides. Raises SettingError for a size below 64.
    """
    if seed < 0:
        raise SettingError(f"seed {seed} is negative; give 0 or more")
    if size < SMALLEST_SIZE:
        raise SettingError(f"size {size} is too small; at least {SMALLEST_SIZE} pixels are needed")
    rng = np.random.default_rng([seed, index])
    pixel = REFERENCE_SIZE / size
    vessels, twigs = grow_tree(rng, size)
    vessel_chords = chords(vessels, size)
    # of three catheters the one that runs least over the vessels: it should meet them at the ostium only
    catheters = [bend_catheter(rng, vessels[0], size) for _ in range(3)]
    catheter = min(catheters, key=lambda tube: _points_over(tube, vessel_chords))
    catheter_chords = chords([catheter], size)

    vessel_mu = rng.uniform(0.018, 0.04) * pixel
    attenuation = _background(rng, size)
    attenuation += vessel_mu * vessel_chords
    attenuation += vessel_mu * rng.uniform(0.4, 1.0) * chords(twigs, size)
    attenuation += _catheter_attenuation(rng, catheter, catheter_chords, vessel_mu)
    attenuation += _distractors(rng, vessels[0], size)
    opening = _collimator(rng, size)
    frame = _expose(rng, attenuation, opening)

    masks = np.stack([vessel_chords > 0, catheter_chords > 0]) & (opening > 0.5)
    return Item(f"synth_{index:05d}", np.repeat(frame[None, :, :, None], 3, axis=3), PROMPTS, masks[:, None])


def write_data_set(
    out: Path,
    n: int,
    seed: int = 0,
    size: int = REFERENCE_SIZE,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Write `out/images/synth_00000.png ...` and `out/annotations.json`; the folder appears as a whole.

    `on_progress` gets the number of frames written so far. Raises SettingError for n < 1, a negative seed or a size below 64,
    OutputError where `out` exists and is not an empty folder.
    """
    if n < 1:
        raise SettingError(f"n {n} is too small; at least 1 frame is needed")
    if size < SMALLEST_SIZE:
        raise SettingError(f"size {size} is too small; at least {SMALLEST_SIZE} pixels are needed")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise OutputError(f"{out}: exists and is not empty; name another folder, or remove this one first")
    with replacing(out) as folder:
        (folder / "images").mkdir(parents=True)
        samples = []
        for index in range(n):
            samples.append(_write_frame(draw(seed, index, size), folder, group=f"tree_{index:05d}"))
            if on_progress is not None:
                on_progress(index + 1)
        sa2va_json.write(folder / "annotations.json", samples)


def _write_frame(item: Item, folder: Path, group: str) -> Sample:
    assert item.masks is not None
    path = folder / "images" / f"{item.id}.png"
    Image.fromarray(item.frames[0, :, :, 0]).save(path, compress_level=1)
    masks = tuple((RleMask(encode_rle(mask[0])),) for mask in item.masks)
    return Sample(item.id, path, item.prompts, masks, group=group, size=item.size)


def _background(rng: np.random.Generator, size: int) -> Float[np.ndarray, "h w"]:
    """Attenuation of the chest without contrast medium, float32, about 0 to 1.5."""
    # half the resolution is enough: nothing here is sharper than two pixels
    half = max(32, size // 2)
    y, x = (np.mgrid[:half, :half].astype(np.float32) + 0.5) / half
    field = rng.uniform(0.05, 0.2) * _smooth_noise(rng, 2, half)
    for cells, strength in ((5, 0.04), (11, 0.018), (23, 0.018), (50, 0.018), (110, 0.02)):
        field += rng.uniform(0.2, 1.0) * strength * _smooth_noise(rng, cells, half)
    # markings of lung and bone: lines, not clouds
    for cells, strength in ((9, 0.09), (20, 0.08), (44, 0.08)):
        ridges = np.exp(-((_smooth_noise(rng, cells, half) / 0.16) ** 2))
        patches = np.clip(_smooth_noise(rng, 4, half) + 0.4, 0, 1)
        field += rng.uniform(0, 1) ** 2 * strength * ridges * patches
    for _ in range(rng.integers(1, 6)):  # diaphragm, border of the heart, mediastinum
        field += rng.uniform(0.05, 0.38) * _soft_step(rng, x, y)
    if rng.random() < 0.6:
        field += _spine(rng, x, y)
    if rng.random() < 0.7:
        field += _ribs(rng, x, y)
    if rng.random() < 0.6:  # air in the lung: brighter mottle on the bright side
        lung = np.clip(-_smooth_noise(rng, 4, half) - 0.2, 0, 1)
        mottle = _smooth_noise(rng, 18, half) + 0.8 * _smooth_noise(rng, 40, half)
        field -= lung * (0.15 + rng.uniform(0.02, 0.08) * mottle)
    return np.asarray(Image.fromarray(field).resize((size, size), Image.Resampling.BICUBIC)).copy()


def _smooth_noise(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Normal noise on a grid of cells x cells, enlarged smoothly to size x size, float32."""
    grid = rng.standard_normal((cells + 2, cells + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))


def _soft_step(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """1 on one side of a curved border and 0 on the other."""
    angle = rng.choice([np.pi / 2, rng.uniform(0, 2 * np.pi)]) + rng.normal(0, 0.25)
    across = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
    along = (y - 0.5) * np.cos(angle) - (x - 0.5) * np.sin(angle)
    curve = (
        rng.uniform(-0.2, 0.35)
        + rng.uniform(-0.6, 1.2) * along**2
        + 0.02 * np.sin(along * rng.uniform(6, 16))
    )
    return _rise((across - curve) / rng.choice([0.006, 0.015, 0.05]))


def _rise(value: np.ndarray) -> np.ndarray:
    """Smooth step from 0 to 1 around 0."""
    return 0.5 + 0.5 * value / np.sqrt(1 + value * value)


def _spine(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A vertical band with darker plates at the ends of the vertebrae."""
    across = x - rng.uniform(0.15, 0.95) - rng.normal(0, 0.12) * (y - 0.5)
    width = rng.uniform(0.08, 0.16)
    band = _rise((across + width) / 0.012) - _rise((across - width) / 0.012)
    wave = np.sin(2 * np.pi * (y * rng.uniform(3, 5.5) + rng.uniform()) + across * rng.normal(0, 2))
    plates = np.exp(-((np.abs(wave) / 0.22) ** 2)) * 0.1
    rim = np.exp(-(((np.abs(across) - width) / 0.012) ** 2)) * 0.1
    return rng.uniform(0.3, 1.0) * band * (0.22 + plates + rim)


def _ribs(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Oblique parallel bands, darker at their rims."""
    slope, bow = rng.normal(0, 0.5), rng.normal(0, 0.6)
    place = (y + slope * x + bow * (x - 0.5) ** 2) * rng.uniform(2.2, 5) + rng.uniform()
    wave = np.sin(2 * np.pi * place)
    band = _rise((wave - rng.uniform(0, 0.5)) / 0.25)
    return rng.uniform(0.02, 0.09) * (band + 1.5 * band * (1 - band))


def _points_over(tube: Tube, vessel_chords: np.ndarray) -> int:
    """How many points of the tube's centre line lie on a vessel."""
    x, y = np.clip(np.floor(tube.points).astype(int), 0, len(vessel_chords) - 1).T
    return int((vessel_chords[y, x] > 0).sum())


def _catheter_attenuation(
    rng: np.random.Generator, catheter: Tube, catheter_chords: np.ndarray, vessel_mu: float
) -> np.ndarray:
    """Filled with contrast medium like the vessels, or a wall around a clearer lumen."""
    size = len(catheter_chords)
    if rng.random() < 0.6:
        return vessel_mu * rng.uniform(0.7, 1.3) * catheter_chords
    lumen = chords([replace(catheter, radii=catheter.radii * rng.uniform(0.5, 0.72))], size)
    return rng.uniform(0.03, 0.06) * REFERENCE_SIZE / size * (catheter_chords - lumen * rng.uniform(0.6, 1.0))


def _distractors(rng: np.random.Generator, trunk: Tube, size: int) -> np.ndarray:
    """What looks a little like a vessel and is none: lung vessels, wires, contrast medium in the aorta."""
    pixel = REFERENCE_SIZE / size
    total = np.zeros((size, size), dtype=np.float32)
    if rng.random() < 0.6:
        lines = scatter_lines(rng, int(rng.integers(2, 9)), (0.8, 3.5), 0.12, size)
        total += gaussian_filter(chords(lines, size), 1.2 / pixel) * rng.uniform(0.002, 0.012) * pixel
    if rng.random() < 0.2:
        wires = scatter_lines(rng, int(rng.integers(1, 5)), (0.6, 1.6), 0.03, size)
        total += chords(wires, size) * rng.uniform(0.01, 0.05) * pixel
    if rng.random() < 0.3:
        y, x = np.mgrid[:size, :size].astype(np.float32) + 0.5
        centre = trunk.points[0] + rng.normal(0, 12 / pixel, 2)
        distance = np.hypot((x - centre[0]) * rng.uniform(0.6, 1.4), y - centre[1]) * pixel
        total += rng.uniform(0.05, 0.3) * _rise((rng.uniform(10, 24) - distance) / 5)
    return total


def _collimator(rng: np.random.Generator, size: int) -> np.ndarray:
    """Share of the beam that passes: about 1, below 0.5 behind the dark borders that many frames have."""
    y, x = (np.ogrid[:size, :size][axis].astype(np.float32) + 0.5 for axis in (0, 1))
    opening = np.ones((size, size), dtype=np.float32)
    if rng.random() < 0.35:
        return opening
    scale = size / REFERENCE_SIZE
    width_px = 20 if rng.random() < 0.2 else 5
    softness_px = rng.choice([0.4, 1.0, 3.0])
    glow, reach_px = rng.uniform(0, 0.5), rng.uniform(4, 25)
    for distance in (x, size - x, y, size - y):
        if rng.random() < 0.75:
            depth = (distance / scale - rng.exponential(width_px)).astype(np.float32)
            # the border shines a little inwards, as after the equalisation of a real work station
            opening *= _rise(depth / softness_px) * (1 + glow * np.exp(-np.abs(depth) / reach_px))
    return opening


def _expose(
    rng: np.random.Generator, attenuation: np.ndarray, opening: np.ndarray
) -> UInt8[np.ndarray, "h w"]:
    """The detector's picture: blur of the focal spot, photons counted, then the grey values of a screen."""
    size = len(attenuation)
    beam = np.exp(-gaussian_filter(attenuation, rng.uniform(0.4, 1.1) * size / REFERENCE_SIZE))
    beam /= beam.mean()
    photons = np.exp(rng.uniform(np.log(550), np.log(2200)))
    counts = rng.poisson(beam * opening * photons).astype(np.float32) / np.float32(photons)
    counts = gaussian_filter(counts, rng.uniform(0.35, 0.65))
    if rng.random() < 0.75:  # edge enhancement
        counts += rng.uniform(0.2, 1.1) * (counts - gaussian_filter(counts, rng.uniform(1.5, 5)))
    signal = np.clip(counts, 1e-3, None) ** rng.uniform(0.7, 1.5)
    inside = signal[opening > 0.5]
    low, middle, high = np.percentile(inside[:: max(1, len(inside) // 20000)], [1, 50, 99])
    brightness = rng.uniform(80, 155)
    # the window of a work station: neither drowned in noise nor black where there are vessels
    limits = (2.0 * brightness / middle, 0.95 * brightness / max(middle - low, 1e-3))
    gain = min(rng.uniform(75, 165) / (high - low), *limits)
    grey = ((signal - middle) * gain + brightness) * opening
    return np.clip(np.round(grey), 0, 255).astype(np.uint8)
