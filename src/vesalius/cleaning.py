"""Masks without small holes and specks, where somebody asked for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool
from pydantic import NonNegativeInt
from scipy import ndimage

from vesalius.config import Settings
from vesalius.types import Prediction

EIGHT = np.ones((3, 3), dtype=bool)
"""Pixels of a mask that touch at a corner are one piece; pixels outside of it are not."""


class Cleaning(Settings):
    """What is mended in each object's mask at the size of the image, before objects are united; 0 mends nothing."""

    fill_holes: NonNegativeInt = 0
    """Largest hole that is filled, in pixels."""
    drop_specks: NonNegativeInt = 0
    """Largest piece that is dropped, in pixels; after holes were filled."""


@dataclass(frozen=True)
class CleanedPrediction(Prediction):
    """A prediction whose masks were mended; its logits and probabilities are those of the model."""

    cleaning: Cleaning = field(default_factory=Cleaning)

    @cached_property
    def masks(self) -> np.ndarray:
        masks = super().masks.copy()
        for index, mask in enumerate(masks):
            masks[index] = clean(mask, self.cleaning)
        return masks


def clean(mask: Bool[np.ndarray, "h w"], cleaning: Cleaning) -> Bool[np.ndarray, "h w"]:
    """The mask with its holes filled and then its specks dropped, as far as they are small enough."""
    return drop_specks(fill_holes(mask, cleaning.fill_holes), cleaning.drop_specks)


def fill_holes(mask: Bool[np.ndarray, "h w"], most: int) -> Bool[np.ndarray, "h w"]:
    """The mask with every hole of at most `most` pixels filled.

    A hole is a piece of the outside, joined by edges, that does not touch the border of the image. Worked case: a
    ring of 3 x 3 pixels has a hole of 1; open at one edge it has none, open at a corner it still has.
    """
    if not most:
        return mask
    pieces, _ = ndimage.label(~mask)
    small = np.bincount(pieces.ravel()) <= most
    for border in (pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]):
        small[border] = False
    small[0] = False
    return mask | small[pieces]


def drop_specks(mask: Bool[np.ndarray, "h w"], most: int) -> Bool[np.ndarray, "h w"]:
    """The mask without its pieces, joined by edges or corners, of at most `most` pixels."""
    if not most:
        return mask
    pieces, _ = ndimage.label(mask, EIGHT)
    large = np.bincount(pieces.ravel()) > most
    large[0] = False
    return large[pieces]
