"""Clips in a prediction folder: the frames of each are answered together."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vesalius.data.clips import group_clips
from vesalius.errors import DataError, SettingError
from vesalius.inference.video import Propagation, check_whole, choose_keys
from vesalius.jobs.folder import (
    REASONS,
    Answered,
    Answering,
    answer_samples,
    failure,
    write_answers,
)
from vesalius.jobs.overlay_videos import with_films
from vesalius.jobs.prediction_log import Line
from vesalius.types import Item, Sample

if TYPE_CHECKING:
    from vesalius.inference.predictor import Predictor


def ask_clips(
    segmenter: Any,
    answer: Answering | None,
    samples: Sequence[Sample],
    prompts: Sequence[str],
    save: Sequence[str],
    *,
    propagation: str = "frames",
    reprompt_every: int | None = None,
) -> tuple[Any, Sequence[Sample], Answering | None]:
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
        answer = answer or partial(answer_samples, segmenter)
    else:
        if answer is not None:
            raise SettingError("--devices: the frames of a clip are followed on one device; leave it out")
        check_whole(segmenter)
        choose_keys(1, cast(Propagation, propagation), (), reprompt_every)
        clips = group_clips(samples)
        samples = [frame for frames in clips.values() for frame in frames]
        segmenter = ClipSegmenter(segmenter, clips, propagation=propagation, reprompt_every=reprompt_every)
        answer = segmenter.answer
    if films and not clips:
        raise SettingError("--save films: there is no clip among the images; give a video or a cine")
    return segmenter, samples, with_films(answer, clips, prompts) if films else answer


class ClipSegmenter:
    """A predictor that is asked about whole clips; what reports say of it is the predictor's, with these settings."""

    def __init__(self, predictor: Predictor, clips: Mapping[str, Sequence[Sample]], **settings: Any) -> None:
        """`clips` are all that there are, in order; `settings` as for `Predictor.predict_video`."""
        self._predictor = predictor
        self._settings = settings
        self._clip_of = {frame.id: frames for frames in clips.values() for frame in frames}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the numbers, for reports."""
        return {**self._predictor.settings, **self._settings}

    def answer(
        self, samples: Iterable[Sample], out: Path, save: Sequence[str]
    ) -> Generator[list[Line], None, None]:
        """As `answer_samples`, for samples that are frames of the clips, in order.

        Where they begin in the middle of a clip, it is followed again from its start.
        """
        yield from write_answers(self._predict(iter(samples)), out, save, self._predictor.batch)

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
    ) -> Generator[tuple[Item | None, list[Any]], None, None]:
        """The item and predictions of each frame in order; all that are left fail where the clip does."""
        early: dict[int, tuple[Item | None, list[Any]]] = {}
        due = 0
        try:
            for found in self._predictor.predict_video(clip, prompts, **self._settings):
                frame = clip[found.index]
                item = None if found.pixels is None else Item(frame.id, found.pixels[None], prompts)
                early[found.index] = item, found.predictions
                while due in early:
                    yield early.pop(due)
                    due += 1
        except (DataError, *REASONS) as error:
            for frame in clip[due:]:
                yield None, [failure(frame.id, prompt, frame.size or (0, 0), error) for prompt in prompts]
