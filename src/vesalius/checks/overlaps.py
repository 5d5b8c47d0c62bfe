"""Findings about overlapping objects in one image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool

from vesalius.checks.findings import sample_finding
from vesalius.masks import Size
from vesalius.names import count_of
from vesalius.types import Finding, Sample

OVERLAP = 0.01
"""Intersection, as a fraction of the smaller object, above which there is a warning. 9 of 300 ARCADE angiograms, which
have adjacent vessel segments, exceed it."""

MIN_IMAGES = 2
"""Minimum number of images in which two phrases overlap for the overlap to count as natural."""


@dataclass(frozen=True)
class Overlap:
    """Two overlapping objects of a sample."""

    phrases: tuple[str, str]
    """The phrases of the two objects, sorted."""
    within: str
    """The names of the two objects in messages: `'vessel' and 'stent'`."""
    intersection: int
    """Number of pixels in both objects."""
    fraction: float
    """Intersection divided by the area of the smaller object."""


class Cover:
    """Finds overlaps between objects that are added one by one, without storing their masks.

    It stores the first object at each pixel. If three objects share a pixel, the second and third each overlap the first.
    """

    def __init__(self, size: Size) -> None:
        # masks of polygons and RLE are in column-major order
        self._owner = np.full(size, -1, dtype=np.int32, order="F")
        self._taken = np.zeros(size, dtype=bool, order="F")
        self._objects: list[tuple[str, str, int]] = []
        self.overlaps: list[Overlap] = []

    def add(self, phrase: str, within: str, mask: Bool[np.ndarray, "h w"]) -> None:
        """Add the mask of an object of `phrase`, named `within` in messages."""
        area = int(np.count_nonzero(mask))
        shared = np.bincount(self._owner[mask & self._taken], minlength=len(self._objects))
        for index in np.flatnonzero(shared):
            other, called, other_area = self._objects[index]
            fraction = float(shared[index]) / min(area, other_area)
            if fraction > OVERLAP:
                first, second = sorted((other, phrase))
                self.overlaps.append(Overlap((first, second), f"{called} and {within}", int(shared[index]), fraction))
        np.copyto(self._owner, len(self._objects), where=mask & ~self._taken)
        self._taken |= mask
        self._objects.append((phrase, within, area))


def check_overlaps(
    found: Sequence[tuple[Sample, Sequence[str], Sequence[Overlap]]],
) -> tuple[list[Finding], dict[str, int]]:
    """Findings `overlapping_objects` (one per sample, for its largest overlap), and pairs that overlap naturally.

    `found` lists each sample with its valid phrases and its overlaps. Two phrases overlap naturally (a catheter in a
    vessel) if they overlap in more than half of the images with both and in at least `MIN_IMAGES` images. Such pairs give
    no warning and are returned as pair -> number of images.
    """
    both = Counter(pair for _, phrases, _ in found for pair in combinations(sorted(phrases), 2))
    over = Counter(pair for _, _, overlaps in found for pair in {each.phrases for each in overlaps})
    natural = {pair: n for pair, n in over.items() if n >= MIN_IMAGES and pair[0] != pair[1] and n > both[pair] / 2}
    findings = []
    for sample, _, overlaps in found:
        rare = sorted((each for each in overlaps if each.phrases not in natural), key=lambda each: -each.fraction)
        if rare:
            worst = rare[0]
            more = f"; {count_of(len(rare) - 1, 'more pair')} of objects overlap" if len(rare) > 1 else ""
            message = (
                f"{worst.intersection} pixels, {100 * worst.fraction:.3g} % of the smaller object, belong to both{more}"
            )
            findings.append(sample_finding("overlapping_objects", sample, message, within=worst.within))
    return findings, {f"{first!r} and {second!r}": n for (first, second), n in natural.items()}
