"""Reading of video files in tests."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from vesalius.data.decoders.video import VideoDecoder


def read_video(path: Path) -> list[np.ndarray]:
    """All frames in order, uint8 (h, w, 3)."""
    with closing(VideoDecoder(path)) as decoder:
        return [decoder.read(i).pixels for i in range(decoder.n_frames)]


def read_video_frame(path: Path, frame: int) -> np.ndarray:
    """Read one frame with a new decoder."""
    with closing(VideoDecoder(path)) as decoder:
        return decoder.read(frame).pixels
