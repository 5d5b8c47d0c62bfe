"""Clips in a prediction folder, with masks propagated through the frames of each clip."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

from vesalius.data.clips import group_clips
from vesalius.data.images import with_window
from vesalius.errors import DataError, SettingError, UsageError
from vesalius.jobs.folder import ITEM_ERRORS, Worker, fail_all, predict_and_write, write_predicted
from vesalius.jobs.outputs import PredictedSample
from vesalius.jobs.overlay_videos import with_videos
from vesalius.jobs.prediction_log import Line
from vesalius.segmenter import Described, ModelDescription, Segmenter, Usage
from vesalius.types import Item, Prediction, Sample


def prepare_clips(
    model: Described,
    worker: Worker | None,
    samples: Sequence[Sample],
    prompts: Sequence[str],
    save: Sequence[str],
    *,
    propagation: str = "frames",
    reprompt_every: int | None = None,
) -> tuple[Described, Sequence[Sample], Worker | None]:
    """Arguments of `write_predictions` for clips: model, samples in clip order, and worker.

    With `frames` each frame is predicted independently, like any image, and only samples with a sequence belong to a
    clip. Otherwise the single images of a folder form a clip too. SettingError for conflicting settings.
    """
    videos, samples = "video" in save, with_window(samples, model.description.window)
    if videos and "masks" not in save:
        raise UsageError("--save video needs the masks; add masks to --save", code="conflicting_settings", field="save")
    if propagation == "frames":
        if reprompt_every is not None:
            raise SettingError(
                "--propagation frames prompts on every frame; leave --reprompt-every out",
                code="conflicting_settings",
                field="reprompt_every",
            )
        clips = group_clips([sample for sample in samples if sample.sequence is not None]) if videos else {}
        worker = worker or partial(predict_and_write, cast(Segmenter, model))
    else:
        if worker is not None:
            raise UsageError(
                "--devices: masks propagate through a clip on one device only; leave --devices out",
                code="conflicting_settings",
                field="devices",
            )
        segmenter = cast(Segmenter, model)
        settings: dict[str, Any] = {"propagation": propagation, "reprompt_every": reprompt_every}
        segmenter.check_video(1, **settings)
        clips = group_clips(samples)
        samples = [frame for frames in clips.values() for frame in frames]
        by_clip = ClipSegmenter(segmenter, clips, settings)
        model, worker = by_clip, by_clip.predict_and_write
    if videos and not clips:
        raise SettingError(
            "--save video: none of the images belongs to a clip; give a video or a cine, or leave video out",
            code="nothing_to_write",
            field="save",
        )
    return model, samples, with_videos(worker, clips, prompts) if videos else worker


class ClipSegmenter(Described):
    """A segmenter of whole clips; its description includes the propagation settings."""

    def __init__(
        self, segmenter: Segmenter, clips: Mapping[str, Sequence[Sample]], settings: Mapping[str, Any]
    ) -> None:
        """`clips` maps names to frames in order; `settings` as for `Segmenter.predict_video`."""
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

    def check_prompts(self, prompts: Iterable[str]) -> list[str]:
        return self._segmenter.check_prompts(prompts)

    def predict_and_write(
        self, samples: Iterable[Sample], out: Path, save: Sequence[str]
    ) -> Generator[list[Line], None, None]:
        """Predict frames, given in clip order, and write their files into `out`; yields the lines of each frame.

        If the first sample lies in the middle of a clip, masks are propagated from the start of that clip.
        """
        ahead = self._segmenter.description.batch_size
        yield from write_predicted(self._predict(iter(samples)), out, save, ahead)

    def _predict(self, samples: Iterable[Sample]) -> Generator[PredictedSample, None, None]:
        rest = iter(samples)
        for first in rest:
            clip = self._clip_of[first.id]
            done = [frame.id for frame in clip].index(first.id)
            asked = chain([first], islice(rest, len(clip) - done - 1))
            with closing(self._propagate(clip, first.prompts)) as frames:
                for sample, (item, predictions) in zip(asked, islice(frames, done, None), strict=True):
                    yield sample, item, predictions

    def _propagate(
        self, clip: Sequence[Sample], prompts: tuple[str, ...]
    ) -> Generator[tuple[Item | None, list[Prediction]], None, None]:
        """Item and predictions of each frame, in order; if propagation fails, all remaining frames fail."""
        early: dict[int, tuple[Item | None, list[Prediction]]] = {}
        due = 0
        try:
            for found in self._segmenter.predict_video(clip, prompts, **self._settings):
                frame = clip[found.index]
                item = (
                    None if found.pixels is None else Item(frame.id, found.pixels[None], prompts, window=found.window)
                )
                early[found.index] = item, found.predictions
                while due in early:
                    yield early.pop(due)
                    due += 1
        except (DataError, *ITEM_ERRORS) as error:
            for frame in clip[due:]:
                yield None, fail_all(self, frame.id, prompts, frame.size or (0, 0), error)
