"""Write `distances.json`: pairs of masks, and their distances by surface-distance and panoptica.

    python3 -m venv elsewhere
    elsewhere/bin/pip install surface-distance==0.1 panoptica==2.1.7
    elsewhere/bin/python tests/golden/make_distances.py

It needs a separate environment, because these packages require an older numpy than Vesalius.
"""

from __future__ import annotations

import base64
import json
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import surface_distance
from panoptica.metrics import Metric
from scipy.ndimage import gaussian_filter

SIDE = 96
TOLERANCES = (1.0, 2.0)


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def vessels(rng: np.random.Generator) -> np.ndarray:
    """Three winding lines of 1 to 9 pixels width across the image."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    for _ in range(3):
        middle = rng.uniform(15, 80) + 12 * np.sin(rng.uniform(0.03, 0.1) * np.arange(SIDE) + rng.uniform(0, 6))
        across = np.abs(rows - middle[columns]) <= np.linspace(*rng.uniform(0.5, 4.5, 2), SIDE)[columns]
        mask |= across.T if rng.random() < 0.5 else across
    return mask


def disturbed(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mask moved by up to 3 pixels, with gaps and a false blob."""
    moved = np.roll(mask, rng.integers(-3, 4, 2), axis=(0, 1))
    gaps = gaussian_filter(rng.random(mask.shape), 3) > 0.53
    blobs = gaussian_filter(rng.random(mask.shape), 3) > 0.585
    return (moved & ~gaps) | blobs


def pairs() -> list[tuple[np.ndarray, np.ndarray, tuple[float, float]]]:
    rng = np.random.default_rng(0)
    made = [
        (square(10, 10, 20), square(10, 15, 20), (1.0, 1.0)),
        (square(10, 10, 20), square(40, 50, 5), (1.0, 1.0)),
        (square(0, 0, 30), square(5, 0, 30), (2.0, 1.0)),
    ]
    for spacing in [(1.0, 1.0)] * 5 + [(0.3, 0.3)] * 2 + [(0.5, 0.25)] * 2:
        target = vessels(rng)
        made.append((target, disturbed(target, rng), spacing))
    return made


def packed(mask: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.packbits(mask).tobytes(), 9)).decode("ascii")


def measured(target: np.ndarray, prediction: np.ndarray, spacing: tuple[float, float]) -> dict[str, Any]:
    distances = surface_distance.compute_surface_distances(target, prediction, spacing)
    arguments = {"voxelspacing": spacing}
    return {
        "size": target.shape,
        "spacing": spacing,
        "target": packed(target),
        "prediction": packed(prediction),
        "surface_distance": {
            "hd": surface_distance.compute_robust_hausdorff(distances, 100),
            "hd95": surface_distance.compute_robust_hausdorff(distances, 95),
            "asd": surface_distance.compute_average_surface_distance(distances),
            "nsd": [
                surface_distance.compute_surface_dice_at_tolerance(distances, tolerance) for tolerance in TOLERANCES
            ],
        },
        "panoptica": {
            "hd": Metric.HD(target, prediction, **arguments),
            "hd95": Metric.HD95(target, prediction, **arguments),
            "assd": Metric.ASSD(target, prediction, **arguments),
            "nsd": [Metric.NSD(target, prediction, threshold=tolerance, **arguments) for tolerance in TOLERANCES],
            "cldice": Metric.clDSC(target, prediction) if (target & prediction).any() else None,
        },
    }


def main() -> None:
    """Write distances.json into the folder of this script."""
    golden = {
        "versions": {name: version(name) for name in ("surface-distance", "panoptica", "numpy", "scipy")},
        "tolerances": TOLERANCES,
        "pairs": [measured(*pair) for pair in pairs()],
    }
    text = json.dumps(golden, indent=1, default=float)
    (Path(__file__).parent / "distances.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
