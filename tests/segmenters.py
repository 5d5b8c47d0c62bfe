"""Segmenters without a model, and images of random squares for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vesalius.errors import SettingError
from vesalius.mask_maps import LowRes
from vesalius.segmenter import ModelDescription, Segmenter, Usage
from vesalius.types import Item, Prediction

SIDE = 16


class Bright(Segmenter):
    """Masks are the pixels above 100; each call takes `pause_s`, and KeyboardInterrupt is raised at the image `stop_at`."""

    def __init__(
        self, batch_size: int = 2, pause_s: float = 0.0, stop_at: str = "", fingerprint: str = "f" * 64
    ) -> None:
        self.batch_size, self.pause_s, self.stop_at, self.fingerprint = (batch_size, pause_s, stop_at, fingerprint)
        self.settings: dict[str, Any] = {"answer": "verify", "device": "cpu"}
        self.threshold = 0.5
        self.seen: list[str] = []

    @property
    def description(self) -> ModelDescription:
        return ModelDescription(
            "bright",
            "test",
            self.fingerprint,
            threshold=self.threshold,
            settings=self.settings,
            batch_size=self.batch_size,
        )

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        time.sleep(self.pause_s)
        if any(item.id == self.stop_at for item in items):
            raise KeyboardInterrupt
        self.seen += [item.id for item in items]
        return [self.answer(item, prompt) for item in items for prompt in item.prompts]

    def answer(self, item: Item, prompt: str) -> Prediction:
        logits = np.where(item.frames[:, :, :, 0] > 100, 9, -9).astype(np.float32)
        side = item.size[0]
        return Prediction(
            item.id, prompt, "ok", item.size, LowRes(logits, side), (0.9,), "Sure, [SEG].", answered="verified"
        )


def open_bright(device: str) -> Bright:
    """A `Bright`, for another process."""
    return Bright(pause_s=0.005)


class Cached(Bright):
    """Answers the prompt "vessel" only, and counts every image as encoded."""

    def __init__(self) -> None:
        super().__init__(batch_size=1)

    @property
    def usage(self) -> Usage:
        return Usage(0, {"read": 0, "encoded": len(self.seen), "damaged": 0, "not_kept": 0})

    def check_prompts(self, prompts: Iterable[str]) -> list[str]:
        if unknown := [prompt for prompt in prompts if prompt != "vessel"]:
            raise SettingError(f"knows no {unknown[0]!r}", code="unknown_phrase")
        return []


class LocalError(Exception):
    """Cannot be pickled, because it has a lock."""

    def __init__(self) -> None:
        super().__init__("a reason")
        self.lock = threading.Lock()


def fail_to_open(device: str) -> Bright:
    """Raises an error that cannot be pickled."""
    raise LocalError


def open_cached(device: str) -> Bright:
    """A `Cached`, for another process."""
    return Cached()


def draw_squares(folder: Path, n: int) -> list[np.ndarray]:
    """Write images 000.png, 001.png, ... of random squares; returns the masks that `Bright` gives for them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(n)
    masks = rng.random((n, SIDE, SIDE)) > 0.5
    for index, mask in enumerate(masks):
        Image.fromarray((mask * 200).astype(np.uint8)).save(folder / f"{index:03d}.png")
    return list(masks)
