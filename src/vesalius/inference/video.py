"""A question about a clip as a whole, answered with a mask on each of its frames.

`official` is what the official code does: the language model sees the first five frames, and Sa2VA's way of using SAM
2's memory carries the masks on. `sam2` follows Sa2VA-i (arXiv 2509.19082): the language model sees five frames spread
over the clip, [SEG] is decoded on key frames as in training, and SAM 2's own memory finds the objects in the others.
Sa2VA-i also goes back to SAM 2's own mask decoder for that, which no Sa2VA model holds: the model's decoder does both.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from vesalius.cleaning import CleanedPrediction
from vesalius.data.clips import Clip, open_clip
from vesalius.errors import DataError, SettingError
from vesalius.models.batch import NOT_LEARNED, Batch
from vesalius.models.memory import FrameMasks, Tracker, VideoSession
from vesalius.models.official_prompt import SEEN_FRAMES
from vesalius.models.processor import Processor
from vesalius.types import Prediction, Status

if TYPE_CHECKING:
    from vesalius.inference.predictor import Predictor

Propagation = Literal["official", "sam2"]

KEY_FRAMES = 5
"""Key frames that are remembered at a time, those nearest to the frame that is looked at: as many as Sa2VA-i has."""


@dataclass(frozen=True)
class FramePredictions:
    """One frame of a clip."""

    index: int
    pixels: UInt8[np.ndarray, "h w 3"] | None
    """None where the frame could not be read."""
    predictions: list[Prediction]
    """One for each prompt; their id is the frame's."""


Followed = tuple[int, np.ndarray | DataError, FrameMasks | None]
"""A frame, its pixels or why it has none, and its masks, one for each [SEG]; None where it has none."""


def predict_video(
    predictor: Predictor,
    clip: str | Path | Sequence[Any],
    prompts: Sequence[str],
    *,
    propagation: Propagation = "sam2",
    key_frames: Sequence[int] = (),
    reprompt_every: int | None = None,
) -> Iterator[FramePredictions]:
    """What each frame of a clip shows, as it is found out: in order, but first those before the first key frame, from
    there back.

    `clip` is a video, a cine, a folder of images, or a sequence of frames (samples, paths, PIL images or arrays), of
    which each is asked for when it is needed; what is held does not grow with the clip. Key frames of `sam2` are those
    that the language model sees, unless `key_frames` names others or `reprompt_every` makes each so many frames one.

    A frame that cannot be read, or has another size than the first, is `failed`, and the others go on without it.
    SettingError for settings and prompts that do not fit; ImageError where no frame that must be seen can be read;
    CheckpointError for a model without memory.
    """
    if not prompts:
        raise SettingError("there is nothing to ask: no prompt")
    check_whole(predictor)
    opened = open_clip(clip)
    keys = choose_keys(len(opened), propagation, key_frames, reprompt_every)
    return _predict(predictor, opened, prompts, keys)


def check_whole(predictor: Predictor) -> None:
    """Raise SettingError for a baseline, and for a predictor that looks at windows or views of a frame, or keeps its
    features."""
    if not hasattr(predictor, "predict_video"):
        raise SettingError(
            f"{predictor.card['name']}: has no memory of a clip; predict its frames one by one, or with a "
            "text-prompted model"
        )
    if predictor.tiles is not None:
        raise SettingError("tiles have no memory of a clip; predict its frames one by one, or without tiles")
    if predictor.views:
        raise SettingError(
            "test-time augmentation has no memory of a clip; predict its frames one by one, or without --tta"
        )
    if predictor.cache is not None:
        raise SettingError(
            "a cache of features is for images and single frames; predict the frames of a clip one by one, or "
            "without --cache"
        )


def choose_keys(
    frames: int, propagation: Propagation, key_frames: Sequence[int] = (), reprompt_every: int | None = None
) -> list[int] | None:
    """Key frames in order; None for the official procedure, which has none. SettingError where they do not fit."""
    if propagation not in ("official", "sam2"):
        raise SettingError(f"propagation {propagation!r} is unknown; choose official or sam2")
    if key_frames and reprompt_every is not None:
        raise SettingError("give key_frames or reprompt_every, not both")
    if reprompt_every is not None and reprompt_every < 1:
        raise SettingError(f"reprompt_every must be at least 1; got {reprompt_every}")
    if wrong := [key for key in key_frames if not 0 <= key < frames]:
        raise SettingError(f"there is no frame {wrong[0]} to be a key frame: the clip has {frames}, from 0")
    if propagation == "official":
        if key_frames or reprompt_every is not None:
            raise SettingError("the official procedure has no key frames; choose propagation sam2")
        return None
    if reprompt_every is not None:
        return list(range(0, frames, reprompt_every))
    return sorted(set(key_frames)) or spread(frames)


def spread(frames: int) -> list[int]:
    """The frames that the language model sees for `sam2`: five from the first to the last, all of a shorter clip."""
    return np.linspace(0, frames - 1, min(frames, SEEN_FRAMES), dtype=int).tolist()


def nearest_keys(keys: Sequence[int], frame: int) -> list[int]:
    """The key frames, of all in order, that SAM 2 looks at from a frame.

    The last before it, the first that is not, and then the nearest, `KEY_FRAMES` in all.
    """
    place = bisect_left(keys, frame)
    near = keys[max(0, place - KEY_FRAMES) : place + KEY_FRAMES]
    beside = keys[max(0, place - 1) : place + 1]
    others = sorted((key for key in near if key not in beside), key=lambda key: abs(key - frame))
    return sorted([*beside, *others[: KEY_FRAMES - len(beside)]])


def _predict(
    predictor: Predictor, clip: Clip, prompts: Sequence[str], keys: list[int] | None
) -> Iterator[FramePredictions]:
    seen = clip.read_some(range(min(len(clip), SEEN_FRAMES)) if keys is None else spread(len(clip)))
    answers = _ask(predictor, seen, prompts)
    n_seen = len(seen)
    del seen
    if not len(answers.embeddings):
        followed = _look_at(clip)
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
    """What the language model said of a clip."""

    said: list[Prediction]
    """For each prompt the prediction of a frame without masks."""
    embeddings: torch.Tensor
    """float (n, c): one for each [SEG]."""
    prompt_of: np.ndarray
    """int64 (n,): the prompt that each answers."""

    def of_frame(self, name: str, masks: FrameMasks | None) -> list[Prediction]:
        """The predictions of a frame whose masks these are."""
        if masks is None:
            return [replace(each, id=name) for each in self.said]
        maps, scores = masks.logits.float().cpu().numpy(), masks.scores.amax(dim=-1).float().tolist()
        predictions = []
        for index, each in enumerate(self.said):
            mine = np.flatnonzero(self.prompt_of == index)
            status: Status = "ok" if len(mine) else "no_seg"
            best = tuple(scores[i] for i in mine)
            predictions.append(replace(each, id=name, status=status, logits=maps[mine], scores=best))
        return predictions

    def of_failure(self, name: str, error: DataError) -> list[Prediction]:
        """The predictions of a frame that could not be read."""
        reason = " ".join(str(error).split())
        return [
            replace(each, id=name, status="failed", text="", says_seg=False, answered="", error=reason)
            for each in self.said
        ]


@torch.inference_mode()
def _ask(predictor: Predictor, frames: Sequence[np.ndarray], prompts: Sequence[str]) -> _Answers:
    """Every question about the frames that the language model sees, `predictor.batch` of them together."""
    processor, parameter = predictor.processor, next(predictor.model.parameters())
    pictures = [Image.fromarray(frame) for frame in frames]
    nothing = np.zeros((0, 1, 1), dtype=np.float32)
    size = frames[0].shape[0], frames[0].shape[1]
    said: list[Prediction] = []
    embeddings: list[torch.Tensor] = []
    prompt_of: list[int] = []
    for start in range(0, len(prompts), predictor.batch):
        some = prompts[start : start + predictor.batch]
        batch = read_questions(processor, pictures, some, answered=predictor.answer == "force")
        answer = predictor.answer_batch(batch.to(parameter.device, parameter.dtype))
        embeddings.append(answer.seg.embedding)
        prompt_of += [start + row for row in answer.seg.row.tolist()]
        for row, (prompt, says_seg) in enumerate(zip(some, answer.says_seg.tolist(), strict=True)):
            each = Prediction(
                id="",
                prompt=prompt,
                status="no_seg",
                size=size,
                logits=nothing,
                input_size=processor.spec.sam_size,
                text=processor.text(answer.ids[row]),
                says_seg=says_seg,
                answered=answer.origins[row],
                threshold=predictor.threshold,
            )
            cleaning = predictor.cleaning
            said.append(each if cleaning is None else CleanedPrediction(**vars(each), cleaning=cleaning))
    return _Answers(said, torch.cat(embeddings), np.array(prompt_of, dtype=np.int64))


def read_questions(
    processor: Processor, frames: Sequence[Image.Image], phrases: Sequence[str], *, answered: bool = False
) -> Batch:
    """One row for each phrase, about the same frames of a clip; `answered` as for `Processor`.

    Frames are put into words as the official code does it. SettingError as for `Processor`.
    """
    for phrase in phrases:
        processor.check_phrase(phrase)
    spec = processor.spec
    pixels = processor.family.read_frames(frames, spec)
    clip = processor.image_text(pixels)
    answer = processor.template_answer() if answered else []
    rows = []
    for phrase in phrases:
        ids = processor.tokenizer.encode(spec.prompt.before_answer(spec.prompt.ask(phrase), clip))
        rows.append((ids + answer, [NOT_LEARNED] * len(ids) + answer))
    ids, labels, attention = processor.pad(rows)
    return Batch(
        input_ids=ids,
        attention_mask=attention,
        labels=labels,
        pixel_values=pixels.values,
        image_grid_thw=pixels.grid,
        g_pixel_values=[],
        masks=[],
        image_of_row=torch.zeros(len(phrases), dtype=torch.int64),
        tiles_of_image=[pixels.parts],
        frames_per_batch=[len(frames)],
        sizes=[(frame.height, frame.width) for frame in frames],
    )


def _look_at(clip: Clip) -> Iterator[Followed]:
    """Each frame, where there is nothing to follow."""
    for index in range(len(clip)):
        try:
            yield index, clip.read(index), None
        except DataError as error:
            yield index, error, None


def _follow_officially(
    predictor: Predictor, clip: Clip, embeddings: torch.Tensor, prompted: int
) -> Iterator[Followed]:
    session = VideoSession(predictor.model.sam, embeddings, prompted)
    for index, pixels, _ in _look_at(clip):
        masks = None if isinstance(pixels, DataError) else session.segment(_square(predictor, pixels))
        yield index, pixels, masks


def _square(predictor: Predictor, pixels: np.ndarray) -> torch.Tensor:
    square = predictor.processor.for_segmenter(Image.fromarray(pixels))
    return square[None].to(next(predictor.model.parameters()))


class _Follower:
    """Follows objects through a clip: the key frames nearest to each frame are looked at first, then the frame."""

    def __init__(self, predictor: Predictor, clip: Clip, embeddings: torch.Tensor, keys: list[int]) -> None:
        threshold = predictor.threshold
        self._predictor = predictor
        self._clip = clip
        self._tracker = Tracker(
            predictor.model.sam, embeddings, border=math.log(threshold) - math.log1p(-threshold)
        )
        self._keys = list(keys)
        self._known: dict[int, tuple[np.ndarray, FrameMasks]] = {}

    def follow(self) -> Iterator[Followed]:
        """Every frame; ImageError where no key frame can be read."""
        self._look_ahead(self._keys[0])
        first = self._keys[0]
        if first:
            self._tracker.turn()
            for index in reversed(range(first)):
                yield self._at(index)
            self._tracker.turn()
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
        return index, pixels, self._tracker.follow(index, _square(self._predictor, pixels))

    def _look_ahead(self, index: int) -> None:
        """Know the key frames nearest to a frame, and no others; one that cannot be read gives way to the next."""
        while missing := [key for key in nearest_keys(self._keys, index) if key not in self._known]:
            key = missing[0]
            try:
                pixels = self._clip.read(key)
            except DataError:  # told of when its turn comes
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
