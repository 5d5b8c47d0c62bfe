"""Video files: which they are, how many frames they have, and each of them exactly.

Frame i is the i-th picture in order of presentation, counted from 0. Pictures come as they are stored, like
those of images: not turned as a telephone's file asks for (`stored_turned`), not stretched to square pixels,
fields woven. What a decoder would conceal (data lost or damaged) is an error here. A file is opened as the
one container that its first bytes show, and may not refer to other files.
"""

from __future__ import annotations

import threading
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
from vesalius.data.decoders.limits import check_pixels, decoding, version_of
from vesalius.errors import ImageError
from vesalius.extras import require

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg")

MAX_FRAMES = 1_000_000
"""Nine hours at 30 a second."""
NOWHERE = -2
"""Where a decoder stands of which nothing is known."""


def recognize(path: Path, head: bytes) -> bool:
    """Whether the first bytes are those of MP4, MOV, Matroska, WebM, AVI, or an MPEG stream."""
    return container_of(head) is not None


def count_frames(path: Path) -> int:
    """Frames of the file, by reading its packets once without decoding them; remembered while it stays.

    An AVI file with frames that build on others is decoded: it does not say in which order they are shown.
    Raises ImageError where the file is cut short, has no video or several, more than `MAX_FRAMES`, or more
    than 200 megapixels a frame; MissingExtraError without PyAV.
    """
    return len(_index(*version_of(path)).times)


def read_frame(path: Path, frame: int) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of one frame as RGB.

    The decoder stays open: frames read in order are decoded once each, for any other those from the key frame
    before. Raises ImageError as `count_frames`, and where there is no such frame, it cannot be decoded, has
    more than 8 bits a channel or is partly transparent.
    """
    return _clip(*version_of(path), threading.get_ident()).read(frame)


def iter_frames(path: Path) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """All frames in order, each decoded once; ImageError as for `read_frame`."""
    with closing(Clip(path, _index(*version_of(path)))) as clip:
        for frame in range(len(clip.index.times)):
            yield clip.read(frame)


def frame_time_ms(path: Path) -> float | None:
    """Mean time from one frame to the next; None for a single frame."""
    index = _index(*version_of(path))
    steps = len(index.times) - 1
    return float(np.ptp(index.times)) * index.tick_ms / steps if steps else None


def stored_turned(path: Path) -> bool:
    """Whether the file asks players to turn its frames, which `read_frame` does not do."""
    with closing(Clip(path, _index(*version_of(path)))) as clip:
        return clip.rotation() != 0


@dataclass(frozen=True)
class Index:
    """What the packets of a video say of its frames."""

    times: Int64[np.ndarray, " n"]
    """When each frame is shown, in order of presentation: distinct numbers, which decoded pictures carry."""
    keys: Int64[np.ndarray, " k"]
    """Frames that decoding may begin at; the first frame always."""
    tick_ms: float
    """Unit of `times`."""

    def key_before(self, frame: int) -> int:
        """The last key frame that is not after `frame`."""
        return int(self.keys[np.searchsorted(self.keys, frame, side="right") - 1])


class Clip:
    """One open video: owns its decoder, and knows where that stands. Not to be shared by threads."""

    def __init__(self, path: Path, index: Index) -> None:
        self.path, self.index = path, index
        self._at = -1
        self._pictures: Iterator[Any]
        with decoding(path):
            self._rewind()

    def read(self, frame: int) -> UInt8[np.ndarray, "h w 3"]:
        """RGB pixels of a frame; ImageError as for the module's `read_frame`."""
        if not 0 <= frame < len(self.index.times):
            raise ImageError(f"{self.path}: has {len(self.index.times)} frames, so there is no frame {frame}")
        with decoding(self.path, f"frame {frame}"):
            self._go_to(frame)
            return _to_rgb(self._picture, f"{self.path}, frame {frame}")

    def rotation(self) -> int:
        """Degrees by which the file asks players to turn its first frame."""
        with decoding(self.path, "frame 0"):
            self._go_to(0)
            return int(self._picture.rotation)

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()

    def _go_to(self, frame: int) -> None:
        """Decode until `frame` is the picture in hand."""
        at, self._at = self._at, NOWHERE  # stays so where the decoder fails
        key = self.index.key_before(frame)
        if not (key <= at <= frame or key - 1 == at):
            at = self._seek(key)
        for place in range(at + 1, frame + 1):
            picture = next(self._pictures, None)
            if picture is None or picture.is_corrupt or picture.pts != self.index.times[place]:
                raise ImageError(
                    f"{self.path}, frame {place}: is damaged or lost; copy it again from its source"
                )
            self._picture = picture
        self._at = frame

    def _seek(self, key: int) -> int:
        """The frame after which the decoder now stands: that before `key`, or -1 where it must begin anew."""
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
            pass  # at the beginning it shows whether the file is wrong
        self.close()
        self._rewind()
        return -1

    def _rewind(self) -> None:
        self._container, self._stream = _open(self.path)
        self._pictures = self._decode_from(int(self.index.times[0]))

    def _decode_from(self, time: int) -> Iterator[Any]:
        """Pictures in order of presentation from `time` on."""
        av = _av()
        arrived = False
        for packet in self._container.demux(self._stream):
            try:
                pictures = packet.decode()
            except av.FFmpegError:
                if arrived:
                    raise
                continue  # shown before a key frame, and built on what lies before it
            for picture in pictures:
                arrived = arrived or picture.pts is None or picture.pts >= time
                if arrived:
                    yield picture


@lru_cache(maxsize=8)
def _clip(path: Path, size: int, time_ns: int, thread: int) -> Clip:
    # a cache of a pure function: where the decoder stands changes how long a frame takes, not what it is
    return Clip(path, _index(path, size, time_ns))


@lru_cache(maxsize=128)
def _index(path: Path, size: int, time_ns: int) -> Index:
    container = _container(path)
    stated = stated_bytes(path, container)
    if stated is not None and stated > size:
        raise ImageError(
            f"{path}: is cut short: by its headers it has {stated} bytes, but there are {size}; copy it again"
        )
    with decoding(path):
        times, are_keys, tick_ms = _read_packets(path)
        if container == "avi" and not are_keys.all():
            times, are_keys = _read_pictures(path, times, are_keys)
    order = np.argsort(times, kind="stable") if container != "avi" else np.arange(len(times))
    times, keys = times[order], np.flatnonzero(are_keys[order])
    if not (np.diff(times) > 0).all():
        if len(np.unique(times)) < len(times):
            raise ImageError(f"{path}: has frames of the same time; convert it to MP4 first")
        keys = keys[:0]  # no place of such a file can be found again
    return Index(times, np.union1d([0], keys).astype(np.int64), tick_ms)


def _container(path: Path) -> str:
    with path.open("rb") as file:
        container = container_of(file.read(512))
    if container is None:
        raise ImageError(f"{path}: is no video that is read; convert it to MP4 first")
    return container


def _read_packets(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """(time, whether it is a key frame) of each frame as the file has them, and the unit of time in ms."""
    container, stream = _open(path)
    times: list[int] = []
    are_keys: list[bool] = []
    with closing(container):
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise ImageError(
                    f"{path}: is damaged after frame {len(times)}; copy it again from its source"
                )
            if packet.size == 0 or packet.is_discard:  # the end; or what an edit cut away
                continue
            if packet.pts is None:
                raise ImageError(f"{path}: has frames without a time; convert it to MP4 first")
            if len(times) == MAX_FRAMES:
                raise ImageError(f"{path}: has more than {MAX_FRAMES} frames; cut it into parts")
            times.append(packet.pts)
            are_keys.append(packet.is_keyframe)
        if not times:
            raise ImageError(f"{path}: holds no frame; copy it again from its source")
        return np.array(times, np.int64), np.array(are_keys, bool), float(stream.time_base) * 1000


def _read_pictures(path: Path, times: np.ndarray, are_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same in order of presentation, by decoding: AVI numbers its packets and knows no other time."""
    container, stream = _open(path)
    with closing(container):
        shown = np.array([picture.pts for picture in container.decode(stream)], np.int64)
    if len(shown) != len(times):
        raise ImageError(
            f"{path}: has {len(times)} frames, of which {len(shown)} can be decoded; copy it again"
        )
    return shown, np.isin(shown, times[are_keys])


def _open(path: Path) -> tuple[Any, Any]:
    """(container, video stream), not decoding yet."""
    # naming container and protocol: a playlist, or an address, could lead to other files
    container = _av().open(
        f"file:{path}",
        format=_container(path),
        options={"protocol_whitelist": "file"},
        metadata_errors="ignore",
    )
    try:
        streams = [each for each in container.streams.video if not _is_cover(each)]
        if len(streams) != 1:
            raise ImageError(f"{path}: has {len(streams)} video streams; export the one to be read as MP4")
        context = streams[0].codec_context
        check_pixels(context.height, context.width, str(path))
        context.thread_count = 1  # bounded memory; several clips are read side by side anyway
        context.options = {"err_detect": "explode"}
    except BaseException:
        container.close()
        raise
    return container, streams[0]


def _is_cover(stream: Any) -> bool:
    """Whether it is a picture on the sleeve, as music has."""
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def _to_rgb(picture: Any, place: str) -> UInt8[np.ndarray, "h w 3"]:
    check_pixels(picture.height, picture.width, place)  # a stream may change its size on the way
    parts = picture.format.components
    if max(part.bits for part in parts) > 8:
        raise ImageError(
            f"{place}: has more than 8 bits a channel ({picture.format.name}); convert it to 8 bits first"
        )
    if not any(part.is_alpha for part in parts):
        return np.ascontiguousarray(picture.to_ndarray(format="rgb24"))
    pixels = picture.to_ndarray(format="rgba")
    # screen recorders and uncompressed AVI leave the fourth channel all 0, and mean no transparency
    if np.ptp(pixels[:, :, 3]):
        raise ImageError(f"{place}: is partly transparent; put it on the background you want")
    return np.ascontiguousarray(pixels[:, :, :3])


def _av() -> Any:
    return require("av", "video", "video files")
