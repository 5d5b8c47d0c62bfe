"""Different prompts with the same mask on an image: a sign that a model ignores its prompts.

Two masks are the same if neither is empty and their Dice is above `SAME`. The field `same_mask_as` of a result row lists
the earlier prompts of its image with the same mask, so that counts need rows only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, UInt8

from vesalius.language import note
from vesalius.names import list_names

SAME = 0.95
"""Dice above which two masks are the same."""
SAME_MASK = "same_mask_as"
"""Key in a result row: earlier prompts of the image with the same mask; absent without any."""
LISTED = 3
"""Maximum number of pairs of prompts in a sentence; the others are counted."""


@dataclass(frozen=True)
class PackedMask:
    """A mask with eight pixels per byte, and its area in pixels; 25 masks of 8 megapixels take 25 MB."""

    area: int
    bits: UInt8[np.ndarray, " b"]

    @classmethod
    def of(cls, mask: Bool[np.ndarray, "h w"]) -> Self:
        """The packed mask."""
        return cls(int(np.count_nonzero(mask)), np.packbits(mask))

    def is_same(self, other: PackedMask) -> bool:
        """Whether neither mask is empty and the Dice of the two is above `SAME`; False for masks of different sizes."""
        total = self.area + other.area
        # the intersection has at most as many pixels as the smaller mask, so most pairs need no intersection
        if 2 * min(self.area, other.area) <= SAME * total or len(self.bits) != len(other.bits):
            return False
        return 2 * int(np.bitwise_count(self.bits & other.bits).sum()) > SAME * total


def find_same(mask: PackedMask, earlier: Mapping[str, PackedMask]) -> list[str]:
    """The prompts among `earlier` (prompt -> mask on this image) with the same mask."""
    return [prompt for prompt, other in earlier.items() if mask.is_same(other)]


@dataclass
class SameMasks:
    """Number of images on which two prompts gave the same mask, for each pair of prompts."""

    images: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Pair of prompts -> number of images with a prediction for both; failed predictions do not count."""
    same: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Pair of prompts -> number of these images with the same mask."""

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Count the rows of one image, one per prompt: their `prompt`, `status` and, if present, `same_mask_as`."""
        predicted = [row for row in rows if row["status"] != "failed"]
        self.images.update(combinations([row["prompt"] for row in predicted], 2))
        self.same.update((other, row["prompt"]) for row in predicted for other in row.get(SAME_MASK, ()))

    def as_json(self) -> list[dict[str, Any]]:
        """`prompts` (two), `same` and `images` (counts) of each pair with the same mask at least once, most first."""
        return [
            {"prompts": list(pair), "same": count, "images": self.images[pair]}
            for pair, count in self.same.most_common()
        ]


def describe_same(pairs: Sequence[Mapping[str, Any]]) -> str:
    """Sentence on the pairs of `SameMasks.as_json`; "" without any."""
    said = [
        f'"{each["prompts"][0]}" and "{each["prompts"][1]}" on {each["same"]} of {each["images"]} images'
        for each in pairs
    ]
    pairs_said = list_names(said, LISTED, "; ")
    return note("Prompts with the same mask (Dice > {same}): {pairs}.", same=SAME, pairs=pairs_said) if said else ""
