"""Post-processing of masks: fill small holes and drop small specks."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool
from pydantic import NonNegativeInt
from scipy import ndimage

from vesalius.config import Settings
from vesalius.masks import EIGHT_CONNECTED


class Cleaning(Settings):
    """Size limits of holes and specks in each object's mask, at the image's size and before the union; 0 is off.

    Calling it cleans a mask: holes are filled first, then specks are dropped.
    """

    fill_holes: NonNegativeInt = 0
    """Area in pixels of the largest hole that is filled."""
    drop_specks: NonNegativeInt = 0
    """Area in pixels of the largest piece that is dropped."""

    def __call__(self, mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
        """The mask with its holes filled and then its specks dropped."""
        return drop_specks(fill_holes(mask, self.fill_holes), self.drop_specks)


def fill_holes(mask: Bool[np.ndarray, "h w"], most: int) -> Bool[np.ndarray, "h w"]:
    """The mask with every hole of at most `most` pixels filled.

    A hole is a 4-connected piece of the background that does not touch the border of the image. A ring of 3 x 3
    pixels has a hole of 1 pixel; without one of its edge pixels it has none, without a corner pixel it still has it.
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
    """The mask without its 8-connected pieces of at most `most` pixels."""
    if not most:
        return mask
    pieces, _ = ndimage.label(mask, EIGHT_CONNECTED)
    large = np.bincount(pieces.ravel()) > most
    large[0] = False
    return large[pieces]
