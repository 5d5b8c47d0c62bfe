"""Properties of one mask: boundary, skeleton, connected components, holes, widths; each is cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import label
from scipy.spatial import cKDTree
from skimage.morphology import skeletonize

from vesalius.masks import EIGHT_CONNECTED, dilate


@dataclass(frozen=True, eq=False)
class Shape:
    """One mask, bool (h, w), with cached properties. Pixels outside the array count as background, except in `widths`.

    Cropping the array to the mask and a margin of one background pixel changes no property.
    """

    mask: np.ndarray
    region: np.ndarray | None = None
    """Region of interest, bool (h, w), that contains the mask; None for the whole array."""

    @cached_property
    def empty(self) -> bool:
        return not self.mask.any()

    @cached_property
    def boundary(self) -> Bool[np.ndarray, "h w"]:
        """Pixels of the mask with a background pixel above, below, left or right, or at the edge of the image.

        As in MONAI, MedPy and panoptica: the mask minus its erosion by a cross.
        """
        padded = np.pad(self.mask, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        return self.mask & ~inner

    @cached_property
    def skeleton(self) -> Bool[np.ndarray, "h w"]:
        """Centerline, one pixel wide, with the same components and holes as the mask.

        Source: Zhang & Suen 1984, A fast parallel algorithm for thinning digital patterns, Comm. ACM 27(3), as
        implemented in scikit-image, which keeps one pixel of a 2 x 2 square.
        """
        return np.asarray(skeletonize(self.mask))

    @cached_property
    def components(self) -> tuple[Int[np.ndarray, "h w"], int]:
        """Labels (h, w) of the 8-connected components, from 1 (0 is background), and their number."""
        labels, n = label(self.mask, structure=EIGHT_CONNECTED)
        return labels, int(n)

    @property
    def betti0(self) -> int:
        """Number of 8-connected components."""
        return self.components[1]

    @cached_property
    def betti1(self) -> int:
        """Number of holes: 4-connected components of the background that do not touch the outside.

        Computed as `betti0` minus the Euler characteristic, which is corners - edges + faces of the union of the pixels
        as closed squares (Gray 1971, Local properties of binary images in two dimensions, IEEE Trans. Comput.).
        """
        padded = np.pad(self.mask, 1)
        across, along = padded[1:] | padded[:-1], padded[:, 1:] | padded[:, :-1]
        corners = across[:, 1:] | across[:, :-1]
        counts = [int(np.count_nonzero(each)) for each in (corners, across, along, self.mask)]
        return self.betti0 - (counts[0] - counts[1] - counts[2] + counts[3])

    @cached_property
    def widths(self) -> Float[np.ndarray, " n"]:
        """Local width in pixels at each pixel of the skeleton, in the order of `skeleton.nonzero()`.

        The width is twice the distance to the center of the nearest background pixel: 2 for a line of 1 or 2 pixels,
        4 for 3 or 4. For strips 1.5 to 12 pixels wide at any angle, the mean error is 0 to +0.5 pixels (standard
        deviation up to 0.7). The edge of the image is not a vessel wall. Infinite without background pixels.
        """
        outside = ~self.mask if self.region is None else self.region & ~self.mask
        beside = points_of(outside & dilate(self.mask))
        if not len(beside):
            return np.full(np.count_nonzero(self.skeleton), np.inf)
        return 2 * distances_to(beside, points_of(self.skeleton))


def points_of(mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "n 2"]:
    """(row, column) of each pixel of the mask; the same as `np.argwhere`, but faster."""
    return np.stack(np.divmod(np.flatnonzero(mask), mask.shape[1]), axis=1)


def distances_to(
    others: Int[np.ndarray, "m 2"], points: Int[np.ndarray, "n 2"], spacing: Sequence[float] = (1.0, 1.0)
) -> Float[np.ndarray, " n"]:
    """Euclidean distance from each point to the nearest of `others` (not empty), in units of `spacing` (row, column).

    A k-d tree of 2000 boundary pixels takes a tenth of the time of a distance transform of a 512 x 512 image.
    """
    scale = np.asarray(spacing, dtype=np.float64)
    _, nearest = cKDTree(others * scale, leafsize=32).query(points * scale)  # a fifth faster than with 16
    # integers are subtracted before scaling, so that 10 pixels of 0.1 mm are exactly 1 mm
    return np.sqrt((((points - others[nearest]) * scale) ** 2).sum(axis=1))
