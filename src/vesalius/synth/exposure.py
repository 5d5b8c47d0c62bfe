"""X-ray detector: attenuation -> photon counts with Poisson noise -> gray values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import gaussian_filter

from vesalius.synth.tubes import REFERENCE_SIZE


@dataclass(frozen=True)
class Detector:
    """Exposure and display settings, the same for all frames of a clip."""

    focus: float
    """Focal spot blur (standard deviation) in pixels of a frame of 512 x 512."""
    photons: float
    """Mean photon count per pixel without collimator."""
    crosstalk: float
    """Detector blur (standard deviation) in pixels."""
    edge: tuple[float, float]
    """Unsharp masking: (strength, standard deviation of the blur in pixels)."""
    gamma: float
    brightness: float
    """Gray value of the median pixel."""
    window: float
    """Difference in gray values between the 1st and 99th percentile."""


def choose_detector(rng: np.random.Generator) -> Detector:
    """A detector with random dose, blur and display window."""
    return Detector(
        focus=rng.uniform(0.4, 1.1),
        photons=float(np.exp(rng.uniform(np.log(550), np.log(2200)))),
        crosstalk=rng.uniform(0.35, 0.65),
        edge=(rng.uniform(0.2, 1.1) if rng.random() < 0.75 else 0.0, rng.uniform(1.5, 5)),
        gamma=rng.uniform(0.7, 1.5),
        brightness=rng.uniform(80, 155),
        window=rng.uniform(75, 165),
    )


def expose(
    rng: np.random.Generator,
    detector: Detector,
    attenuation: Float[np.ndarray, "h w"],
    opening: Float[np.ndarray, "h w"],
) -> UInt8[np.ndarray, "h w"]:
    """The image of an attenuation map, with quantum noise from `rng`; `opening` is the collimator's transmission."""
    beam = np.exp(-gaussian_filter(attenuation, detector.focus * len(attenuation) / REFERENCE_SIZE))
    beam /= beam.mean()
    # for hundreds of photons, the Poisson distribution is close to a normal one with variance = mean
    photons = beam * opening * detector.photons
    photons += np.sqrt(photons) * rng.standard_normal(photons.shape, dtype=np.float32)
    counts = gaussian_filter(np.maximum(photons, 0) / detector.photons, detector.crosstalk)
    strength, blur = detector.edge
    if strength:
        counts += strength * (counts - gaussian_filter(counts, blur, truncate=3))
    signal = np.clip(counts, 1e-3, None) ** detector.gamma
    # automatic windowing per image, as on a workstation
    inside = signal[opening > 0.5]
    low, middle, high = np.percentile(inside[:: max(1, len(inside) // 20000)], [1, 50, 99])
    # these limits keep noise low and vessels from turning black
    limits = (2.0 * detector.brightness / middle, 0.95 * detector.brightness / max(middle - low, 1e-3))
    gain = min(detector.window / (high - low), *limits)
    gray = ((signal - middle) * gain + detector.brightness) * opening
    return np.clip(np.round(gray), 0, 255).astype(np.uint8)
