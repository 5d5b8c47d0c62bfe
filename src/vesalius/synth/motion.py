"""Motion between frames: heartbeat, respiration, and inflow of contrast agent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vesalius.synth.heart import Tree
from vesalius.synth.tubes import Tube

FRAMES_PER_S = 15.0

VISIBLE_CONCENTRATION = 0.25
"""Minimum relative contrast agent concentration of a lumen that counts as visible and is in the masks."""


@dataclass(frozen=True)
class Motion:
    """Motion of the heart by heartbeat and respiration; affine, so that branches stay attached to their parents."""

    center: Float[np.ndarray, " 2"]
    """(x, y) of the heart's center in pixels."""
    beat_s: float
    """Period of the heartbeat in seconds."""
    beat_phase: float
    """Phase of the heartbeat at frame 0, in [0, 1]."""
    squeeze: Float[np.ndarray, "2 2"]
    """Linear map at full contraction, applied to vectors from the center."""
    sink: Float[np.ndarray, " 2"]
    """(x, y) displacement of the heart at full contraction, in pixels."""
    breath_s: float
    breath_phase: float
    breath: Float[np.ndarray, " 2"]
    """(x, y) amplitude of respiration in pixels."""

    def contraction(self, frame: int) -> float:
        """Contraction in [0, 1]: 0 at rest, 1 at the end of systole, after a third of a beat."""
        phase = (frame / FRAMES_PER_S / self.beat_s + self.beat_phase) % 1.0
        if phase > 0.65:
            return 0.0
        return float(np.sin(np.pi / 2 * (phase / 0.35 if phase < 0.35 else (0.65 - phase) / 0.3)) ** 2)

    def breath_at(self, frame: int) -> Float[np.ndarray, " 2"]:
        """(x, y) displacement by respiration in pixels."""
        phase = frame / FRAMES_PER_S / self.breath_s + self.breath_phase
        return np.asarray(self.breath * np.sin(2 * np.pi * phase))

    def moved(self, points: Float[np.ndarray, "k 2"], frame: int) -> Float[np.ndarray, "k 2"]:
        """The points of the heart (x, y) at their positions in a frame."""
        beat = self.contraction(frame)
        matrix = (1 - beat) * np.eye(2) + beat * self.squeeze
        moved = (points - self.center) @ matrix.T + self.center + beat * self.sink
        return np.asarray(moved + self.breath_at(frame))

    def carried(self, catheter: Tube, frame: int) -> Tube:
        """The catheter in a frame: its tip moves with the heart, the other end is fixed."""
        along = np.linspace(0, 1, len(catheter.points))[:, None] ** 2
        shift = self.moved(catheter.points[-1:], frame) - catheter.points[-1:]
        return Tube(catheter.points + along * shift, catheter.radii)


@dataclass(frozen=True)
class Bolus:
    """Inflow and washout of contrast agent in a tree. Times are in frames, path lengths in pixels."""

    arrives: float
    """Arrival time at the ostium."""
    px_per_frame: float
    rise: float
    """Duration of the rise from no to full concentration at one point."""
    leaves: float
    """Start of the washout at the ostium."""
    fall: float
    """Duration of the washout at one point."""

    def concentration(self, path_px: Float[np.ndarray, " k"], frame: int) -> Float[np.ndarray, " k"]:
        """Relative concentration in [0, 1] at the path lengths `path_px` from the ostium."""
        seen = frame - path_px / self.px_per_frame
        washed_out = _ramp((seen - self.leaves) / self.fall)
        return np.asarray(_ramp((seen - self.arrives) / self.rise) * (1 - washed_out))


def _ramp(value: np.ndarray) -> np.ndarray:
    """Smoothstep: 0 for values up to 0, 1 for values from 1."""
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


def choose_motion(rng: np.random.Generator, tree: Tree) -> Motion:
    """Random motion with 55 to 100 beats per minute; half of the patients hold their breath."""
    scale = tree.projection.scale
    angle, twist = rng.uniform(0, np.pi), np.radians(rng.normal(0, 2.5))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    rotation = np.array([[np.cos(twist), -np.sin(twist)], [np.sin(twist), np.cos(twist)]])
    squeeze = rotation @ turn @ np.diag(1 - rng.uniform(0.03, 0.11, 2)) @ turn.T
    depth = rng.uniform(3, 12) if rng.random() < 0.5 else rng.uniform(0, 0.6)
    return Motion(
        center=tree.projection.origin,
        beat_s=60 / rng.uniform(55, 100),
        beat_phase=rng.uniform(),
        squeeze=squeeze,
        sink=rng.normal(0, 3, 2) * scale,
        breath_s=rng.uniform(3, 5),
        breath_phase=rng.uniform(),
        breath=np.array([rng.normal(0, 0.15), 1.0]) * depth * scale,
    )


def choose_bolus(rng: np.random.Generator, tree: Tree, frames: int) -> Bolus:
    """A random bolus that arrives, fills the tree and starts to wash out within a clip of `frames` frames.

    Times scale with the length of the clip, so short clips show all phases. The bolus arrives after frame 0.
    """
    farthest = max(float(vessel.path_px[-1]) for vessel in (*tree.vessels, *tree.twigs))
    return Bolus(
        arrives=rng.uniform(0.05, 0.2) * frames,
        px_per_frame=farthest / (rng.uniform(0.15, 0.35) * frames),
        rise=0.06 * frames,
        leaves=rng.uniform(0.65, 0.9) * frames,
        fall=rng.uniform(0.2, 0.4) * frames,
    )
