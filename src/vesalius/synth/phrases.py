"""What each phrase means in a synthetic picture, so that its mask follows from what can be seen there.

blood vessel            every annotated vessel, where it is visible
artery, vein            those of one kind; in a retina
catheter, guide wire    the whole device in the frame; of a wire the part beyond the catheter's tip
optic disc              all of it, vessels before it included
stenosis                the lumen as it would be without disease, from shoulder to shoulder (a fifth of the diameter lost)
                        of each narrowing of half the diameter or more the narrowest point of which is visible; left out
                        where other vessels lie over more than half of one
the widest vessel       the branch with the largest mean radius along what is visible of it; left out unless the next
                        one is narrower by 15 %
the vessel on the left  the branch the mask of which has the leftmost center of gravity; left out unless there is another
                        one, and its center lies farther right by 5 % of the frame

A branch runs from its origin to its end, past the branches that leave it. It counts from 40 pixels (of 512) of visible
length on. Visible is what lies in the frame, is not behind the collimator, and holds contrast medium of at least
`motion.VISIBLE_SHARE` of the full concentration. What is not in the picture has an empty mask: the answer is "not there".
What is left out has two defensible answers, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vesalius.synth.picture import Mask, Picture

WIDER = 1.15
"""Mean radius of the widest vessel, at least, where that of the next one is 1."""
FARTHER = 0.05
"""Share of the frame's width between the centers of the leftmost vessel and of the next one, at least."""


def _vessel(picture: Picture) -> Mask:
    return picture.mask_of([vessel.shadow for vessel in picture.vessels])


def _kind(name: str) -> Callable[[Picture], Mask]:
    return lambda picture: picture.mask_of([each.shadow for each in picture.vessels if each.kind == name])


def _thing(name: str) -> Callable[[Picture], Mask]:
    return lambda picture: picture.things.get(name, np.zeros_like(picture.clear))


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
    "catheter": _thing("catheter"),
    "guide wire": _thing("guide wire"),
    "optic disc": _thing("optic disc"),
    "stenosis": _stenosis,
    "the widest vessel": _widest,
    "the vessel on the left": _leftmost,
}
"""Phrase -> its mask in a picture: empty where there is no such thing, None where the phrase is left out."""


def answer(picture: Picture, phrases: Sequence[str]) -> dict[str, Mask]:
    """The mask of each phrase, without those that are left out."""
    masks = {phrase: MEANINGS[phrase](picture) for phrase in phrases}
    return {phrase: mask for phrase, mask in masks.items() if mask is not None}
