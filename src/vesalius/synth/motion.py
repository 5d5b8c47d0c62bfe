"""What changes from frame to frame: the beat of the heart, the breath, and contrast medium on its way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vesalius.synth.heart import Tree
from vesalius.synth.tubes import Tube

FRAMES_PER_S = 15.0

VISIBLE_SHARE = 0.25
"""Contrast medium of which share of the full concentration makes a lumen visible, and part of the masks."""


@dataclass(frozen=True)
class Motion:
    """Movements of the heart, the same at all its points but for scale: branches stay on their parents."""

    center: Float[np.ndarray, " 2"]
    """(x, y) of the heart's center in pixels."""
    beat_s: float
    beat_phase: float
    """Share of a beat that has passed at frame 0."""
    squeeze: Float[np.ndarray, "2 2"]
    """What a whole contraction does to the way from the center to a point."""
    sink: Float[np.ndarray, " 2"]
    """(x, y) in pixels by which a whole contraction moves the center."""
    breath_s: float
    breath_phase: float
    breath: Float[np.ndarray, " 2"]
    """(x, y) in pixels between the middle of a breath and its end."""

    def contraction(self, frame: int) -> float:
        """0 at rest, 1 at the end of systole, which takes a third of a beat."""
        phase = (frame / FRAMES_PER_S / self.beat_s + self.beat_phase) % 1.0
        if phase > 0.65:
            return 0.0
        return float(np.sin(np.pi / 2 * (phase / 0.35 if phase < 0.35 else (0.65 - phase) / 0.3)) ** 2)

    def breath_at(self, frame: int) -> Float[np.ndarray, " 2"]:
        """(x, y) in pixels by which the breath has moved what it moves."""
        seconds = frame / FRAMES_PER_S
        share: np.ndarray = self.breath * np.sin(2 * np.pi * (seconds / self.breath_s + self.breath_phase))
        return share

    def moved(self, points: Float[np.ndarray, "k 2"], frame: int) -> Float[np.ndarray, "k 2"]:
        """Where points of the heart are in a frame."""
        beat = self.contraction(frame)
        matrix = (1 - beat) * np.eye(2) + beat * self.squeeze
        place: np.ndarray = (points - self.center) @ matrix.T + self.center + beat * self.sink
        return place + self.breath_at(frame)

    def carried(self, catheter: Tube, frame: int) -> Tube:
        """The catheter: its tip moves with the heart, its other end not at all."""
        along = np.linspace(0, 1, len(catheter.points))[:, None] ** 2
        way = self.moved(catheter.points[-1:], frame) - catheter.points[-1:]
        return Tube(catheter.points + along * way, catheter.radii)


@dataclass(frozen=True)
class Bolus:
    """Contrast medium that runs down a tree and is washed out. Times are frames, ways are pixels from the ostium."""

    arrives: float
    """When it is at the ostium."""
    px_per_frame: float
    rise: float
    """Frames in which the concentration rises from none to all."""
    leaves: float
    """When clear blood follows at the ostium."""
    fall: float

    def concentration(self, path_px: Float[np.ndarray, " k"], frame: int) -> Float[np.ndarray, " k"]:
        """Share of the full concentration at points that far from the ostium, in [0, 1]."""
        seen = frame - path_px / self.px_per_frame
        share: np.ndarray = _ramp((seen - self.arrives) / self.rise) * (
            1 - _ramp((seen - self.leaves) / self.fall)
        )
        return share


def _ramp(value: np.ndarray) -> np.ndarray:
    """0 up to 0, 1 from 1 on, smooth between."""
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


def choose_motion(rng: np.random.Generator, tree: Tree) -> Motion:
    """A heart rate of 55 to 100, and a breath that every other patient holds."""
    scale = tree.view.scale
    angle, twist = rng.uniform(0, np.pi), np.radians(rng.normal(0, 2.5))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    rotation = np.array([[np.cos(twist), -np.sin(twist)], [np.sin(twist), np.cos(twist)]])
    squeeze = rotation @ turn @ np.diag(1 - rng.uniform(0.03, 0.11, 2)) @ turn.T
    depth = rng.uniform(3, 12) if rng.random() < 0.5 else rng.uniform(0, 0.6)
    return Motion(
        center=tree.view.origin,
        beat_s=60 / rng.uniform(55, 100),
        beat_phase=rng.uniform(),
        squeeze=squeeze,
        sink=rng.normal(0, 3, 2) * scale,
        breath_s=rng.uniform(3, 5),
        breath_phase=rng.uniform(),
        breath=np.array([rng.normal(0, 0.15), 1.0]) * depth * scale,
    )


def choose_bolus(rng: np.random.Generator, tree: Tree, frames: int) -> Bolus:
    """Contrast medium that comes, fills the tree and begins to leave within a clip of so many frames.

    Times are shares of the clip, so that a short one shows all of it too; frame 0 is before its arrival.
    """
    farthest = max(float(vessel.path_px[-1]) for vessel in (*tree.vessels, *tree.twigs))
    return Bolus(
        arrives=rng.uniform(0.05, 0.2) * frames,
        px_per_frame=farthest / (rng.uniform(0.15, 0.35) * frames),
        rise=0.06 * frames,
        leaves=rng.uniform(0.65, 0.9) * frames,
        fall=rng.uniform(0.2, 0.4) * frames,
    )
