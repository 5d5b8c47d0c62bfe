"""Synthetic coronary angiograms, as stills or clips: X-ray projections of tubes.

The attenuation of a tube (Beer-Lambert law) and its mask come from the same geometry. Vessels are dark on a brighter
background.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vesalius.synth.chest import Chest, build_chest, close_collimator, puff
from vesalius.synth.devices import CatheterLook, bend_catheter, choose_look, thread_wire
from vesalius.synth.exposure import Detector, choose_detector, expose
from vesalius.synth.heart import Tree, grow_tree
from vesalius.synth.motion import VISIBLE_CONCENTRATION, Bolus, Motion, choose_bolus, choose_motion
from vesalius.synth.picture import Picture, find_visible
from vesalius.synth.tubes import REFERENCE_SIZE, SAMPLE_STEP, Shadow, Tube, add_up, cast

PHRASES = ("blood vessel", "catheter")
"""Default phrases of a dataset, and of the included model `tiny`."""
ALL_PHRASES = (*PHRASES, "guide wire", "stenosis", "the widest vessel", "the vessel on the left")


@dataclass(frozen=True)
class Angiogram:
    """Geometry and appearance of an angiogram, shared by all frames of a clip."""

    tree: Tree
    vessel_mu: float
    """Attenuation of the vessels per pixel of path length, at full contrast agent concentration."""
    twig_ratio: float
    """Attenuation of twigs relative to `vessel_mu`."""
    catheter: Tube | None
    look: CatheterLook
    wire: Tube | None
    wire_attenuation: float
    """Attenuation along the central ray through the wire's tip."""
    chest: Chest
    puff: Float[np.ndarray, "h w"]
    """Attenuation of the contrast agent that flows back into the aorta."""
    opening: Float[np.ndarray, "h w"]
    """Transmission of the collimator, in [0, 1]."""
    detector: Detector
    motion: Motion | None = None
    """Heartbeat and respiration; None for a still."""
    bolus: Bolus | None = None
    """Inflow and washout of contrast agent; None for a still with filled vessels."""

    @property
    def size(self) -> int:
        """Side of a frame in pixels."""
        return self.tree.projection.size


def compose(
    rng: np.random.Generator, size: int, frames: int = 1, devices: np.random.Generator | None = None
) -> Angiogram:
    """A random angiogram: a still with filled vessels if `frames` is 1, else a clip with motion and contrast inflow.

    Without `devices`, it has one catheter and no guide wire. With this generator, one of six angiograms has neither, two
    of six have both, and three of six have only a catheter.
    """
    tree = grow_tree(rng, size)
    pixel = REFERENCE_SIZE / size
    catheter: Tube | None = bend_catheter(rng, tree)
    vessel_mu = rng.uniform(0.018, 0.04) * pixel
    chest = build_chest(rng, size)
    look = choose_look(rng, vessel_mu, size)
    twig_ratio = rng.uniform(0.4, 1.0)
    cloud = puff(rng, tree.vessels[0].tube, size)
    opening, detector = close_collimator(rng, size), choose_detector(rng)
    motion = choose_motion(rng, tree) if frames > 1 else None
    bolus = choose_bolus(rng, tree, frames) if frames > 1 else None
    wire, wire_attenuation = None, 0.0
    if devices is not None:
        wire, wire_attenuation = thread_wire(devices, tree), devices.uniform(0.2, 0.4)
        choice = devices.random()
        catheter, wire = (None, None) if choice < 1 / 6 else (catheter, wire if choice < 1 / 2 else None)
    return Angiogram(
        tree, vessel_mu, twig_ratio, catheter, look, wire, wire_attenuation, chest, cloud, opening, detector, motion, bolus
    )  # fmt: skip


def take(scene: Angiogram, noise: np.random.Generator, frame: int = 0) -> Picture:
    """One rendered frame of an angiogram, with quantum noise from the generator `noise`."""
    size, clear = scene.size, scene.opening > 0.5
    breath = (0.0, 0.0) if scene.motion is None else tuple(scene.motion.breath_at(frame).tolist())
    at_ostium = float(_filling(scene, np.zeros(1), frame)[0])
    attenuation = scene.chest.at(breath) + at_ostium * scene.puff
    objects: dict[str, np.ndarray] = {}
    visible = []
    for vessels, ratio in ((scene.tree.vessels, 1.0), (scene.tree.twigs, scene.twig_ratio)):
        tubes, shadows = [], []
        for vessel in vessels:
            tube = _moved(scene, vessel.tube, frame)
            filling = _filling(scene, vessel.path_px, frame)
            tubes.append(tube)
            shadows.append(_cast(tube, size, filling))
            if vessel.kind != "twig":
                visible.append(find_visible(vessel, tube, filling >= VISIBLE_CONCENTRATION, clear, shadows[-1]))
        attenuation += scene.vessel_mu * ratio * add_up(tubes, shadows, size)
    if scene.catheter is not None:
        catheter = scene.catheter if scene.motion is None else scene.motion.carried(scene.catheter, frame)
        whole = add_up([catheter], [cast(catheter, size)], size)
        attenuation += scene.look.attenuation(catheter, whole, at_ostium)
        objects["catheter"] = (whole > 0) & clear
    if scene.wire is not None:
        shadow = _cast_wire(scene, frame)
        attenuation[shadow.rows, shadow.columns] += shadow.chords
        objects["guide wire"] = np.zeros_like(clear)
        objects["guide wire"][shadow.rows, shadow.columns] = shadow.chords > 0
        objects["guide wire"] &= clear
    gray = expose(noise, scene.detector, attenuation, scene.opening)
    return Picture(np.repeat(gray[:, :, None], 3, axis=2), visible, clear, objects)


def _filling(scene: Angiogram, path_px: np.ndarray, frame: int) -> Float[np.ndarray, " k"]:
    """Relative contrast agent concentration at the path lengths `path_px` from the ostium, in pixels."""
    return np.ones(len(path_px)) if scene.bolus is None else scene.bolus.concentration(path_px, frame)


def _moved(scene: Angiogram, tube: Tube, frame: int) -> Tube:
    return tube if scene.motion is None else Tube(scene.motion.moved(tube.points, frame), tube.radii)


def _cast(tube: Tube, size: int, filling: np.ndarray) -> Shadow:
    return cast(tube, size, None if filling.min() == 1 else filling)


def _cast_wire(scene: Angiogram, frame: int) -> Shadow:
    """Attenuation of the guide wire; the platinum coil at its tip is the darkest part."""
    assert scene.wire is not None
    tube = _moved(scene, scene.wire, frame)
    from_end = SAMPLE_STEP * np.arange(len(tube.points))[::-1] * REFERENCE_SIZE / scene.size
    middle = scene.wire_attenuation / (2 * tube.radii)
    return cast(tube, scene.size, middle * np.where(from_end < 40, 1.0, 0.6))
