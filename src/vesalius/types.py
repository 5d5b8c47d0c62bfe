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


@dataclass(frozen=True)
class MaskFile:
    """One object as an image file: pixels other than 0 belong to it."""

    path: Path


@dataclass(frozen=True)
class Absent:
    """The phrase is not in the image: an empty mask on purpose."""


MaskReference = Polygons | RleMask | MaskFile | Absent
"""A mask as it lies on disk: nothing is read or rasterised yet."""


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


@dataclass(frozen=True)
class Item:
    """One image (or clip) in memory, with its prompts and, where known, their masks."""

    id: str
    frames: np.ndarray
    """uint8 (f, h, w, 3) RGB; f = 1 for an image."""
    prompts: tuple[str, ...]
    masks: np.ndarray | None = None
    """bool (n, f, h, w), one for each prompt."""

    def __post_init__(self) -> None:
        frames, masks = self.frames, self.masks
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
            raise ValueError(
                f"{self.id}: frames must be uint8 (f, h, w, 3); got {frames.dtype} {frames.shape}"
            )
        expected = (len(self.prompts), *frames.shape[:3])
        if masks is not None and (masks.dtype != np.bool_ or masks.shape != expected):
            raise ValueError(f"{self.id}: masks must be bool {expected}; got {masks.dtype} {masks.shape}")

    @property
    def size(self) -> Size:
        """(h, w) of the frames."""
        return self.frames.shape[1], self.frames.shape[2]


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
    """float32 (n, g, g): one low-resolution map for each [SEG]; n = 0 unless status is ok."""
    input_size: int = 1024
    """Side of the square the segmenter saw; logits are enlarged to it first, as the official code does."""
    scores: tuple[float, ...] = ()
    """Predicted IoU of each mask, in [0, 1]."""
    text: str = ""
    says_seg: bool = True
    """The model itself writes [SEG]; where the answer was forced, it would have written the same up to there."""
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
        square = (self.input_size, self.input_size)
        full = [resize_bilinear(resize_bilinear(each, square), self.size) for each in self.logits]
        return np.stack(full) if full else np.zeros((0, *self.size), dtype=np.float32)


@dataclass(frozen=True)
class Finding:
    """Something wrong, or worth knowing, in a data set."""

    code: str
    severity: Literal["error", "warning"]
    place: str
    """File and entry."""
    message: str
    """What is wrong and what to do."""
