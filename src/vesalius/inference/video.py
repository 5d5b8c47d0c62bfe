"""`VideoPredictor`: a predictor that also answers a prompt about a clip as a whole, with a mask on each of its frames.

`official` follows the official code: the language model sees the first five frames, and Sa2VA's use of SAM 2's memory
propagates the masks. `sam2` follows Sa2VA-i (arXiv 2509.19082): the language model sees five frames spread over the
clip, [SEG] is decoded on key frames as in training, and SAM 2's own memory segments the other frames. Sa2VA-i also
uses SAM 2's own mask decoder there. No Sa2VA model contains it, so the model's own decoder is used for all frames.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vesalius.data.clips import Clip, open_clip
from vesalius.errors import DataError, SettingError
from vesalius.inference.predictor import Predictor
from vesalius.mask_maps import LowRes
from vesalius.models.batch import Batch
from vesalius.models.memory import FrameMasks, Tracker, VideoSession
from vesalius.models.official_prompt import SEEN_FRAMES
from vesalius.models.processor import Processor
from vesalius.segmenter import FramePredictions, Propagation
from vesalius.types import Prediction, Status

KEY_FRAMES = 5
"""Key frames in memory at a time, those nearest to the current frame: as many as Sa2VA-i uses."""

Followed = tuple[int, np.ndarray | DataError, FrameMasks | None]
"""Index of a frame, its pixels or the error of reading it, and its masks, one for each [SEG]; None without masks."""


class VideoPredictor(Predictor):
    """A text-prompted model that also propagates masks through clips."""

    def predict_video(
        self,
        clip: str | Path | Sequence[Any],
        prompts: Sequence[str],
        *,
        propagation: Propagation = "sam2",
        key_frames: Sequence[int] = (),
        reprompt_every: int | None = None,
    ) -> Iterator[FramePredictions]:
        """The predictions for each frame of a clip as they are found: in order, except that the frames before the first
        key frame come first, backwards.

        `clip` is a video, a cine, a folder of images, or a sequence of frames (samples, paths, PIL images or arrays).
        Frames are read one by one, so memory does not grow with the clip. With `sam2` the key frames are those that
        the language model sees, unless `key_frames` lists others or `reprompt_every` sets one key frame in so many.

        A frame that cannot be read, or has another size than the first, is `failed`; the others are predicted without
        it. SettingError for settings and prompts that do not fit; ImageError if no frame for the language model can be
        read; CheckpointError for a model without memory.
        """
        if not prompts:
            raise SettingError("no prompt is given; give at least one", code="bad_value", field="prompts")
        opened = open_clip(clip)
        keys = self._choose_keys(len(opened), propagation, key_frames, reprompt_every)
        return _predict(self, opened, prompts, keys)

    def check_video(
        self,
        n_frames: int,
        *,
        propagation: Propagation = "sam2",
        key_frames: Sequence[int] = (),
        reprompt_every: int | None = None,
    ) -> None:
        """As in the base class; tiles, test-time augmentation and the feature cache work on single frames only."""
        self._choose_keys(n_frames, propagation, key_frames, reprompt_every)

    def _choose_keys(
        self, n_frames: int, propagation: Propagation, key_frames: Sequence[int], reprompt_every: int | None
    ) -> list[int] | None:
        """Key frames in order; None for `official`, which has none."""
        for name, flag, value in (
            ("tiles", "--tiles", self.tiles),
            ("test-time augmentation", "--tta", self.views),
            ("the feature cache", "--cache", self.cache),
        ):
            if value:
                raise SettingError(
                    f"{name} cannot be combined with propagation through a clip; predict its frames independently, or "
                    f"leave {flag} out",
                    code="conflicting_settings",
                    field="propagation",
                )
        return choose_keys(n_frames, propagation, key_frames, reprompt_every)


def choose_keys(
    frames: int, propagation: Propagation, key_frames: Sequence[int] = (), reprompt_every: int | None = None
) -> list[int] | None:
    """Key frames in order; None for `official`, which has none. SettingError for settings that do not fit."""

    def refuse(message: str, field: str, code: str = "bad_value") -> SettingError:
        return SettingError(message, code=code, field=field)

    if propagation not in ("official", "sam2"):
        raise refuse(f"propagation {propagation!r} is unknown; choose official or sam2", "propagation")
    if key_frames and reprompt_every is not None:
        raise refuse("give key_frames or reprompt_every, not both", "key_frames", "conflicting_settings")
    if reprompt_every is not None and reprompt_every < 1:
        raise refuse(f"reprompt_every must be at least 1; got {reprompt_every}", "reprompt_every")
    if wrong := [key for key in key_frames if not 0 <= key < frames]:
        raise refuse(
            f"key frame {wrong[0]} does not exist: the clip has {frames} frames, numbered from 0",
            "key_frames",
        )
    if propagation == "official":
        if key_frames or reprompt_every is not None:
            raise refuse(
                "propagation official has no key frames; choose propagation sam2",
                "propagation",
                "conflicting_settings",
            )
        return None
    if reprompt_every is not None:
        return list(range(0, frames, reprompt_every))
    return sorted(set(key_frames)) or spread(frames)


def spread(frames: int) -> list[int]:
    """Indices of the frames that the language model sees for `sam2`: five evenly spaced, or all of a shorter clip."""
    return np.linspace(0, frames - 1, min(frames, SEEN_FRAMES), dtype=int).tolist()


def nearest_keys(keys: Sequence[int], frame: int) -> list[int]:
    """The key frames in SAM 2's memory for a frame, chosen from `keys` in order; at most `KEY_FRAMES`.

    They are the last key frame before it, the first at or after it, and then the nearest others.
    """
    index = bisect_left(keys, frame)
    near = keys[max(0, index - KEY_FRAMES) : index + KEY_FRAMES]
    beside = keys[max(0, index - 1) : index + 1]
    others = sorted((key for key in near if key not in beside), key=lambda key: abs(key - frame))
    return sorted([*beside, *others[: KEY_FRAMES - len(beside)]])


def _predict(
    predictor: Predictor, clip: Clip, prompts: Sequence[str], keys: list[int] | None
) -> Iterator[FramePredictions]:
    with clip:
        yield from _predict_frames(predictor, clip, prompts, keys)


def _predict_frames(
    predictor: Predictor, clip: Clip, prompts: Sequence[str], keys: list[int] | None
) -> Iterator[FramePredictions]:
    seen = clip.read_some(range(min(len(clip), SEEN_FRAMES)) if keys is None else spread(len(clip)))
    answers = _ask(predictor, seen, prompts)
    n_seen = len(seen)
    del seen
    if not len(answers.embeddings):
        followed = _read_frames(clip)
    elif keys is None:
        followed = _follow_officially(predictor, clip, answers.embeddings, n_seen)
    else:
        followed = _Follower(predictor, clip, answers.embeddings, keys).follow()
    for index, pixels, masks in followed:
        name = clip.name(index)
        if isinstance(pixels, DataError):
            yield FramePredictions(index, None, answers.of_failure(name, pixels))
        else:
            yield FramePredictions(index, pixels, answers.of_frame(name, masks))


@dataclass(frozen=True)
class _Answers:
    """The language model's answers about a clip."""

    spoken: list[Prediction]
    """For each prompt the prediction of a frame without masks."""
    input_size: int
    embeddings: torch.Tensor
    """float (n, c): one for each [SEG]."""
    prompt_of: np.ndarray
    """int64 (n,): the index of the prompt that each [SEG] answers."""

    def of_frame(self, name: str, masks: FrameMasks | None) -> list[Prediction]:
        """The predictions for a frame with these masks."""
        if masks is None:
            return [replace(each, id=name) for each in self.spoken]
        maps, scores = masks.logits.float().cpu().numpy(), masks.scores.amax(dim=-1).float().tolist()
        predictions = []
        for index, each in enumerate(self.spoken):
            mine = np.flatnonzero(self.prompt_of == index)
            status: Status = "ok" if len(mine) else "no_seg"
            best = tuple(scores[i] for i in mine)
            logits = LowRes(maps[mine], self.input_size)
            predictions.append(replace(each, id=name, status=status, maps=logits, scores=best))
        return predictions

    def of_failure(self, name: str, error: DataError) -> list[Prediction]:
        """The predictions for a frame that could not be read."""
        return [Prediction.failure(name, each.prompt, each.size, error) for each in self.spoken]


@torch.inference_mode()
def _ask(predictor: Predictor, frames: Sequence[np.ndarray], prompts: Sequence[str]) -> _Answers:
    """Ask every prompt about the frames that the language model sees, `predictor.batch_size` prompts at a time."""
    processor, parameter = predictor.processor, next(predictor.model.parameters())
    pictures = [Image.fromarray(frame) for frame in frames]
    size = frames[0].shape[0], frames[0].shape[1]
    spoken: list[Prediction] = []
    embeddings: list[torch.Tensor] = []
    prompt_of: list[int] = []
    for start in range(0, len(prompts), predictor.batch_size):
        some = prompts[start : start + predictor.batch_size]
        batch = read_questions(processor, pictures, some, answered=predictor.answer == "force")
        answer = predictor.answer_batch(batch.to(parameter.device, parameter.dtype))
        embeddings.append(answer.seg.embedding)
        prompt_of += [start + row for row in answer.seg.row.tolist()]
        spoken += [replace(predictor.say(answer, row, prompt), size=size) for row, prompt in enumerate(some)]
    prompts_of_seg = np.array(prompt_of, dtype=np.int64)
    return _Answers(spoken, processor.spec.sam_size, torch.cat(embeddings), prompts_of_seg)


def read_questions(
    processor: Processor, frames: Sequence[Image.Image], phrases: Sequence[str], *, answered: bool = False
) -> Batch:
    """One row for each phrase, about the same frames of a clip; `answered` as for `Processor`.

    The image tokens of the frames are joined as in the official code. SettingError as for `Processor`.
    """
    for phrase in phrases:
        processor.check_phrase(phrase)
    pixels = processor.family.read_frames(frames, processor.spec)
    template = processor.spec.prompt
    answer = template.answer() if answered else None
    rows = [(0, *processor.encode([(template.ask(phrase), answer)], pixels)) for phrase in phrases]
    # the frames for SAM 2 are loaded later, one by one
    batch = processor.make_batch(rows, [pixels], [[]], [(frames[0].height, frames[0].width)])
    return replace(batch, frames_per_batch=[len(frames)])


def _read_frames(clip: Clip) -> Iterator[Followed]:
    """Each frame, without masks."""
    for index in range(len(clip)):
        try:
            yield index, clip.read(index), None
        except DataError as error:
            yield index, error, None


def _follow_officially(
    predictor: Predictor, clip: Clip, embeddings: torch.Tensor, prompted: int
) -> Iterator[Followed]:
    session = VideoSession(predictor.model.sam, embeddings, prompted)
    for index, pixels, _ in _read_frames(clip):
        masks = None if isinstance(pixels, DataError) else session.segment(_square(predictor, pixels))
        yield index, pixels, masks


def _square(predictor: Predictor, pixels: np.ndarray) -> torch.Tensor:
    square = predictor.processor.for_segmenter(Image.fromarray(pixels))
    return square[None].to(next(predictor.model.parameters()))


class _Follower:
    """Propagates masks through a clip: for each frame the nearest key frames are segmented first, then the frame."""

    def __init__(self, predictor: Predictor, clip: Clip, embeddings: torch.Tensor, keys: list[int]) -> None:
        threshold = predictor.threshold
        self._predictor = predictor
        self._clip = clip
        self._tracker = Tracker(
            predictor.model.sam, embeddings, logit_threshold=math.log(threshold) - math.log1p(-threshold)
        )
        self._keys = list(keys)
        self._known: dict[int, tuple[np.ndarray, FrameMasks]] = {}

    def follow(self) -> Iterator[Followed]:
        """Every frame; ImageError if no key frame can be read."""
        self._look_ahead(self._keys[0])
        first = self._keys[0]
        if first:
            self._tracker.reverse()
            for index in reversed(range(first)):
                yield self._at(index)
            self._tracker.reverse()
        for index in range(first, len(self._clip)):
            yield self._at(index)

    def _at(self, index: int) -> Followed:
        self._look_ahead(index)
        if index in self._known:
            return index, *self._known[index]
        try:
            pixels = self._clip.read(index)
        except DataError as error:
            return index, error, None
        return index, pixels, self._tracker.propagate(index, _square(self._predictor, pixels))

    def _look_ahead(self, index: int) -> None:
        """Keep the key frames nearest to a frame in memory, and no others.

        A key frame that cannot be read is replaced by the next frame.
        """
        while missing := [key for key in nearest_keys(self._keys, index) if key not in self._known]:
            key = missing[0]
            try:
                pixels = self._clip.read(key)
            except DataError:  # reported in its turn, by `_at`
                self._keys.remove(key)
                if key + 1 < len(self._clip) and key + 1 not in self._keys:
                    insort(self._keys, key + 1)
                if not self._keys:
                    raise
                continue
            self._known[key] = pixels, self._tracker.prompt(key, _square(self._predictor, pixels))
        for key in set(self._known) - set(nearest_keys(self._keys, index)):
            del self._known[key]
            self._tracker.forget(key)
