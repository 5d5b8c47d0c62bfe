"""Objects of one image that cover the same pixels."""

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
"""Share of the smaller of two objects that both cover, above which a sample is warned of. Of 300 angiograms of ARCADE,
on which the segments of a vessel follow one another, 9 have more."""

USUAL = 2
"""Images from which on two phrases that overlap in more than half of those with both do so by their nature."""


@dataclass(frozen=True)
class Overlap:
    """Two objects of a sample that cover the same pixels."""

    phrases: tuple[str, str]
    """In the order of the alphabet."""
    within: str
    """What the two are called in messages."""
    common: int
    """Pixels."""
    share: float
    """Of the smaller object."""


class Cover:
    """Which object covered each pixel of an image first, while its objects come one by one; none of them is kept.

    Of three objects on one pixel, the second and third each overlap with the first.
    """

    def __init__(self, size: Size) -> None:
        # masks of polygons and RLE come in the order of columns
        self._owner = np.full(size, -1, dtype=np.int32, order="F")
        self._taken = np.zeros(size, dtype=bool, order="F")
        self._objects: list[tuple[str, str, int]] = []
        self.overlaps: list[Overlap] = []

    def add(self, phrase: str, within: str, mask: Bool[np.ndarray, "h w"]) -> None:
        """The mask of an object of `phrase`, called `within` in messages."""
        area = int(np.count_nonzero(mask))
        shared = np.bincount(self._owner[mask & self._taken], minlength=len(self._objects))
        for index in np.flatnonzero(shared):
            other, called, other_area = self._objects[index]
            share = float(shared[index]) / min(area, other_area)
            if share > OVERLAP:
                first, second = sorted((other, phrase))
                self.overlaps.append(
                    Overlap((first, second), f"{called} and {within}", int(shared[index]), share)
                )
        np.copyto(self._owner, len(self._objects), where=mask & ~self._taken)
        self._taken |= mask
        self._objects.append((phrase, within, area))


def check_overlaps(
    found: Sequence[tuple[Sample, Sequence[str], Sequence[Overlap]]],
) -> tuple[list[Finding], dict[str, int]]:
    """`overlap`, once for a sample: the pair with most in common; and phrases that overlap as a rule.

    `found` has each sample, its phrases of which the masks are all right, and what overlaps.
    Two phrases that overlap in more than half of the images that have both, and in `USUAL` or more, lie over one
    another by their nature, as a catheter does in a vessel: they are counted (pair -> images), not warned of.
    """
    both = Counter(pair for _, phrases, _ in found for pair in combinations(sorted(phrases), 2))
    over = Counter(pair for _, _, overlaps in found for pair in {each.phrases for each in overlaps})
    usual = {pair: n for pair, n in over.items() if n >= USUAL and pair[0] != pair[1] and n > both[pair] / 2}
    findings = []
    for sample, _, overlaps in found:
        rare = sorted((each for each in overlaps if each.phrases not in usual), key=lambda each: -each.share)
        if rare:
            worst = rare[0]
            more = f"; so do {count_of(len(rare) - 1, 'more pair')}" if len(rare) > 1 else ""
            message = f"{worst.common} pixels, {100 * worst.share:.3g} % of the smaller object, belong to both{more}"
            findings.append(sample_finding("overlapping_objects", sample, message, within=worst.within))
    return findings, {f"{first!r} and {second!r}": n for (first, second), n in usual.items()}
