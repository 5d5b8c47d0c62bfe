"""Synthetic fundus photographs: a round field of view, a bright optic disc, a dark macula, and absorbing vessels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import gaussian_filter

from vesalius.synth.chest import enlarge, smooth_noise
from vesalius.synth.picture import Picture, find_visible
from vesalius.synth.retina import Eye, grow_eye
from vesalius.synth.tubes import REFERENCE_SIZE, Tube, add_up, cast

PHRASES = ("blood vessel", "optic disc")
"""Default phrases of a dataset of fundus photographs."""
ALL_PHRASES = (*PHRASES, "artery", "vein", "the widest vessel", "the vessel on the left")

ABSORPTION = {"vein": (0.075, 0.250, 0.210), "artery": (0.050, 0.190, 0.170)}
"""Absorption of blood (red, green, blue) per pixel of path length, at a disc diameter of 80 pixels."""
SCATTERED = 0.35
"""Fraction of the light that reaches the camera without passing through vessels."""
REFLEX = {"vein": 0.04, "artery": 0.14}
"""Strength of the central light reflex of thick vessels, per kind of vessel."""


def photograph(rng: np.random.Generator, size: int) -> tuple[Picture, Eye]:
    """A random fundus photograph of `size` x `size` pixels, and its geometry."""
    eye = grow_eye(rng, size)
    y, x = (np.ogrid[:size, :size][axis].astype(np.float32) + 0.5 for axis in (0, 1))
    beyond = np.hypot(x - float(eye.center[0]), y - float(eye.center[1])) - eye.field_px
    clear, whole = beyond < 0, np.ones(1, dtype=bool)
    light = _light_ground(rng, eye)
    disc = _light_disc(rng, eye, light, x, y)
    depth = np.zeros((3, size, size), dtype=np.float32)
    density, visible = rng.uniform(0.75, 1.3) * 80 / eye.disc_px, []
    for kind, absorption in ABSORPTION.items():
        vessels = [vessel for vessel in eye.vessels if vessel.kind == kind]
        tubes = [vessel.tube for vessel in vessels]
        shadows = [cast(tube, size) for tube in tubes]
        blood, reflex = add_up(tubes, shadows, size), REFLEX[kind] * _reflex(tubes, size)
        for channel, coefficient in enumerate(absorption):
            depth[channel] += density * coefficient * blood - reflex
        for vessel, tube, shadow in zip(vessels, tubes, shadows, strict=True):
            visible.append(find_visible(vessel, tube, whole.repeat(len(tube.points)), clear, shadow))
    pixels = _develop(rng, light * (SCATTERED + (1 - SCATTERED) * np.exp(-depth)), beyond)
    return Picture(pixels, visible, clear, {"optic disc": disc & clear}), eye


def _light_ground(rng: np.random.Generator, eye: Eye) -> Float[np.ndarray, "3 h w"]:
    """Light of the retina without vessels and disc: RGB relative to white, float32."""
    half = max(32, eye.size // 2)  # half the resolution is enough for smooth fields
    y, x = (np.ogrid[:half, :half][axis].astype(np.float32) + 0.5 for axis in (0, 1))
    (x0, y0), (x1, y1), (x2, y2) = ((point * half / eye.size).tolist() for point in (eye.center, eye.disc, eye.macula))
    field_px, disc_px = eye.field_px * half / eye.size, eye.disc_px * half / eye.size
    across, down = (x - x0) / field_px, (y - y0) / field_px
    lit = rng.uniform(0.9, 1.15) - rng.uniform(0.2, 0.6) * (across**2 + down**2)
    lit += rng.normal(0, 0.12) * across + rng.normal(0, 0.12) * down
    # the thick nerve fiber layer around the disc glows
    lit += rng.uniform(0, 0.6) * np.exp(((x - x1) ** 2 + (y - y1) ** 2) / (-1.5 * disc_px**2))
    mottle = np.zeros((half, half), dtype=np.float32)
    for cells, strength in ((5, 0.06), (14, 0.03), (50, 0.025)):
        mottle += rng.uniform(0.3, 1.2) * strength * smooth_noise(rng, cells, half)
    if rng.random() < 0.5:  # visible choroidal vessels
        ridges = np.exp(-((smooth_noise(rng, int(rng.integers(24, 40)), half) / 0.3) ** 2))
        mottle += rng.uniform(0.02, 0.07) * ridges * np.clip(smooth_noise(rng, 4, half) + 0.5, 0, 1)
    dark = rng.uniform(0.15, 0.4) * np.exp(((x - x2) ** 2 + (y - y2) ** 2) / (-rng.uniform(0.3, 0.9) * disc_px**2))
    color = (rng.uniform(0.62, 0.95), rng.uniform(0.2, 0.32), rng.uniform(0.03, 0.14))
    mottle_and_macula = ((0.7, 0.6), (1.0, 1.0), (1.0, 0.9))
    return np.stack([
        enlarge(lit * value * (1 + rough * mottle) * (1 - spot * dark), eye.size)
        for value, (rough, spot) in zip(color, mottle_and_macula, strict=True)
    ])  # fmt: skip


def _light_disc(
    rng: np.random.Generator, eye: Eye, light: np.ndarray, x: np.ndarray, y: np.ndarray
) -> Bool[np.ndarray, "h w"]:
    """Draw the optic disc into `light`, pink or yellow with a brighter cup; returns its elliptical mask."""
    long, angle = rng.uniform(1.0, 1.12), rng.normal(math.pi / 2, 0.3)
    across, down = x - float(eye.disc[0]), y - float(eye.disc[1])
    along = (across * math.cos(angle) + down * math.sin(angle)) / long
    aside = (down * math.cos(angle) - across * math.sin(angle)) * long
    inside = eye.disc_px / 2 - np.hypot(along, aside)
    opaque = _sigmoid(inside / (rng.uniform(0.015, 0.05) * eye.disc_px))
    aside_px = (eye.temporal * rng.uniform(0.02, 0.15) * eye.disc_px, rng.normal(0, 0.04) * eye.disc_px)
    away2 = (across - aside_px[0]) ** 2 + (down - aside_px[1]) ** 2
    cup = rng.uniform(0.4, 1.0) * np.exp(-((away2 / (rng.uniform(0.15, 0.3) * eye.disc_px) ** 2) ** 1.5))
    rim_color = (rng.uniform(0.95, 1.1), rng.uniform(0.42, 0.6), rng.uniform(0.16, 0.3))
    cup_color = (1.05, rng.uniform(0.7, 0.9), rng.uniform(0.35, 0.65))
    for channel, (rim, middle) in enumerate(zip(rim_color, cup_color, strict=True)):
        light[channel] += opaque * (rim + cup * (middle - rim) - light[channel])
    return inside > 0


def _reflex(tubes: list[Tube], size: int) -> Float[np.ndarray, "h w"]:
    """Central light reflex of vessels with a radius above 1.5 pixels, 0 to about 1."""
    thick = [tube for tube in tubes if tube.radii[0] > 1.5]
    cores = [replace(tube, radii=np.maximum(0.4 * tube.radii, 0.5)) for tube in thick]
    total = np.zeros((size, size), dtype=np.float32)
    for core in cores:
        shadow = cast(core, size)
        part = total[shadow.rows, shadow.columns]
        np.maximum(part, shadow.chords / (2 * core.radii[0]), out=part)
    return total


def _develop(
    rng: np.random.Generator, light: Float[np.ndarray, "3 h w"], beyond_px: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """The photograph after grain, blur, gain and gamma; black outside the field of view."""
    scale = light.shape[1] / REFERENCE_SIZE
    blur = rng.uniform(0.5, 0.9) * max(scale, 0.6)
    # grain before blur gives correlated noise, as in a real color camera
    grain = rng.standard_normal(light.shape, dtype=np.float32)
    seen = light + rng.uniform(0.02, 0.045) * blur * grain * (0.6 + light)
    seen = np.maximum(rng.uniform(0.85, 1.15) * gaussian_filter(seen, (0, blur, blur), truncate=2), 0)
    shown = seen ** rng.uniform(0.9, 1.15) * _sigmoid(-beyond_px / (0.8 * scale))
    return np.moveaxis(np.clip(np.rint(255 * shown), 0, 255).astype(np.uint8), 0, 2).copy()


def _sigmoid(value: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(value, -30, 30))))
