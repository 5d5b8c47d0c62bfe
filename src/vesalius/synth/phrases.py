"""Definitions of the phrases: the mask of each phrase is derived from the visible objects of an image.

blood vessel            the visible part of all annotated vessels
artery, vein            all arteries, or all veins, of a fundus photograph
catheter, guide wire    the whole device in the frame; a guide wire counts from the catheter's tip on
optic disc              the whole disc, including vessels in front of it
stenosis                the reference lumen between the shoulders (20 % diameter stenosis) of each stenosis of at least 50 %
                        with a visible narrowest point; omitted if other vessels cover more than half of a stenosis
the widest vessel       the branch with the largest mean radius of its visible part; omitted unless it is at least 15 %
                        wider than the next
the vessel on the left  the branch with the leftmost center of mass; omitted unless the next center is at least 5 % of the
                        frame further right

A branch extends from its origin to its end, past its own branches. For the last two phrases, it must have a visible
length of 40 pixels (at size 512). Visible means in the frame, not behind the collimator, and with at least
`motion.VISIBLE_CONCENTRATION` of the full contrast agent concentration. An absent object has an empty mask. An
ambiguous phrase is omitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vesalius.synth.picture import Mask, Picture

WIDER = 1.15
"""Minimum ratio of mean radii between the widest vessel and the next."""
FARTHER = 0.05
"""Minimum distance between the centers of the leftmost vessel and the next, relative to the frame's width."""


def _vessel(picture: Picture) -> Mask:
    return picture.mask_of([vessel.shadow for vessel in picture.vessels])


def _kind(name: str) -> Callable[[Picture], Mask]:
    return lambda picture: picture.mask_of([each.shadow for each in picture.vessels if each.kind == name])


def _object(name: str) -> Callable[[Picture], Mask]:
    return lambda picture: picture.objects.get(name, np.zeros_like(picture.clear))


def _stenosis(picture: Picture) -> Mask | None:
    for vessel in picture.vessels:
        narrowed = picture.mask_of([vessel.stenosis])
        others = picture.mask_of([other.shadow for other in picture.vessels if other is not vessel])
        if 2 * (narrowed & others).sum() > narrowed.sum():
            return None
    return picture.mask_of([vessel.stenosis for vessel in picture.vessels])


def _widest(picture: Picture) -> Mask | None:
    branches = sorted(picture.branches(), key=lambda vessel: -vessel.radius)
    if len(branches) > 1 and branches[0].radius < WIDER * branches[1].radius:
        return None
    return picture.mask_of([vessel.shadow for vessel in branches[:1]])


def _leftmost(picture: Picture) -> Mask | None:
    masks = [picture.mask_of([vessel.shadow]) for vessel in picture.branches()]
    if not masks:
        return np.zeros_like(picture.clear)
    centers = [float(np.nonzero(mask)[1].mean()) for mask in masks]
    order = np.argsort(centers)
    if len(masks) < 2 or centers[order[1]] - centers[order[0]] < FARTHER * picture.size:
        return None
    return masks[order[0]]


MEANINGS: Mapping[str, Callable[[Picture], Mask | None]] = {
    "blood vessel": _vessel,
    "artery": _kind("artery"),
    "vein": _kind("vein"),
    "catheter": _object("catheter"),
    "guide wire": _object("guide wire"),
    "optic disc": _object("optic disc"),
    "stenosis": _stenosis,
    "the widest vessel": _widest,
    "the vessel on the left": _leftmost,
}
"""Phrase -> function that returns its mask: empty for an absent object, None for an omitted phrase."""


def masks_for(picture: Picture, phrases: Sequence[str]) -> dict[str, Mask]:
    """The mask of each phrase, without omitted phrases."""
    masks = {phrase: MEANINGS[phrase](picture) for phrase in phrases}
    return {phrase: mask for phrase, mask in masks.items() if mask is not None}
