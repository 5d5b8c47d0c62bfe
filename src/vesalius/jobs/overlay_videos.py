"""Overlay videos of the clips in a prediction folder, rendered from its mask files."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from vesalius.colors import phrase_colors
from vesalius.data.clips import frame_rate
from vesalius.data.dataset import load_image
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.data.writers.overlay_video import write_overlay
from vesalius.errors import DataError, OutputError
from vesalius.extras import require
from vesalius.files import replacing
from vesalius.jobs.folder import Worker
from vesalius.jobs.prediction_log import VIDEOS, Line
from vesalius.masks import Size
from vesalius.names import result_stems
from vesalius.types import Sample

log = logging.getLogger(__name__)

DEFAULT_FPS = 15.0
"""Frames per second for a clip without a stated frame rate: the most common rate in coronary angiography."""


def with_videos(worker: Worker, clips: Mapping[str, Sequence[Sample]], prompts: Sequence[str]) -> Worker:
    """A worker that also writes the videos of each clip after its last frame.

    `videos/CLIP.mp4` shows the masks on the frames; `videos/CLIP.masks.mkv` contains only the masks, lossless, 0/255.
    With several prompts they are named `CLIP--PROMPT`. A missing mask counts as empty, an unreadable frame as black.
    """
    last = {frames[-1].id: name for name, frames in clips.items()}

    def work(samples: Iterable[Sample], out: Path, save: Sequence[str]) -> Generator[list[Line], None, None]:
        with closing(worker(samples, out, save)) as written:
            for lines in written:
                yield lines
                if name := last.get(lines[0]["id"]):
                    write_videos(out, name, clips[name], prompts)
        # videos that an earlier, killed job did not write
        for name, frames in clips.items():
            write_videos(out, name, frames, prompts)

    return work


def write_videos(out: Path, name: str, frames: Sequence[Sample], prompts: Sequence[str]) -> None:
    """Write the videos of a clip for each prompt, unless all exist.

    OutputError if a file cannot be written; MissingExtraError without PyAV.
    """
    stems = result_stems(name, prompts)
    paths = [(out / VIDEOS / f"{stem}.mp4", out / VIDEOS / f"{stem}.masks.mkv") for stem in stems]
    if all(path.is_file() for pair in paths for path in pair):
        return
    fps = frame_rate(frames[0])
    if fps is None:
        log.warning("%s: does not state its frame rate; its videos have %g frames per second", name, DEFAULT_FPS)
        fps = DEFAULT_FPS
    colors = list(phrase_colors(prompts).values())
    for prompt, (overlay, masks) in enumerate(paths):
        files = [out / "masks" / f"{result_stems(frame.id, prompts)[prompt]}.png" for frame in frames]
        size = _size_of(files)
        if size is None:
            log.warning("%s: none of its frames has a mask, so no video is written", name)
            return
        with FrameReader() as reader:
            pixels = (_pixels(frame, size, reader) for frame in frames)
            write_overlay(overlay, pixels, _masks(files, size), fps, colors[prompt])
        write_masks(masks, _masks(files, size), size, fps)


def write_masks(path: Path, masks: Iterable[Bool[np.ndarray, "h w"]], size: Size, fps: float) -> None:
    """Write masks of `size` as a lossless Matroska video (FFV1) of 0 and 255, completely or not at all.

    OutputError if the file cannot be written; MissingExtraError without PyAV.
    """
    av = require("av", "video", "video files")
    with replacing(path) as temporary:
        try:
            with av.open(str(temporary), "w", format="matroska") as container:
                stream = container.add_stream("ffv1", rate=Fraction(fps).limit_denominator(1001))
                stream.pix_fmt = "gray"
                stream.height, stream.width = size
                for mask in masks:
                    pixels = mask.astype(np.uint8) * 255
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="gray")))
                container.mux(stream.encode())
        except av.FFmpegError as error:
            raise OutputError(
                f"{path}: cannot be written ({error.strerror or error})", code="write_failed", path=path
            ) from error


def _size_of(files: Sequence[Path]) -> Size | None:
    """(h, w) of the first file that exists."""
    for file in files:
        if file.is_file():
            with Image.open(file) as image:
                return image.height, image.width
    return None


def _pixels(frame: Sample, size: Size, reader: FrameReader) -> UInt8[np.ndarray, "h w 3"]:
    try:
        pixels = load_image(frame, reader)
    except DataError:
        return np.zeros((*size, 3), dtype=np.uint8)
    return pixels if pixels.shape[:2] == size else np.zeros((*size, 3), dtype=np.uint8)


def _masks(files: Iterable[Path], size: Size) -> Iterator[Bool[np.ndarray, "h w"]]:
    for file in files:
        yield np.asarray(Image.open(file)) > 0 if file.is_file() else np.zeros(size, dtype=bool)
