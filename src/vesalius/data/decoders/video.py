"""Read video files: frame count, frame times, and exact random access to frames.

Frame i is the i-th frame in presentation order, counted from 0. Pixels are those stored in the file: rotation metadata
(of phones) and the pixel aspect ratio are ignored, and frames are not deinterlaced. Lost or damaged data, which a player
would conceal, are an error. A file is opened only as the container detected from its first bytes, and cannot refer to
other files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from vesalius.data.decoders.containers import container_of, stated_bytes
from vesalius.data.decoders.decoded import Decoded, show
from vesalius.data.decoders.limits import check_pixels, decoding, image_error, version_of
from vesalius.extras import require
from vesalius.window import AUTO, Range, Window

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg")

MAX_FRAMES = 1_000_000
"""Maximum number of frames; nine hours at 30 per second."""
UNKNOWN = -2
"""Marker for the position of a decoder after a failed read."""


def recognize(path: Path, head: bytes) -> bool:
    """True if the first bytes are those of an MP4, MOV, Matroska, WebM or AVI file, or of an MPEG stream."""
    return container_of(head) is not None


def count_frames(path: Path) -> int:
    """Number of frames, counted over all packets without decoding them; cached per file version.

    An AVI file with B-frames is decoded, because it does not store the presentation order. Raises ImageError if the
    file is truncated, has no video stream or several, more than `MAX_FRAMES` frames, or more than `MAX_PIXELS` pixels
    per frame; MissingExtraError without PyAV.
    """
    return len(_index(*version_of(path)).times)


def frame_time_ms(path: Path) -> float | None:
    """Mean time between frames in ms; None for a single frame."""
    index = _index(*version_of(path))
    steps = len(index.times) - 1
    return float(np.ptp(index.times)) * index.tick_ms / steps if steps else None


@dataclass(frozen=True)
class Index:
    """Frame times and key frames of a video, from its packets."""

    times: Int64[np.ndarray, " n"]
    """Presentation time of each frame, ascending and distinct; equal to `pts` of the decoded pictures."""
    keys: Int64[np.ndarray, " k"]
    """Indices of the key frames, where decoding may start; always includes frame 0."""
    tick_ms: float
    """Unit of `times` in ms."""

    def key_before(self, frame: int) -> int:
        """Index of the last key frame at or before `frame`."""
        return int(self.keys[np.searchsorted(self.keys, frame, side="right") - 1])


class VideoDecoder:
    """Decoder of one open video, for one thread at a time.

    Frames read in order are decoded once each; any other frame is decoded from the key frame before it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._version = path, version_of(path)
        self.index = _index(*self._version)
        self.n_frames = len(self.index.times)
        self._at = -1
        self._pictures: Iterator[Any]
        with decoding(path):
            self._rewind()

    def read(self, frame: int, window: Window = AUTO) -> Decoded:
        """A frame as displayed, in RGB.

        Raises ImageError if there is no such frame, or it is damaged, has more than 8 bits per channel or is partly
        transparent.
        """
        pixels = self.pixels(frame)
        return show(pixels, window, self.path, lambda: _find_range(*self._version, window))

    def pixels(self, frame: int) -> UInt8[np.ndarray, "h w 3"]:
        """RGB pixels of a frame as stored; ImageError as for `read`."""
        if not 0 <= frame < self.n_frames:
            raise image_error(
                self.path, f"has {self.n_frames} frames, so there is no frame {frame}", "frame_count_mismatch"
            )
        with decoding(self.path, f"frame {frame}"):
            self._go_to(frame)
            return _to_rgb(self._picture, f"{self.path}, frame {frame}")

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _go_to(self, frame: int) -> None:
        """Decode up to `frame` into `self._picture`."""
        at, self._at = self._at, UNKNOWN  # stays if decoding fails
        key = self.index.key_before(frame)
        if not (key <= at <= frame or key - 1 == at):
            at = self._seek(key)
        for index in range(at + 1, frame + 1):
            picture = next(self._pictures, None)
            if picture is None or picture.is_corrupt or picture.pts != self.index.times[index]:
                raise image_error(self.path, "is damaged or lost", "damaged_file", f"frame {index}")
            self._picture = picture
        self._at = frame

    def _seek(self, key: int) -> int:
        """Seek to `key`; returns the last frame before the position: `key` - 1, or -1 if the file was reopened."""
        av = _av()
        time = int(self.index.times[key])
        try:
            if key:
                self._container.seek(time, stream=self._stream)
                pictures = self._decode_from(time)
                first = next(pictures, None)
                if first is not None and first.pts == time:
                    self._pictures = chain((first,), pictures)
                    return key - 1
        except av.FFmpegError:
            pass  # decoding from the beginning shows whether the file is damaged
        self.close()
        self._rewind()
        return -1

    def _rewind(self) -> None:
        self._container, self._stream = _open(self.path)
        self._pictures = self._decode_from(int(self.index.times[0]))

    def _decode_from(self, time: int) -> Iterator[Any]:
        """Pictures in presentation order from `time` on."""
        av = _av()
        arrived = False
        for packet in self._container.demux(self._stream):
            try:
                pictures = packet.decode()
            except av.FFmpegError:
                if arrived:
                    raise
                continue  # a picture displayed before the key frame, which needs frames before the seek position
            for picture in pictures:
                arrived = arrived or picture.pts is None or picture.pts >= time
                if arrived:
                    yield picture


@lru_cache(maxsize=128)
def _find_range(path: Path, size: int, time_ns: int, window: Window) -> Range:
    """The range over all frames; decodes the file once."""
    with closing(VideoDecoder(path)) as decoder:
        frames = (decoder.pixels(frame) for frame in range(decoder.n_frames))
        return window.find_range(frames, decoder.n_frames * decoder.pixels(0).size, path)


@lru_cache(maxsize=128)
def _index(path: Path, size: int, time_ns: int) -> Index:
    container = _container(path)
    stated = stated_bytes(path, container)
    if stated is not None and stated > size:
        raise image_error(path, f"is truncated: its headers state {stated} bytes, but it has {size}", "truncated_file")
    with decoding(path):
        times, are_keys, tick_ms = _read_packets(path)
        if container == "avi" and not are_keys.all():
            times, are_keys = _read_pictures(path, times, are_keys)
    order = np.argsort(times, kind="stable") if container != "avi" else np.arange(len(times))
    times, keys = times[order], np.flatnonzero(are_keys[order])
    if not (np.diff(times) > 0).all():
        if len(np.unique(times)) < len(times):
            raise image_error(path, "has several frames with the same time", "unsupported_video")
        keys = keys[:0]  # seeking by time is impossible
    return Index(times, np.union1d([0], keys).astype(np.int64), tick_ms)


def _container(path: Path) -> str:
    with path.open("rb") as file:
        container = container_of(file.read(512))
    if container is None:
        raise image_error(path, "is not a supported video", "unsupported_file_type")
    return container


def _read_packets(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """(times, key frame flags, time unit in ms) of all frames in file order."""
    container, stream = _open(path)
    times: list[int] = []
    are_keys: list[bool] = []
    with closing(container):
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise image_error(path, f"is damaged after frame {len(times)}", "damaged_file")
            if packet.size == 0 or packet.is_discard:  # end of stream, or hidden by an edit list
                continue
            if packet.pts is None:
                raise image_error(path, "has frames without a time", "unsupported_video")
            if len(times) == MAX_FRAMES:
                raise image_error(path, f"has more than {MAX_FRAMES} frames", "image_too_large")
            times.append(packet.pts)
            are_keys.append(packet.is_keyframe)
        if not times:
            raise image_error(path, "has no frames", "no_pixel_data")
        return np.array(times, np.int64), np.array(are_keys, bool), float(stream.time_base) * 1000


def _read_pictures(path: Path, times: np.ndarray, are_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(times, key frame flags) of an AVI file in presentation order, by decoding, because AVI stores no frame times."""
    container, stream = _open(path)
    with closing(container):
        shown = np.array([picture.pts for picture in container.decode(stream)], np.int64)
    if len(shown) != len(times):
        raise image_error(path, f"has {len(times)} frames, but {len(shown)} can be decoded", "damaged_file")
    return shown, np.isin(shown, times[are_keys])


def _open(path: Path) -> tuple[Any, Any]:
    """(container, video stream); nothing is decoded yet."""
    # container and protocol are fixed: a playlist or URL could open other files
    container = _av().open(
        f"file:{path}", format=_container(path), options={"protocol_whitelist": "file"}, metadata_errors="ignore"
    )
    try:
        streams = [each for each in container.streams.video if not _is_cover(each)]
        if len(streams) != 1:
            raise image_error(path, f"has {len(streams)} video streams", "unsupported_video")
        context = streams[0].codec_context
        check_pixels(context.height, context.width, str(path))
        context.thread_count = 1  # bounds memory; several videos are read in parallel anyway
        context.options = {"err_detect": "explode"}
    except BaseException:
        container.close()
        raise
    return container, streams[0]


def _is_cover(stream: Any) -> bool:
    """True for cover art, such as in music files."""
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def _to_rgb(picture: Any, where: str) -> UInt8[np.ndarray, "h w 3"]:
    check_pixels(picture.height, picture.width, where)  # the size may change within a stream
    parts = picture.format.components
    if max(part.bits for part in parts) > 8:
        wrong = f"has more than 8 bits per channel ({picture.format.name})"
        raise image_error(where, wrong, "invalid_bit_depth")
    if not any(part.is_alpha for part in parts):
        return np.ascontiguousarray(picture.to_ndarray(format="rgb24"))
    pixels = picture.to_ndarray(format="rgba")
    # screen recorders and uncompressed AVI files set alpha to 0 everywhere without meaning transparency
    if np.ptp(pixels[:, :, 3]):
        raise image_error(where, "is partly transparent", "transparent_image")
    return np.ascontiguousarray(pixels[:, :, :3])


def _av() -> Any:
    return require("av", "video", "video files")
