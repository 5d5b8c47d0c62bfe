"""`VideoPredictor`: a predictor that also segments clips, with masks propagated from frame to frame.

`official` follows the official code: the language model sees the first five frames, and Sa2VA's use of SAM 2's memory
propagates the masks. `sam2` follows Sa2VA-i (arXiv 2509.19082): the language model sees five frames spread over the
clip, [SEG] is decoded on key frames as in training, and SAM 2's own memory segments the other frames. Sa2VA-i decodes
those other frames with SAM 2's original mask decoder. No Sa2VA model contains it, so here the model's fine-tuned
decoder decodes all frames.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vesalius.calls import check_kind, checked
from vesalius.data.clips import Clip, open_clip
from vesalius.errors import DataError, SettingError
from vesalius.inference.loaded import check_prompt_list
from vesalius.inference.predictor import Predictor
from vesalius.mask_maps import LowRes
from vesalius.models.batch import Batch
from vesalius.models.memory import FrameMasks, Tracker, VideoSession
from vesalius.models.official_prompt import SEEN_FRAMES
from vesalius.models.processor import Processor
from vesalius.segmenter import FramePredictions, Propagation
from vesalius.types import Prediction, Status

KEY_FRAMES = 5
"""Maximum number of key frames in memory, as in Sa2VA-i; they are the nearest to the current frame."""

PropagatedFrame = tuple[int, np.ndarray | DataError, FrameMasks | None]
"""Frame index, pixels (or the read error), and masks, one per [SEG] (None without any)."""


class VideoPredictor(Predictor):
    """A text-prompted model that also propagates masks through clips."""

    @checked
    def predict_video(
        self,
        clip: str | Path | Sequence[Any],
        prompts: Sequence[str],
        *,
        propagation: Propagation = "sam2",
        key_frames: Sequence[int] = (),
        reprompt_every: int | None = None,
    ) -> Iterator[FramePredictions]:
        """Yield the predictions of each frame in order, except that the frames before the first key frame come first,
        in reverse order.

        `clip` is a video, a cine, a folder of images, or a sequence of frames (samples, paths, PIL images or arrays).
        Frames are read one by one, so memory does not grow with the clip. With `sam2` the key frames are those that
        the language model sees, unless `key_frames` lists them or `reprompt_every` gives their spacing.

        A frame that cannot be read, or differs in size from the first, is `failed`; the others are predicted without
        it. SettingError for invalid settings or prompts; ImageError if no frame for the language model can be read;
        CheckpointError for a model without memory.
        """
        check_kind(clip, Path | Sized, "clip", "the path of a clip, or a list of frames")
        prompts = check_prompt_list([prompts] if isinstance(prompts, str) else prompts)
        self.match_prompts(prompts)  # refuses, or notes, unknown phrases before any frame is read
        opened = open_clip(clip, self.window)
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
        """Raise SettingError for invalid settings, and with tiles, test-time augmentation or a feature cache."""
        self._choose_keys(n_frames, propagation, key_frames, reprompt_every)

    def _choose_keys(
        self, n_frames: int, propagation: Propagation, key_frames: Sequence[int], reprompt_every: int | None
    ) -> list[int] | None:
        if self.model_card.has_random_memory:
            raise SettingError(
                f"{self.name}: was trained from random weights without clips, so its video memory is untrained and masks "
                "cannot propagate; predict each frame (--propagation frames, the default)",
                code="not_supported",
                field="propagation",
            )
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
    """Sorted indices of the key frames; None for `official`, which has none. SettingError for invalid settings."""

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
            f"key frame {wrong[0]} does not exist: the clip has {frames} frames, numbered from 0", "key_frames"
        )
    if propagation == "official":
        if key_frames or reprompt_every is not None:
            raise refuse(
                "propagation official has no key frames; choose propagation sam2", "propagation", "conflicting_settings"
            )
        return None
    if reprompt_every is not None:
        return list(range(0, frames, reprompt_every))
    return sorted(set(key_frames)) or spread(frames)


def spread(frames: int) -> list[int]:
    """Indices of the frames that the language model sees with `sam2`: five, evenly spaced, or all of a shorter clip."""
    return np.linspace(0, frames - 1, min(frames, SEEN_FRAMES), dtype=int).tolist()


def nearest_keys(keys: Sequence[int], frame: int) -> list[int]:
    """Sorted key frames in SAM 2's memory for `frame`, at most `KEY_FRAMES` of the sorted `keys`.

    These are the last key frame before it, the first at or after it, and the nearest others.
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
        propagated = _read_frames(clip)
    elif keys is None:
        propagated = _propagate_officially(predictor, clip, answers.embeddings, n_seen)
    else:
        propagated = _Propagator(predictor, clip, answers.embeddings, keys).propagate()
    for index, pixels, masks in propagated:
        name = clip.name(index)
        if isinstance(pixels, DataError):
            yield FramePredictions(index, None, answers.of_failure(name, pixels))
        else:
            yield FramePredictions(index, pixels, answers.of_frame(name, masks), clip.windows.pop(index, None))


@dataclass(frozen=True)
class _Answers:
    """The language model's answers about a clip."""

    templates: list[Prediction]
    """Per prompt, a prediction without masks: the template for each frame."""
    input_size: int
    embeddings: torch.Tensor
    """[SEG] embeddings, float (n, c)."""
    prompt_of: np.ndarray
    """Index of the prompt that each [SEG] answers, int64 (n,)."""

    def of_frame(self, name: str, masks: FrameMasks | None) -> list[Prediction]:
        if masks is None:
            return [replace(each, id=name) for each in self.templates]
        maps, scores = masks.logits.float().cpu().numpy(), masks.scores.amax(dim=-1).float().tolist()
        predictions = []
        for index, each in enumerate(self.templates):
            mine = np.flatnonzero(self.prompt_of == index)
            status: Status = "ok" if len(mine) else "no_seg"
            best = tuple(scores[i] for i in mine)
            logits = LowRes(maps[mine], self.input_size)
            predictions.append(replace(each, id=name, status=status, maps=logits, scores=best))
        return predictions

    def of_failure(self, name: str, error: DataError) -> list[Prediction]:
        return [
            replace(
                Prediction.failure(name, each.prompt, each.size, error),
                phrase=each.phrase,
                unknown_phrase=each.unknown_phrase,
            )
            for each in self.templates
        ]


@torch.inference_mode()
def _ask(predictor: Predictor, frames: Sequence[np.ndarray], prompts: Sequence[str]) -> _Answers:
    """Answers to all prompts about `frames`, in batches of `predictor.batch_size` prompts."""
    processor, parameter = predictor.processor, next(predictor.model.parameters())
    pictures = [Image.fromarray(frame) for frame in frames]
    size = frames[0].shape[0], frames[0].shape[1]
    matches = predictor.match_prompts(prompts)
    templates: list[Prediction] = []
    embeddings: list[torch.Tensor] = []
    prompt_of: list[int] = []
    for start in range(0, len(prompts), predictor.batch_size):
        some = matches[start : start + predictor.batch_size]
        phrases = [each.asked for each in some]
        batch = read_prompts(processor, pictures, phrases, answered=predictor.answer == "force")
        answer = predictor.answer_batch(batch.to(parameter.device, parameter.dtype))
        embeddings.append(answer.seg.embedding)
        prompt_of += [start + row for row in answer.seg.row.tolist()]
        templates += [
            replace(predictor.text_prediction(answer, row, each.asked), size=size).labeled(each)
            for row, each in enumerate(some)
        ]
    prompts_of_seg = np.array(prompt_of, dtype=np.int64)
    return _Answers(templates, processor.spec.sam_size, torch.cat(embeddings), prompts_of_seg)


def read_prompts(
    processor: Processor, frames: Sequence[Image.Image], phrases: Sequence[str], *, answered: bool = False
) -> Batch:
    """Batch with one row per phrase, all about the same frames of a clip; `answered` as for `Processor`.

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


def _read_frames(clip: Clip) -> Iterator[PropagatedFrame]:
    for index in range(len(clip)):
        try:
            yield index, clip.read(index), None
        except DataError as error:
            yield index, error, None


def _propagate_officially(
    predictor: Predictor, clip: Clip, embeddings: torch.Tensor, prompted: int
) -> Iterator[PropagatedFrame]:
    session = VideoSession(predictor.model.sam, embeddings, prompted)
    for index, pixels, _ in _read_frames(clip):
        masks = None if isinstance(pixels, DataError) else session.segment(_to_sam_input(predictor, pixels))
        yield index, pixels, masks


def _to_sam_input(predictor: Predictor, pixels: np.ndarray) -> torch.Tensor:
    square = predictor.processor.for_segmenter(Image.fromarray(pixels))
    return square[None].to(next(predictor.model.parameters()))


class _Propagator:
    """Propagates masks with SAM 2's memory; before each frame, the key frames nearest to it are segmented."""

    def __init__(self, predictor: Predictor, clip: Clip, embeddings: torch.Tensor, keys: list[int]) -> None:
        threshold = predictor.threshold
        self._predictor = predictor
        self._clip = clip
        self._tracker = Tracker(
            predictor.model.sam, embeddings, logit_threshold=math.log(threshold) - math.log1p(-threshold)
        )
        self._keys = list(keys)
        self._known: dict[int, tuple[np.ndarray, FrameMasks]] = {}

    def propagate(self) -> Iterator[PropagatedFrame]:
        """Every frame with its masks; ImageError if no key frame can be read."""
        self._update_key_frames(self._keys[0])
        first = self._keys[0]
        if first:
            self._tracker.reverse()
            for index in reversed(range(first)):
                yield self._segment(index)
            self._tracker.reverse()
        for index in range(first, len(self._clip)):
            yield self._segment(index)

    def _segment(self, index: int) -> PropagatedFrame:
        self._update_key_frames(index)
        if index in self._known:
            return index, *self._known[index]
        try:
            pixels = self._clip.read(index)
        except DataError as error:
            return index, error, None
        return index, pixels, self._tracker.propagate(index, _to_sam_input(self._predictor, pixels))

    def _update_key_frames(self, index: int) -> None:
        """Segment the key frames nearest to frame `index`, and remove all others from memory.

        A key frame that cannot be read is replaced by the next frame.
        """
        while missing := [key for key in nearest_keys(self._keys, index) if key not in self._known]:
            key = missing[0]
            try:
                pixels = self._clip.read(key)
            except DataError:  # `_segment` reports it
                self._keys.remove(key)
                if key + 1 < len(self._clip) and key + 1 not in self._keys:
                    insort(self._keys, key + 1)
                if not self._keys:
                    raise
                continue
            self._known[key] = pixels, self._tracker.prompt(key, _to_sam_input(self._predictor, pixels))
        for key in set(self._known) - set(nearest_keys(self._keys, index)):
            del self._known[key]
            self._tracker.forget(key)
