"""The nouns that travel between the rooms: Sample, Item, Prediction, Finding.

Sizes are (h, w), points (x, y) in pixels of the original image. Values are checked when they are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vesalius.masks import Rle, Size, resize_bilinear

Status = Literal["ok", "no_seg", "failed"]
"""ok: at least one mask; no_seg: the model answered without [SEG]; failed: no answer, and so no score."""


@dataclass(frozen=True)
class Polygons:
    """One object drawn as polygons `(x1, y1, x2, y2, ...)` in pixels; their union is the mask."""

    parts: tuple[tuple[float, ...], ...]
    flat: bool = False
    """The file has one bare list of coordinates, where others have a list of such lists."""


@dataclass(frozen=True)
class RleMask:
    """One object as COCO RLE."""

    rle: Rle


Value = int | tuple[int, int, int]
"""What a pixel of a mask file may say: a gray level or palette index, or a color (r, g, b)."""


@dataclass(frozen=True)
class MaskFile:
    """One object as an image file: pixels other than 0 belong to it, or those of one class of a map of classes."""

    path: Path
    values: tuple[Value, ...] | None = None
    """Of a map: what the pixels of this class have. A class that no pixel has is not in the image."""
    known: tuple[Value, ...] = ()
    """Of a map: the values of all its classes. Any other is a fault, but for 0 or black, the background."""


@dataclass(frozen=True)
class Absent:
    """The phrase is not in the image: an empty mask on purpose."""


MaskReference = Polygons | RleMask | MaskFile | Absent
"""A mask as it lies on disk: nothing is read or rasterized yet."""


@dataclass(frozen=True)
class Sample:
    """One annotated image, or frame of a clip, on disk; nothing read yet.

    `masks[i]` are the objects of `prompts[i]`; their union is the target of that phrase. Without annotation
    `masks` is None. `size` is (h, w) as the annotation states it, None where it does not.
    """

    id: str
    image: Path
    prompts: tuple[str, ...]
    masks: tuple[tuple[MaskReference, ...], ...] | None
    source: str = ""
    """Where the annotation stands, for messages: `annotations.json, entry 3`."""
    frame: int | None = None
    """Which frame of a file of several (cine, video, volume), from 0; None where the file is one image."""
    group: str | None = None
    """Patient or sequence; None where nobody said, then each image is its own group."""
    sequence: str | None = None
    """The clip that this is a frame of, if any; its frames are samples in their order."""
    size: Size | None = None
    spacing_mm: tuple[float, float] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.masks is not None and len(self.masks) != len(self.prompts):
            raise ValueError(f"{self.id}: {len(self.prompts)} prompts but {len(self.masks)} masks")


Turn = tuple[str, str]
"""A question and its answer."""


@dataclass(frozen=True)
class Item:
    """One image (or clip) in memory, with its prompts and, where known, their masks."""

    id: str
    frames: np.ndarray
    """uint8 (f, h, w, 3) RGB; f = 1 for an image."""
    prompts: tuple[str, ...]
    masks: np.ndarray | None = None
    """bool (n, f, h, w), one for each prompt."""
    absent: frozenset[int] = frozenset()
    """Training: places in `prompts` of phrases that are to be answered with words, as nothing is there."""
    turns: tuple[Turn, ...] = ()
    """Training: a conversation about the image, apart from the prompts."""

    def __post_init__(self) -> None:
        frames, masks = self.frames, self.masks
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
            raise ValueError(
                f"{self.id}: frames must be uint8 (f, h, w, 3); got {frames.dtype} {frames.shape}"
            )
        expected = (len(self.prompts), *frames.shape[:3])
        if masks is not None and (masks.dtype != np.bool_ or masks.shape != expected):
            raise ValueError(f"{self.id}: masks must be bool {expected}; got {masks.dtype} {masks.shape}")
        if masks is not None and (there := [place for place in self.absent if masks[place].any()]):
            raise ValueError(f"{self.id}: {self.prompts[there[0]]!r} is called absent but has a mask")

    @property
    def size(self) -> Size:
        """(h, w) of the frames."""
        return self.frames.shape[1], self.frames.shape[2]


@dataclass(frozen=True)
class Window:
    """A part of an image, in its pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Tile:
    """What the mask decoder made of one window."""

    window: Window
    logits: np.ndarray
    """float32 (n, g, g): one map for each [SEG]."""


@dataclass(frozen=True)
class Prediction:
    """The answer to one question about one image.

    Keeps the mask decoder's small logits; masks and probabilities of the original size are computed when
    asked for and not kept, except `masks` (25 phrases at 3504 x 2336 would be 0.8 GB of probabilities).
    """

    id: str
    prompt: str
    status: Status
    size: Size
    """(h, w) of the original image."""
    logits: np.ndarray
    """float32 (n, g, g): one low-resolution map for each [SEG]; n = 0 unless status is ok. (n, 0, 0) beside tiles."""
    input_size: int = 1024
    """Side of the square the segmenter saw; logits are enlarged to it first, as the official code does."""
    scores: tuple[float, ...] = ()
    """Predicted IoU of each mask, in [0, 1]."""
    text: str = ""
    says_seg: bool = True
    """The model itself writes [SEG]; where the answer was forced, it would have written the same up to there."""
    answered: Literal["forced", "verified", "generated", ""] = ""
    """How the answer came to be: given, drafted and then verified, or written; "" where nobody said."""
    tiles: tuple[Tile, ...] = ()
    """The image in windows that cover it, where it was looked at so; their blend takes the place of `logits`."""
    threshold: float = 0.5
    error: str = ""
    """Why it failed."""

    def __post_init__(self) -> None:
        n = len(self.logits)
        if self.logits.ndim != 3 or len(self.scores) != n:
            raise ValueError(
                f"{self.id}: {n} logit maps of {self.logits.ndim - 1} axes with {len(self.scores)} scores"
            )
        if (self.status == "ok") != (n > 0):
            raise ValueError(f"{self.id}: status {self.status} with {n} masks")

    @property
    def probabilities(self) -> np.ndarray:
        """float32 (n, h, w) in [0, 1] at the original size."""
        # exp(88) is the last that float32 holds; there the probability is 0 anyway
        return 1 / (1 + np.exp(np.minimum(-self._full_logits(), np.float32(88))))

    @cached_property
    def masks(self) -> np.ndarray:
        """bool (n, h, w) at the original size: probability above the threshold."""
        # the same comparison in logits: log(t / (1 - t)); at 0.5 it is exactly 0, as in the official code
        border = np.log(self.threshold) - np.log1p(-self.threshold)
        return np.asarray(self._full_logits() > np.float32(border))

    @property
    def mask(self) -> np.ndarray:
        """bool (h, w): the union of the objects; empty when the model answered without [SEG]."""
        return np.logical_or.reduce(self.masks, axis=0)

    @property
    def probability(self) -> np.ndarray | None:
        """float32 (h, w): the highest probability of any object; 0 without [SEG], None where nobody knows any."""
        objects = self.probabilities
        return objects.max(axis=0) if len(objects) else np.zeros(self.size, dtype=np.float32)

    def _full_logits(self) -> np.ndarray:
        if self.tiles:
            return self._blend()
        full = [self._enlarge(each, self.size) for each in self.logits]
        return np.stack(full) if full else np.zeros((0, *self.size), dtype=np.float32)

    def _enlarge(self, logits: np.ndarray, size: Size) -> np.ndarray:
        return resize_bilinear(resize_bilinear(logits, (self.input_size, self.input_size)), size)

    def _blend(self) -> np.ndarray:
        """Mean of the tiles over each pixel; a tile counts the less the nearer the pixel lies to the tile's border."""
        total = np.zeros((len(self.logits), *self.size), dtype=np.float32)
        weights = np.zeros(self.size, dtype=np.float32)
        for tile in self.tiles:
            height, width = tile.window.height, tile.window.width
            place = np.s_[
                tile.window.top : tile.window.top + height, tile.window.left : tile.window.left + width
            ]
            weight = np.minimum(_nearness(height)[:, None], _nearness(width))
            weights[place] += weight
            for index, logits in enumerate(tile.logits):
                total[index][place] += weight * self._enlarge(logits, (height, width))
        return total / weights


def _nearness(length: int) -> np.ndarray:
    """(length,) float32: how far the middle of each pixel lies from the nearer end, as a share of half the length."""
    place = np.arange(length, dtype=np.float32) + 0.5
    return np.minimum(place, length - place) / (length / 2)


@dataclass(frozen=True)
class Finding:
    """Something wrong, or worth knowing, in a dataset."""

    code: str
    severity: Literal["error", "warning"]
    file: str
    """The image, mask, annotation file or folder that it is about."""
    location: str
    """Entry and object in the file, such as `entry 3 (a.png): 'vessel', object 1`; "" for the whole file."""
    message: str
    """What is wrong, with numbers."""
    remedy: str
    """What to do."""
    samples: tuple[str, ...] = ()
    """Ids of samples concerned, which are distinct within one split."""
