"""A segmenter with prescribed predictions, and images of small squares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vesalius.data.dataset import Dataset
from vesalius.mask_maps import LowRes
from vesalius.segmenter import ModelDescription, Segmenter
from vesalius.types import Item, MaskFile, Prediction, Sample

SIDE = 16


def square(left: int = 1) -> np.ndarray:
    """A square of 2 x 2 pixels; two squares one pixel apart share 2 pixels and have a Dice of 0.5."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[1:3, left : left + 2] = True
    return mask


class FakeSegmenter(Segmenter):
    """Answers by id and prompt: a mask or logits, None for no [SEG], the reason of a failure, or an error to raise."""

    description: Any = None

    def __init__(self, answers: dict[str, Any] | None = None, batch_size: int = 2) -> None:
        self.answers = answers or {}
        self.description = ModelDescription(
            "fake", "fake", "f00d", step=7, threshold=0.4, settings={"answer": "generate"}, batch_size=batch_size
        )
        self.seen: list[Item] = []
        self.calls: list[list[str]] = []

    def describe(self, **changes: Any) -> None:
        """Change fields of the description; training images that are given are all that there are."""
        if "training_images" in changes:
            changes = {"trained_on_unknown": changes["training_images"] is None} | changes
        self.description = replace(self.description, **changes)

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        self.seen += items
        self.calls.append([item.id for item in items])
        return [self.answer(item, prompt) for item in items for prompt in item.prompts]

    def answer(self, item: Item, prompt: str) -> Prediction:
        answer = self.answers.get(f"{item.id} {prompt}", self.answers.get(item.id, square(2)))
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, str):
            return Prediction.failure(item.id, prompt, item.size, answer)
        if answer is None:
            return Prediction(item.id, prompt, "no_seg", item.size, says_seg=False, text="I see nothing.")
        logits = np.where(answer, 9, -9) if answer.dtype == bool else answer
        maps = LowRes(logits.astype(np.float32).reshape(-1, *item.size), item.size[0])
        threshold = self.description.threshold
        return Prediction(item.id, prompt, "ok", item.size, maps, (0.9,) * len(maps), threshold=threshold)


def dataset(
    folder: Path,
    ids: Sequence[str] = ("a", "b", "c"),
    prompts: tuple[str, ...] = ("vessel",),
    target: np.ndarray | None = None,
    groups: Sequence[str | None] | None = None,
) -> Dataset:
    """Gray images of different brightness, all with the same ground truth."""
    target = square() if target is None else target
    folder.mkdir()
    samples = []
    for index, name in enumerate(ids):
        image, mask = folder / f"{name}.png", folder / f"{name}.mask.png"
        Image.fromarray(np.full((*target.shape, 3), 90 + index, dtype=np.uint8)).save(image)
        Image.fromarray(target.astype(np.uint8) * 255).save(mask)
        objects = tuple((MaskFile(mask),) for _ in prompts)
        group = groups[index] if groups else None
        samples.append(Sample(name, image, prompts, objects, group=group))
    return Dataset("squares", "maskfolder", folder, tuple(samples), ("read by hand",))


@pytest.fixture(name="FakeSegmenter")
def _fake_segmenter() -> type[FakeSegmenter]:
    return FakeSegmenter


@pytest.fixture(name="square")
def _square() -> Callable[..., np.ndarray]:
    return square


@pytest.fixture(name="dataset")
def _dataset() -> Callable[..., Dataset]:
    return dataset
