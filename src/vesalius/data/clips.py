"""Clips with frames read one at a time, and the grouping of samples into clips."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import UInt8

from vesalius.data.dataset import decode_sample
from vesalius.data.decoders.frame_files import FrameReader, kind_of
from vesalius.data.image_files import find_images
from vesalius.data.images import frame_id, with_window
from vesalius.data.pictures import as_pixels
from vesalius.errors import DataError, ImageError, SettingError
from vesalius.masks import Size
from vesalius.types import Sample
from vesalius.window import AUTO, Range, Window


class Clip:
    """A clip that reads its frames on demand; all frames must have the size of the first readable one.

    As a context manager, it closes the open video or volume on exit.
    """

    def __init__(self, frames: Sequence[Any], window: Window = AUTO) -> None:
        """A clip of samples, paths, PIL images or arrays; SettingError if `frames` is empty.

        `window` is that of frames that are not samples, or samples without a window of their own.
        """
        if not len(frames):
            raise SettingError("the clip has no frames", code="bad_value", field="clip")
        self.frames = frames
        self.size: Size | None = None
        self.windows: dict[int, Range | None] = {}
        """Frame that was read -> stored values that are black and white; None if they are gray levels already."""
        self._window = window
        self._reader = FrameReader()
        # only a list is inspected: another sequence may decode a frame on each access
        self._are_samples = isinstance(frames, list) and isinstance(frames[0], Sample)

    def __len__(self) -> int:
        return len(self.frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.close()

    def name(self, index: int) -> str:
        """Id of a frame: its sample's id, or `frame__0012` for a frame without a sample."""
        return self.frames[index].id if self._are_samples else frame_id("frame", index)

    def read(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels of a frame; ImageError if it cannot be read or has another size."""
        frame = self.frames[index]
        if isinstance(frame, Sample):
            (sample,) = with_window([frame], self._window)
            decoded = decode_sample(sample, self._reader)
            pixels, self.windows[index] = decoded.pixels, decoded.window
        else:
            pixels = as_pixels(frame, window=self._window)
        size = pixels.shape[0], pixels.shape[1]
        self.size = self.size or size
        if size != self.size:
            raise ImageError(
                f"{self.name(index)}: has {size[0]} x {size[1]} pixels (h x w), in a clip of "
                f"{self.size[0]} x {self.size[1]}; predict it separately",
                code="size_mismatch",
            )
        return pixels

    def read_some(self, indices: Iterable[int]) -> list[UInt8[np.ndarray, "h w 3"]]:
        """Pixels of the readable frames among `indices`; raises the first error if none is readable."""
        found, errors = [], []
        for index in indices:
            try:
                found.append(self.read(index))
            except DataError as error:
                errors.append(error)
        if not found:
            raise errors[0]
        return found


def open_clip(clip: str | Path | Sequence[Any], window: Window = AUTO) -> Clip:
    """The clip in a multi-frame file, a folder of images, or a sequence of frames.

    Raises ImageError as `find_images` does; SettingError if a folder contains several clips.
    """
    if not isinstance(clip, str | Path):
        return Clip(clip, window)
    found = group_clips(find_images([Path(clip)]))
    if len(found) > 1:
        raise SettingError.at(
            clip, f"contains {len(found)} clips ({', '.join([*found][:3])}, ...); name one", code="bad_value"
        )
    return Clip(next(iter(found.values())), window)


def group_clips(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Clip name -> frames, which are the samples of one sequence or the single images of one folder.

    Single images are sorted by the numbers in their ids, `frame_2` before `frame_10`. The name of a clip is its
    sequence, else the folder part of its ids, else the folder's name. SettingError for two clips with the same name.
    """
    clips: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        folder = sample.id.rpartition("__")[0] or sample.image.parent.resolve().name
        parent = str(sample.image.parent) if sample.sequence is None else ""
        clips.setdefault((sample.sequence or folder or "clip", parent), []).append(sample)
    names = [name for name, _ in clips]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SettingError(
            f"there are two clips named {twice[0]}; give the folder above both, or rename one", code="duplicate_id"
        )
    return {
        name: frames if frames[0].sequence else sorted(frames, key=lambda frame: _natural_order(frame.id))
        for (name, _), frames in clips.items()
    }


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key that compares digits in names as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def frame_rate(frame: Sample) -> float | None:
    """Frame rate, in frames per second, of the file that contains a frame; None if the file does not state it."""
    if frame.frame is None:
        return None
    kind = kind_of(frame.image)
    time_ms = kind.frame_time_ms(frame.image) if kind else None
    return 1000 / time_ms if time_ms else None
