"""The training mixture: in each epoch every sample once as referring segmentation, plus examples of other tasks."""

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
from vesalius.training.conversations import Conversation, ConversationFile, read_conversations
from vesalius.types import Absent, Item, MaskFile, Sample
from vesalius.window import AUTO, Window

TaskName = Literal["segment", "negatives", "clips", "conversations"]
T = TypeVar("T")
EXTRA_TASKS: tuple[TaskName, ...] = ("negatives", "clips", "conversations")
"""Tasks besides referring segmentation, in the order of their example indices."""


class TaskSettings(Settings):
    """Tasks besides referring segmentation. A weight is the number of examples per training sample: 0.2 adds 20 %.

    Referring segmentation has weight 1: every phrase of every sample is a prompt once per epoch.
    """

    negatives: float = Field(default=0.0, ge=0, le=10)
    """Negatives: an image prompted with another image's phrase that it lacks; `absent` sets the answer. They require complete
    annotations, in which unlisted phrases are truly absent."""
    clips: float = Field(default=0.0, ge=0, le=10)
    """Clips: several frames of one sequence; one [SEG] per phrase gives the masks in all frames."""
    frames: int = Field(default=5, ge=2)
    """Frames per clip, sampled anew in each epoch; a shorter sequence uses all frames."""
    conversations: float = Field(default=0.0, ge=0, le=10)
    """Conversations from `data.conversations`; the model is trained on the text of their answers."""
    absent: Literal["mask", "words"] = "mask"
    """Answer to an absent phrase: `mask` is [SEG] with an empty mask, `words` is text without [SEG]."""


@dataclass(frozen=True)
class Mixture:
    """The examples of an epoch by index: first the samples in order, then the examples of each task in `EXTRA_TASKS`."""

    samples: Sequence[Sample]
    tasks: TaskSettings
    conversation_file: ConversationFile | None = None

    def __post_init__(self) -> None:
        """Raise SettingError if a task has a weight but no examples, or conversations have no weight."""
        pools: dict[TaskName, tuple[Sequence[object], str]] = {
            "negatives": (self._lacking, "every image has every phrase"),
            "clips": (self._sequences, "no two frames of a sequence have a phrase in common"),
            "conversations": (self.conversations, "data.conversations names no file"),
        }
        for task, (pool, reason) in pools.items():
            if getattr(self.tasks, task) and not pool:
                raise SettingError(
                    f"tasks.{task} has a weight but no examples: {reason}", code="no_examples", field=f"tasks.{task}"
                )
        if self.conversations and not self.tasks.conversations:
            raise SettingError(
                "data.conversations names a file, but tasks.conversations is 0; give it a weight, such as 0.1",
                code="conflicting_settings",
                field="tasks.conversations",
            )

    @property
    def conversations(self) -> Sequence[Conversation]:
        """The conversations of `data.conversations`; empty without a file."""
        return self.conversation_file.conversations if self.conversation_file else ()

    @cached_property
    def counts(self) -> Mapping[TaskName, int]:
        """Number of examples of each task per epoch; at least one for each weight above 0."""
        weights: dict[TaskName, float] = {task: getattr(self.tasks, task) for task in EXTRA_TASKS}
        n = len(self.samples)
        counts: dict[TaskName, int] = {"segment": n}
        return counts | {task: max(1, round(n * weight)) if weight else 0 for task, weight in weights.items()}

    def __len__(self) -> int:
        return sum(self.counts.values())

    def order(self, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
        """Example indices in the order of an epoch, with each task spread evenly.

        Samples are in the order of `epoch_order`, which does not depend on the other tasks.
        """
        first, positions, numbers = 0, [], []
        for task, count in self.counts.items():
            extra = task != "segment"
            own = np.arange(count) if extra else epoch_order(count, seed, epoch)
            numbers.append(first + own)
            positions.append((np.arange(count) + extra / 2) / max(1, count))
            first += count
        return np.concatenate(numbers)[np.argsort(np.concatenate(positions), kind="stable")]

    def load(
        self, number: int, seed: int, epoch: int, rng: np.random.Generator, reader: FrameReader | None = None
    ) -> Item:
        """Load one example; `rng` makes its random choices and must be used for this example only.

        Raises DataError as `load_item` does.
        """
        task, index = self.task_of(number)
        index += epoch * self.counts[task]
        match task:
            case "segment":
                return self._load_frames([self.samples[number]], reader)
            case "negatives":
                return self._load_negative(_draw(self._lacking, index, [seed, 1]), rng, reader)
            case "clips":
                frames = _draw(self._sequences, index, [seed, 2])
                picked = rng.choice(len(frames), min(self.tasks.frames, len(frames)), replace=False)
                return self._load_frames([frames[each] for each in sorted(picked.tolist())], reader)
            case "conversations":
                return _draw(self.conversations, index, [seed, 3]).load()

    def task_of(self, number: int) -> tuple[TaskName, int]:
        """The task of an example, and the example's index within the task."""
        for task, count in self.counts.items():
            if number < count:
                return task, number
            number -= count
        raise IndexError(f"an epoch has only {len(self)} examples")

    def _load_frames(self, frames: Sequence[Sample], reader: FrameReader | None) -> Item:
        """An image or clip with masks; `Item.absent` holds the indices of phrases to be answered in words."""
        item = load_item(frames[0], reader) if len(frames) == 1 else load_clip(frames, reader)
        if self.tasks.absent == "mask" or item.masks is None:
            return item
        absent = (
            index
            for index, phrase in enumerate(item.prompts)
            if not item.masks[index].any() and all(_may_be_absent(frame, phrase) for frame in frames)
        )
        return replace(item, absent=frozenset(absent))

    def _load_negative(self, sample: Sample, rng: np.random.Generator, reader: FrameReader | None) -> Item:
        """The image with one phrase that it lacks, chosen by `rng`."""
        others = [phrase for phrase in self.phrases if phrase not in sample.prompts]
        phrase = others[rng.integers(len(others))]
        return self._load_frames([replace(sample, prompts=(phrase,), masks=((Absent(),),))], reader)

    @cached_property
    def phrases(self) -> tuple[str, ...]:
        """All phrases of the samples, in order of first appearance."""
        return tuple(dict.fromkeys(phrase for sample in self.samples for phrase in sample.prompts))

    @cached_property
    def _lacking(self) -> list[Sample]:
        """Samples that lack at least one phrase of the other samples."""
        return [sample for sample in self.samples if not set(self.phrases) <= set(sample.prompts)]

    @cached_property
    def _sequences(self) -> list[list[Sample]]:
        """Frames of each usable sequence: two or more frames with a common phrase."""
        frames: dict[str, list[Sample]] = {}
        for sample in self.samples:
            if sample.sequence is not None:
                frames.setdefault(sample.sequence, []).append(sample)
        return [each for each in frames.values() if len(each) > 1 and common_phrases(each)]

    def notes(self) -> list[str]:
        """One line per extra task, with its number of examples and its assumptions."""
        lines, counts, n = [], self.counts, len(self.samples)
        if self.tasks.absent == "words":
            masks = [objects for sample in self.samples for objects in sample.masks or ()]
            absent = sum(all(isinstance(each, Absent) for each in objects) for objects in masks)
            lines.append(f"phrases annotated as absent, answered without [SEG]: {absent} of {len(masks)}")
        if counts["negatives"]:
            lines.append(
                f"negatives: {counts['negatives']} per epoch besides {n} samples, from {len(self._lacking)} images that lack "
                f"one of {len(self.phrases)} phrases; assumes that phrases without annotation are absent"
            )
        if counts["clips"]:
            named = {sample.sequence for sample in self.samples} - {None}
            left = len(named) - len(self._sequences)
            lines.append(
                f"clips: {counts['clips']} per epoch besides {n} samples, of at most {self.tasks.frames} frames, from "
                f"{len(self._sequences)} sequences; skipped (one frame or no common phrase): {left}"
            )
        if self.conversation_file is not None:
            images = len({each.sample.image for each in self.conversations})
            lines.append(
                f"conversations: {counts['conversations']} per epoch besides {n} samples, from {len(self.conversations)} "
                f"conversations about {images} images"
            )
            lines += self.conversation_file.notes
        return lines

    def fingerprint(self) -> str:
        """SHA-256 of all data of the mixture; equals `fingerprint_samples` if it has only samples."""
        parts = [fingerprint_samples(self.samples)]
        if self.tasks.clips:
            parts.append(json.dumps([sample.sequence for sample in self.samples]))
        if self.conversation_file is not None:
            parts.append(self.conversation_file.fingerprint())
        return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def check_sizes(self, sizes: Mapping[str, Size]) -> None:
        """Raise ImageError if frames of one clip differ in size; `sizes` maps sample ids to (h, w)."""
        for frames in self._sequences if self.tasks.clips else ():
            _check_one_size(frames, [sizes[frame.id] for frame in frames])


def open_mixture(
    samples: Sequence[Sample], tasks: TaskSettings, conversations: Path | None, overfit: bool, window: Window = AUTO
) -> Mixture:
    """The mixture of a run; `window` is that of the images of conversations; an overfit test has no extra tasks. Raises AnnotationError as `read_conversations` does."""
    if overfit:
        return Mixture(samples, TaskSettings(absent=tasks.absent))
    return Mixture(samples, tasks, read_conversations(conversations, window) if conversations else None)


def load_clip(frames: Sequence[Sample], reader: FrameReader | None = None) -> Item:
    """Frames of a sequence as one item: uint8 (f, h, w, 3), and masks bool (n, f, h, w) of their common phrases.

    Its id names the sequence and the frames. Raises ImageError if the frames differ in size, and DataError as `load_item` does.
    """
    items = [load_item(frame, reader) for frame in frames]
    _check_one_size(frames, [item.size for item in items])
    prompts = common_phrases(frames)
    masks = [
        [item.masks[item.prompts.index(phrase), 0] for item in items if item.masks is not None] for phrase in prompts
    ]
    name = f"{frames[0].sequence} ({', '.join(frame.id for frame in frames)})"
    return Item(name, np.concatenate([item.frames for item in items]), prompts, np.array(masks))


def common_phrases(frames: Sequence[Sample]) -> tuple[str, ...]:
    """Phrases annotated in all frames, as present or absent, in the order of the first frame."""
    return tuple(phrase for phrase in frames[0].prompts if all(phrase in frame.prompts for frame in frames))


def _draw(pool: Sequence[T], index: int, seed: Sequence[int]) -> T:
    """Element `index` of an endless concatenation of random permutations of `pool`."""
    permutation, position = divmod(index, len(pool))
    return pool[int(np.random.default_rng([*seed, permutation, 0]).permutation(len(pool))[position])]


def _check_one_size(frames: Sequence[Sample], sizes: Sequence[Size]) -> None:
    for frame, size in zip(frames, sizes, strict=True):
        if size != sizes[0]:
            raise ImageError(
                f"{frame.id}: has {size[0]} x {size[1]} pixels (h x w), but {frames[0].id} of the same sequence has "
                f"{sizes[0][0]} x {sizes[0][1]}; assign it another sequence, or set tasks.clips to 0",
                code="size_mismatch",
                path=frame.image,
                field="tasks.clips",
            )


def _may_be_absent(sample: Sample, phrase: str) -> bool:
    """Whether an empty mask means an absent phrase: true for null and mask files, false for polygons."""
    objects = (sample.masks or ())[sample.prompts.index(phrase)]
    return all(isinstance(each, Absent | MaskFile) for each in objects)
