"""A segmenter without a model, and squares for it to see."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from vesalius.errors import SettingError
from vesalius.types import Item, Prediction

SIDE = 16


class Bright:
    """Its masks are the pixels above 100; each call takes `pause_s`, and fails or stops where told to."""

    threshold, threshold_origin = 0.5, {}
    training_images, training_perceptual_hashes, tuning_images = None, (), ()
    trained_on_unknown = True

    def __init__(
        self, batch: int = 2, pause_s: float = 0.0, stop_at: str = "", fingerprint: str = "f" * 64
    ) -> None:
        self.batch, self.pause_s, self.stop_at, self.fingerprint = batch, pause_s, stop_at, fingerprint
        self.settings: dict[str, Any] = {"answer": "verify", "device": "cpu"}
        self.seen: list[str] = []

    @property
    def card(self) -> dict[str, Any]:
        return {"name": "bright", "kind": "test", "fingerprint": self.fingerprint, "step": None}

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
            item.id, prompt, "ok", item.size, logits, side, (0.9,), "Sure, [SEG].", answered="verified"
        )


@dataclass(frozen=True)
class BrightOrder:
    """Makes a `Bright` in another process."""

    number: int
    device: str = "cpu"

    def __call__(self) -> Bright:
        return Bright(pause_s=0.005)


class Cached(Bright):
    """Knows of vessels only, and of each image says that it was encoded."""

    def __init__(self) -> None:
        super().__init__(batch=1)
        self.cache = SimpleNamespace(use=SimpleNamespace(read=0, encoded=0, damaged=0, not_kept=0))

    def check_prompts(self, prompts: Sequence[str]) -> None:
        if unknown := [prompt for prompt in prompts if prompt != "vessel"]:
            raise SettingError(f"knows no {unknown[0]!r}")

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        self.cache.use.encoded += len(items)
        return super().predict(items)


@dataclass(frozen=True)
class CachedOrder(BrightOrder):
    """Makes a `Cached` in another process."""

    def __call__(self) -> Bright:
        return Cached()


def draw_squares(folder: Path, n: int) -> list[np.ndarray]:
    """Images 000.png, 001.png, ... of their own squares; the masks that `Bright` makes of them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(n)
    masks = rng.random((n, SIDE, SIDE)) > 0.5
    for index, mask in enumerate(masks):
        Image.fromarray((mask * 200).astype(np.uint8)).save(folder / f"{index:03d}.png")
    return list(masks)
