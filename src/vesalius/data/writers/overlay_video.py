"""Write overlay videos: masks drawn on the frames of a clip, as one MP4 file."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from vesalius.colors import PHRASE_COLORS, Color
from vesalius.errors import OutputError
from vesalius.extras import require
from vesalius.files import replacing
from vesalius.visualization import overlay

CODECS = (("libx264", {"crf": "18", "preset": "medium"}), ("mpeg4", {"qscale": "2"}))
"""Encoders with options; the first available one is used. With these options, contours of one pixel stay sharp."""


def write_overlay(
    path: Path,
    frames: Iterable[UInt8[np.ndarray, "h w 3"]],
    masks: Iterable[Bool[np.ndarray, "h w"]],
    fps: float,
    color: Color = PHRASE_COLORS[0],
) -> int:
    """Write frames with their masks in `color` to an MP4 file, one frame at a time; returns the number of frames.

    The file is written completely or not at all, as H.264, or MPEG-4 if FFmpeg has no H.264 encoder. Both subsample
    color by 2 x 2 pixels, so an odd height or width is padded by repeating the last row or column. Raises OutputError
    for a suffix other than `.mp4`, no frame, or a frame rate that is not above 0 and at most 1000; ValueError if frames
    and masks differ in number or size; MissingExtraError without PyAV.
    """
    av = require("av", "video", "video files")
    if path.suffix.lower() != ".mp4":
        raise OutputError.at(path, "overlays are written as MP4; name a file that ends in .mp4", code="bad_value")
    if not 0 < fps <= 1000:
        raise OutputError.at(
            path,
            f"a video needs more than 0 and at most 1000 frames per second, not {fps:g}",
            code="bad_value",
            field="fps",
        )
    count = 0
    with replacing(path) as temporary:
        try:
            with av.open(str(temporary), "w", format="mp4") as container:
                stream: Any = None
                for frame, mask in zip(frames, masks, strict=True):
                    picture = _even(np.asarray(overlay(frame, mask, color)))
                    stream = stream or _add_stream(container, picture.shape, fps)
                    if picture.shape[:2] != (stream.height, stream.width):
                        raise ValueError(f"frame {count} is {picture.shape[:2]}, unlike the first frame")
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                    count += 1
                if stream is None:
                    raise OutputError.at(path, "there is no frame to write", code="nothing_to_write")
                container.mux(stream.encode())
        except av.FFmpegError as error:
            raise OutputError.at(path, f"cannot be written ({error.strerror or error})", code="write_failed") from error
    return count


def _add_stream(container: Any, shape: tuple[int, ...], fps: float) -> Any:
    av = require("av", "video", "video files")
    codec, options = next(each for each in CODECS if each[0] in av.codecs_available)
    stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
    stream.height, stream.width = shape[:2]
    stream.pix_fmt = "yuv420p"
    return stream


def _even(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
