"""Post-processing of masks: fill small holes and remove small connected components (specks)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool
from pydantic import NonNegativeInt
from scipy import ndimage

from vesalius.config import Settings
from vesalius.masks import EIGHT_CONNECTED


class Cleaning(Settings):
    """Size limits for holes and specks in each object's mask, in pixels of the image; 0 turns a step off.

    A `Cleaning` is called with the mask of one object, before the union of all objects.
    """

    fill_holes: NonNegativeInt = 0
    """Maximum area in pixels of a hole that is filled."""
    drop_specks: NonNegativeInt = 0
    """Maximum area in pixels of a speck that is removed."""

    def __call__(self, mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
        """The mask after filling holes and then removing specks."""
        return drop_specks(fill_holes(mask, self.fill_holes), self.drop_specks)


def fill_holes(mask: Bool[np.ndarray, "h w"], most: int) -> Bool[np.ndarray, "h w"]:
    """The mask with every hole of at most `most` pixels filled.

    A hole is a 4-connected component of the background that does not touch the edge of the image. A ring of 3 x 3
    pixels has a hole of 1 pixel, also without one corner pixel, but not without one edge pixel.
    """
    if not most:
        return mask
    labels, _ = ndimage.label(~mask)
    small = np.bincount(labels.ravel()) <= most
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        small[edge] = False
    small[0] = False
    return mask | small[labels]


def drop_specks(mask: Bool[np.ndarray, "h w"], most: int) -> Bool[np.ndarray, "h w"]:
    """The mask without 8-connected components of at most `most` pixels."""
    if not most:
        return mask
    labels, _ = ndimage.label(mask, EIGHT_CONNECTED)
    large = np.bincount(labels.ravel()) > most
    large[0] = False
    return large[labels]
