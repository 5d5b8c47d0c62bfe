"""Mask maps: the masks of one answer's n objects, in their stored representation.

`LowRes` (low-resolution logits of the mask decoder), `Tiled` (low-resolution logits of sliding windows), `Full` (logits
at the original size), `Refined` (`Full` after clicks) and `Stored` (masks from a file) all give masks and probabilities at the original size (h, w).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Float32

from vesalius.calls import checked_init, describe
from vesalius.errors import SettingError
from vesalius.masks import Size, resize_bilinear

PLAIN = "plain"
"""Test-time augmentation: name of the view without augmentation."""


class Maps(ABC):
    """The maps of n objects; n is 0 if the answer has no [SEG] or there is no answer."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of objects."""

    @abstractmethod
    def full_logits(self, size: Size) -> Float32[np.ndarray, "n h w"]:
        """Logits at the original size (h, w)."""

    def probabilities(self, size: Size) -> Float32[np.ndarray, "n h w"]:
        """Probabilities in [0, 1] at the original size (h, w)."""
        # exp(x) overflows float32 above 88, where the probability is 0 anyway
        return 1 / (1 + np.exp(np.minimum(-self.full_logits(size), np.float32(88))))

    def probability(self, size: Size) -> Float32[np.ndarray, "h w"] | None:
        """The maximum probability over the objects; 0 without objects, None if no probabilities were stored."""
        objects = self.probabilities(size)
        return objects.max(axis=0) if len(objects) else np.zeros(size, dtype=np.float32)

    def masks(self, size: Size, threshold: float) -> Bool[np.ndarray, "n h w"]:
        """Masks at the original size: probability above the threshold."""
        # in logits, the threshold t is log(t / (1 - t)), which is exactly 0 at 0.5, as in the official code
        logit_threshold = np.log(threshold) - np.log1p(-threshold)
        return np.asarray(self.full_logits(size) > np.float32(logit_threshold))


@checked_init
@dataclass(frozen=True)
class LowRes(Maps):
    """The mask decoder's low-resolution logits for the whole image, float32 (n, g, g)."""

    logits: np.ndarray
    input_size: int = 1024
    """Side of the segmenter's square input. Logits are first resized to it, as in the official code."""
    views: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Test-time augmentation: view -> its logits float32 (n, g, g), mapped back to the plain image. Kept only while
    `vesalius tune` compares views; `logits` is their average."""

    def __post_init__(self) -> None:
        if not isinstance(self.logits, np.ndarray) or self.logits.ndim != 3:
            got = self.logits.shape if isinstance(self.logits, np.ndarray) else describe(self.logits)
            raise SettingError(f"logits must be an array (n, g, g); got {got}", code="wrong_shape", field="logits")

    def __len__(self) -> int:
        return len(self.logits)

    def full_logits(self, size: Size) -> np.ndarray:
        full = [enlarge(each, self.input_size, size) for each in self.logits]
        return np.stack(full) if full else np.zeros((0, *size), dtype=np.float32)

    def through(self, views: Iterable[str]) -> LowRes:
        """The maps averaged over the plain image and `views`; KeyError for a view that is not in `self.views`."""
        if not len(self):
            return self
        return LowRes(average([self.views[name] for name in (PLAIN, *views)]), self.input_size)


NO_MAPS = LowRes(np.zeros((0, 1, 1), dtype=np.float32))
"""The empty maps of an answer without masks."""


@dataclass(frozen=True)
class Window:
    """A rectangle in pixels of the image."""

    top: int
    left: int
    height: int
    width: int

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Row and column slices that index an array (h, w)."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True)
class Tile:
    """The mask decoder's logits for one sliding window of an image."""

    window: Window
    logits: np.ndarray
    """float32 (n, g, g): one map for each [SEG]."""


@dataclass(frozen=True)
class Tiled(Maps):
    """Logits of sliding windows that cover the image, blended where they overlap."""

    tiles: tuple[Tile, ...]
    input_size: int = 1024
    """Side of the segmenter's square input for each window."""

    def __len__(self) -> int:
        return len(self.tiles[0].logits)

    def full_logits(self, size: Size) -> np.ndarray:
        """The weighted mean of the tiles at each pixel; the weight of a tile decreases linearly towards its edges."""
        total = np.zeros((len(self), *size), dtype=np.float32)
        weights = np.zeros(size, dtype=np.float32)
        for tile in self.tiles:
            window = tile.window
            weight = np.minimum(_nearness(window.height)[:, None], _nearness(window.width))
            weights[window.pixels] += weight
            for index, logits in enumerate(tile.logits):
                enlarged = enlarge(logits, self.input_size, (window.height, window.width))
                total[index][window.pixels] += weight * enlarged
        return total / weights


@dataclass(frozen=True)
class Full(Maps):
    """Logits float32 (n, h, w) at the original size."""

    logits: np.ndarray

    def __len__(self) -> int:
        return len(self.logits)

    def full_logits(self, size: Size) -> np.ndarray:
        return self.logits


@dataclass(frozen=True)
class Refined(Full):
    """Logits float32 (1, h, w) of a prompt's mask after clicks, and the maps before the clicks."""

    before: Maps
    """The maps that the next correction starts from: of the model, without the changes near the clicks."""


@dataclass(frozen=True)
class Stored(Maps):
    """A mask from a file: the union of all objects of one answer."""

    mask: np.ndarray | None
    """bool (h, w); None if the answer has no [SEG]."""
    stored_probability: np.ndarray | None = None
    """float32 (h, w); None if only the mask was stored."""

    def __len__(self) -> int:
        return int(self.mask is not None)

    def full_logits(self, size: Size) -> np.ndarray:
        raise ValueError("a stored mask has no logits")

    def probabilities(self, size: Size) -> np.ndarray:
        """The stored probabilities (1, h, w), or (0, h, w) without [SEG]; ValueError if none were stored."""
        if self.stored_probability is None:
            raise ValueError("a stored mask has no probabilities")
        return self.stored_probability[None][: len(self)]

    def probability(self, size: Size) -> np.ndarray | None:
        return self.stored_probability

    def masks(self, size: Size, threshold: float) -> np.ndarray:
        """The stored mask (1, h, w), independent of the threshold; (0, h, w) without [SEG]."""
        return np.zeros((0, *size), dtype=bool) if self.mask is None else self.mask[None]


def enlarge(logits: Float[np.ndarray, "g g"], input_size: int, size: Size) -> Float[np.ndarray, "h w"]:
    """A low-resolution map resized to `size` in two steps, first to the segmenter's input size."""
    return resize_bilinear(resize_bilinear(logits, (input_size, input_size)), size)


def average(maps: Sequence[Float[np.ndarray, "n _ _"]]) -> Float[np.ndarray, "n g g"]:
    """Logits of the mean probability of several maps, on the finest of their grids.

    A single map is returned unchanged.

    >>> float(average([np.array([[[0.0]]]), np.array([[[np.log(3)]]])])[0, 0, 0])  # mean of 0.5 and 0.75: 0.625
    0.5108256237659907
    """
    if len(maps) == 1:
        return maps[0]
    side = max(each.shape[-1] for each in maps)
    stacked = np.stack([_on_grid(each, side) for each in maps]).astype(np.float64)
    # sums in log space: a probability of 1 - 1e-20 is 1.0 in floating point
    inside = np.logaddexp.reduce(-np.logaddexp(0, -stacked), axis=0)
    outside = np.logaddexp.reduce(-np.logaddexp(0, stacked), axis=0)
    return np.asarray(inside - outside, dtype=maps[0].dtype)


def _on_grid(maps: np.ndarray, side: int) -> np.ndarray:
    if maps.shape[-1] == side:
        return maps
    enlarged = [resize_bilinear(each, (side, side)) for each in maps]
    return np.stack(enlarged) if enlarged else maps.reshape(0, side, side)


def _nearness(length: int) -> np.ndarray:
    """(length,) float32 in (0, 1]: distance of each pixel's center to the nearer end, divided by half the length."""
    centers = np.arange(length, dtype=np.float32) + 0.5
    return np.minimum(centers, length - centers) / (length / 2)
