"""What an epoch consists of: every sample once as referring segmentation, and examples of other tasks by weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Int64
from pydantic import Field

from vesalius.config import Settings
from vesalius.data.dataset import epoch_order, load_item
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.errors import ImageError, SettingError
from vesalius.lineage import fingerprint_samples
from vesalius.masks import Size
from vesalius.training.conversations import Conversation, Questions, read_questions
from vesalius.types import Absent, Item, MaskFile, Sample

Task = Literal["segment", "negatives", "clips", "questions"]
T = TypeVar("T")
DRAWN: tuple[Task, ...] = ("negatives", "clips", "questions")
"""The tasks beside referring segmentation, in the order in which an epoch counts its examples."""


class TaskSettings(Settings):
    """What is learned besides. A weight is the number of examples for each training sample: 0.2 adds a fifth.

    Referring segmentation has weight 1: an epoch asks for every phrase of every sample once.
    """

    negatives: float = Field(default=0.0, ge=0, le=10)
    """An image and a phrase of other images that it lacks, answered as `absent` says. Right where the annotation is
    complete, so that a phrase that an image lacks is not in it."""
    clips: float = Field(default=0.0, ge=0, le=10)
    """Several frames of one sequence: one [SEG] a phrase means its masks in all of them."""
    frames: int = Field(default=5, ge=2)
    """Frames of a clip, drawn anew each time; all of a sequence that has fewer."""
    questions: float = Field(default=0.0, ge=0, le=10)
    """Conversations of `data.questions`, whose answers are learned."""
    absent: Literal["mask", "words"] = "mask"
    """What a phrase that is absent, as annotated or drawn, is answered with: [SEG] and an empty mask, or words without
    [SEG]."""


@dataclass(frozen=True)
class Mixture:
    """The examples of an epoch, by number: the samples in their order, then those of each task of `DRAWN`."""

    samples: Sequence[Sample]
    tasks: TaskSettings
    questions: Questions | None = None

    def __post_init__(self) -> None:
        """SettingError where a task has a weight but nothing to draw from."""
        pools: dict[Task, tuple[Sequence[object], str]] = {
            "negatives": (self._lacking, "every image has every phrase"),
            "clips": (self._sequences, "no two frames of a sequence have a phrase in common"),
            "questions": (self.conversations, "data.questions names no file"),
        }
        for task, (pool, remedy) in pools.items():
            if getattr(self.tasks, task) and not pool:
                raise SettingError(f"tasks.{task} has a weight, but there is nothing to draw from: {remedy}")
        if self.conversations and not self.tasks.questions:
            raise SettingError(
                "data.questions names a file, but tasks.questions is 0; give it a weight, such as 0.1"
            )

    @property
    def conversations(self) -> Sequence[Conversation]:
        """Those of the file, none without one."""
        return self.questions.conversations if self.questions else ()

    @cached_property
    def counts(self) -> Mapping[Task, int]:
        """Examples of each task in an epoch; at least one where the weight is above 0."""
        weights: dict[Task, float] = {task: getattr(self.tasks, task) for task in DRAWN}
        n = len(self.samples)
        counts: dict[Task, int] = {"segment": n}
        return counts | {task: max(1, round(n * weight)) if weight else 0 for task, weight in weights.items()}

    def __len__(self) -> int:
        return sum(self.counts.values())

    def order(self, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
        """The numbers of all examples in the order of an epoch, over which each task is spread evenly.

        The samples come as `epoch_order` has them, so that another task does not change their order.
        """
        first, places, numbers = 0, [], []
        for task, count in self.counts.items():
            drawn = task != "segment"
            own = np.arange(count) if drawn else epoch_order(count, seed, epoch)
            numbers.append(first + own)
            places.append((np.arange(count) + drawn / 2) / max(1, count))
            first += count
        return np.concatenate(numbers)[np.argsort(np.concatenate(places), kind="stable")]

    def load(
        self,
        number: int,
        seed: int,
        epoch: int,
        rng: np.random.Generator,
        reader: FrameReader | None = None,
    ) -> Item:
        """An example in memory. `rng` is its own, and draws what seed, epoch and number do not decide alone.

        DataError as for `load_item`.
        """
        task, place = self.task_of(number)
        place += epoch * self.counts[task]
        match task:
            case "segment":
                return self._answered([self.samples[number]], reader)
            case "negatives":
                return self._load_negative(_deal(self._lacking, place, [seed, 1]), rng, reader)
            case "clips":
                frames = _deal(self._sequences, place, [seed, 2])
                picked = rng.choice(len(frames), min(self.tasks.frames, len(frames)), replace=False)
                return self._answered([frames[each] for each in sorted(picked.tolist())], reader)
            case "questions":
                return _deal(self.conversations, place, [seed, 3]).load()

    def task_of(self, number: int) -> tuple[Task, int]:
        """The task of an example, and its place among those of that task."""
        for task, count in self.counts.items():
            if number < count:
                return task, number
            number -= count
        raise IndexError("an epoch has fewer examples")

    def _answered(self, frames: Sequence[Sample], reader: FrameReader | None) -> Item:
        """An image or clip with its masks, and the places of phrases that are to be answered with words."""
        item = load_item(frames[0], reader) if len(frames) == 1 else load_clip(frames, reader)
        if self.tasks.absent == "mask" or item.masks is None:
            return item
        absent = (
            place
            for place, phrase in enumerate(item.prompts)
            if not item.masks[place].any() and all(_may_be_absent(frame, phrase) for frame in frames)
        )
        return replace(item, absent=frozenset(absent))

    def _load_negative(self, sample: Sample, rng: np.random.Generator, reader: FrameReader | None) -> Item:
        """The image with one phrase that it lacks."""
        others = [phrase for phrase in self.phrases if phrase not in sample.prompts]
        phrase = others[rng.integers(len(others))]
        return self._answered([replace(sample, prompts=(phrase,), masks=((Absent(),),))], reader)

    @cached_property
    def phrases(self) -> tuple[str, ...]:
        """All phrases of the samples, in order of first appearance."""
        return tuple(dict.fromkeys(phrase for sample in self.samples for phrase in sample.prompts))

    @cached_property
    def _lacking(self) -> list[Sample]:
        """Samples that lack a phrase of others."""
        return [sample for sample in self.samples if not set(self.phrases) <= set(sample.prompts)]

    @cached_property
    def _sequences(self) -> list[list[Sample]]:
        """Frames of each sequence of several, all of which have a phrase in common."""
        frames: dict[str, list[Sample]] = {}
        for sample in self.samples:
            if sample.sequence is not None:
                frames.setdefault(sample.sequence, []).append(sample)
        return [each for each in frames.values() if len(each) > 1 and common_phrases(each)]

    def notes(self) -> list[str]:
        """A line with counts for each task that is learned besides, and what it supposes."""
        lines, counts, n = [], self.counts, len(self.samples)
        if self.tasks.absent == "words":
            masks = [objects for sample in self.samples for objects in sample.masks or ()]
            absent = sum(all(isinstance(each, Absent) for each in objects) for objects in masks)
            lines.append(f"phrases annotated as absent, answered without [SEG]: {absent} of {len(masks)}")
        if counts["negatives"]:
            lines.append(
                f"negatives: {counts['negatives']} an epoch beside {n} samples, about the {len(self._lacking)} images that "
                f"lack one of {len(self.phrases)} phrases; supposes that what an image's annotation lacks is not in it"
            )
        if counts["clips"]:
            named = {sample.sequence for sample in self.samples} - {None}
            left = len(named) - len(self._sequences)
            lines.append(
                f"clips: {counts['clips']} an epoch beside {n} samples, of at most {self.tasks.frames} frames, from "
                f"{len(self._sequences)} sequences; left out, with one frame or no common phrase: {left}"
            )
        if self.questions is not None:
            images = len({each.sample.image for each in self.conversations})
            lines.append(
                f"questions: {counts['questions']} an epoch beside {n} samples, from {len(self.conversations)} "
                f"conversations about {images} images"
            )
            lines += self.questions.notes
        return lines

    def fingerprint(self) -> str:
        """SHA-256 of all that the examples are made from: `fingerprint_samples` where there are samples alone."""
        parts = [fingerprint_samples(self.samples)]
        if self.tasks.clips:
            parts.append(json.dumps([sample.sequence for sample in self.samples]))
        if self.questions is not None:
            parts.append(self.questions.fingerprint())
        return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def check_sizes(self, sizes: Mapping[str, Size]) -> None:
        """ImageError where frames that a clip may hold differ in size; `sizes` (h, w) by the id of a sample."""
        for frames in self._sequences if self.tasks.clips else ():
            _check_one_size(frames, [sizes[frame.id] for frame in frames])


def open_mixture(
    samples: Sequence[Sample], tasks: TaskSettings, questions: Path | None, overfit: bool
) -> Mixture:
    """The examples of a run; of one that overfits those of the samples alone. Errors as for `read_questions`."""
    if overfit:
        return Mixture(samples, TaskSettings(absent=tasks.absent))
    return Mixture(samples, tasks, read_questions(questions) if questions else None)


def load_clip(frames: Sequence[Sample], reader: FrameReader | None = None) -> Item:
    """Frames of a sequence as one item: pixels uint8 (f, h, w, 3), and masks bool (n, f, h, w) of the phrases that
    all of them have.

    Its id names the sequence and the frames. ImageError where the frames differ in size, else as for `load_item`.
    """
    items = [load_item(frame, reader) for frame in frames]
    _check_one_size(frames, [item.size for item in items])
    prompts = common_phrases(frames)
    masks = [
        [item.masks[item.prompts.index(phrase), 0] for item in items if item.masks is not None]
        for phrase in prompts
    ]
    name = f"{frames[0].sequence} ({', '.join(frame.id for frame in frames)})"
    return Item(name, np.concatenate([item.frames for item in items]), prompts, np.array(masks))


def common_phrases(frames: Sequence[Sample]) -> tuple[str, ...]:
    """Phrases that all frames have, absent or not, in the order of the first."""
    return tuple(phrase for phrase in frames[0].prompts if all(phrase in frame.prompts for frame in frames))


def _deal(pool: Sequence[T], place: int, seed: Sequence[int]) -> T:
    """The card at a place of an endless row of packs, each all of `pool` in another order."""
    pack, at = divmod(place, len(pool))
    return pool[int(np.random.default_rng([*seed, pack, 0]).permutation(len(pool))[at])]


def _check_one_size(frames: Sequence[Sample], sizes: Sequence[Size]) -> None:
    for frame, size in zip(frames, sizes, strict=True):
        if size != sizes[0]:
            raise ImageError(
                f"{frame.id}: has {size[0]} x {size[1]} pixels (h x w), but {frames[0].id} of the same sequence has "
                f"{sizes[0][0]} x {sizes[0][1]}; name another sequence, or set tasks.clips to 0"
            )


def _may_be_absent(sample: Sample, phrase: str) -> bool:
    """Whether an empty mask of the phrase says that it is not there: null, or a mask file, but no polygon."""
    objects = (sample.masks or ())[sample.prompts.index(phrase)]
    return all(isinstance(each, Absent | MaskFile) for each in objects)
