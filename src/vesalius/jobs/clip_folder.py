"""Clips in a prediction folder: the frames of each are answered together."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

from vesalius.data.clips import group_clips
from vesalius.errors import DataError, SettingError
from vesalius.jobs.folder import (
    REASONS,
    Answered,
    Answering,
    answer_samples,
    fail_all,
    write_answers,
)
from vesalius.jobs.overlay_videos import with_films
from vesalius.jobs.prediction_log import Line
from vesalius.segmenter import Described, ModelDescription, Segmenter, Usage
from vesalius.types import Item, Prediction, Sample


def ask_clips(
    segmenter: Described,
    answer: Answering | None,
    samples: Sequence[Sample],
    prompts: Sequence[str],
    save: Sequence[str],
    *,
    propagation: str = "frames",
    reprompt_every: int | None = None,
) -> tuple[Described, Sequence[Sample], Answering | None]:
    """What `write_predictions` is to be given for these samples: segmenter, samples in order of their clips, answering.

    With `frames` each frame is predicted by itself, as any image, and only samples that say so are frames of a clip;
    otherwise single images of a folder are one too. SettingError where settings do not fit together.
    """
    films = "films" in save
    if films and "masks" not in save:
        raise SettingError("--save films needs masks, of which films are made; add masks to --save")
    if propagation == "frames":
        if reprompt_every is not None:
            raise SettingError(
                "where frames are predicted one by one, each is prompted; leave --reprompt-every out"
            )
        clips = group_clips([sample for sample in samples if sample.sequence is not None]) if films else {}
        answer = answer or partial(answer_samples, cast(Segmenter, segmenter))
    else:
        if answer is not None:
            raise SettingError("--devices: the frames of a clip are followed on one device; leave it out")
        whole = cast(Segmenter, segmenter)
        settings: dict[str, Any] = {"propagation": propagation, "reprompt_every": reprompt_every}
        whole.check_video(1, **settings)
        clips = group_clips(samples)
        samples = [frame for frames in clips.values() for frame in frames]
        followed = ClipSegmenter(whole, clips, settings)
        segmenter, answer = followed, followed.answer
    if films and not clips:
        raise SettingError("--save films: there is no clip among the images; give a video or a cine")
    return segmenter, samples, with_films(answer, clips, prompts) if films else answer


class ClipSegmenter(Described):
    """A segmenter that is asked about whole clips; its description has the settings of propagation too."""

    def __init__(
        self, segmenter: Segmenter, clips: Mapping[str, Sequence[Sample]], settings: Mapping[str, Any]
    ) -> None:
        """`clips` are all clips in order; `settings` as for `Segmenter.predict_video`."""
        self._segmenter = segmenter
        self._settings = settings
        self._clip_of = {frame.id: frames for frames in clips.values() for frame in frames}

    @property
    def description(self) -> ModelDescription:
        model = self._segmenter.description
        return replace(model, settings={**model.settings, **self._settings})

    @property
    def usage(self) -> Usage:
        return self._segmenter.usage

    def check_prompts(self, prompts: Iterable[str]) -> None:
        self._segmenter.check_prompts(prompts)

    def answer(
        self, samples: Iterable[Sample], out: Path, save: Sequence[str]
    ) -> Generator[list[Line], None, None]:
        """As `answer_samples`, for samples that are frames of the clips, in order.

        Where they begin in the middle of a clip, it is followed again from its start.
        """
        yield from write_answers(
            self._predict(iter(samples)), out, save, self._segmenter.description.batch_size
        )

    def _predict(self, samples: Iterable[Sample]) -> Generator[Answered, None, None]:
        rest = iter(samples)
        for first in rest:
            clip = self._clip_of[first.id]
            done = [frame.id for frame in clip].index(first.id)
            asked = chain([first], islice(rest, len(clip) - done - 1))
            with closing(self._follow(clip, first.prompts)) as followed:
                for sample, (item, predictions) in zip(asked, islice(followed, done, None), strict=True):
                    yield sample, item, predictions

    def _follow(
        self, clip: Sequence[Sample], prompts: tuple[str, ...]
    ) -> Generator[tuple[Item | None, list[Prediction]], None, None]:
        """The item and predictions of each frame in order; all that are left fail where the clip does."""
        early: dict[int, tuple[Item | None, list[Prediction]]] = {}
        due = 0
        try:
            for found in self._segmenter.predict_video(clip, prompts, **self._settings):
                frame = clip[found.index]
                item = None if found.pixels is None else Item(frame.id, found.pixels[None], prompts)
                early[found.index] = item, found.predictions
                while due in early:
                    yield early.pop(due)
                    due += 1
        except (DataError, *REASONS) as error:
            for frame in clip[due:]:
                yield None, fail_all(frame.id, prompts, frame.size or (0, 0), error)
