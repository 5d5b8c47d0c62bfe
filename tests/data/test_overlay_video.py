"""Overlay videos show masks on frames and are written completely or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.codes import raises_code
from tests.video_files import read_video

from vesalius.data.decoders import video
from vesalius.data.writers import overlay_video
from vesalius.data.writers.overlay_video import write_overlay
from vesalius.errors import OutputError
from vesalius.visualization import overlay

pytest.importorskip("av", reason="needs the extra video")


def clip(n: int, size: tuple[int, int] = (64, 96)) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Frames of a gray square that moves to the right, and its masks; the last mask is empty."""
    frames, masks = [], []
    for i in range(n):
        mask = np.zeros(size, dtype=bool)
        mask[16:40, 8 + 2 * i : 32 + 2 * i] = i < n - 1
        frames.append(np.where(mask, 160, 50).astype(np.uint8)[..., None].repeat(3, axis=2))
        masks.append(mask)
    return frames, masks


@pytest.mark.parametrize("codec", [0, 1])
def test_the_video_shows_each_mask_on_its_frame(tmp_path: Path, codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_video, "CODECS", overlay_video.CODECS[codec:])
    frames, masks = clip(12)
    path = tmp_path / "deep" / "video.mp4"
    assert write_overlay(path, iter(frames), iter(masks), fps=12.5) == 12
    read = read_video(path)
    assert len(read) == 12
    assert video.frame_time_ms(path) == pytest.approx(80)
    for got, frame, mask in zip(read, frames, masks, strict=True):
        error = np.abs(got.astype(int) - np.asarray(overlay(frame, mask)))
        assert error[24:32, 8:88].mean() < 6  # inside, away from the contour, which has half the color resolution
        assert error.mean() < 6
    assert [each.name for each in path.parent.iterdir()] == ["video.mp4"]


def test_odd_sides_are_padded_with_the_edge(tmp_path: Path) -> None:
    frame = np.full((33, 51, 3), 60, np.uint8)
    frame[-1], frame[:, -1] = 200, 200
    write_overlay(tmp_path / "odd.mp4", [frame] * 2, [np.zeros((33, 51), bool)] * 2, fps=5)
    read = read_video(tmp_path / "odd.mp4")[1]
    assert read.shape == (34, 52, 3)
    assert abs(read[-2:].astype(int) - 200).max() < 16
    assert abs(read[:, -2:].astype(int) - 200).max() < 16


def test_frames_are_consumed_one_at_a_time(tmp_path: Path) -> None:
    frames, masks = clip(3)
    alive: list[int] = []

    def stream() -> Iterator[np.ndarray]:
        for i in range(60):
            alive.append(i)
            yield frames[i % 3]

    assert write_overlay(tmp_path / "video.mp4", stream(), (masks[i % 3] for i in range(60)), fps=25) == 60
    assert alive == list(range(60))


def test_a_failed_video_leaves_no_file(tmp_path: Path) -> None:
    frames, masks = clip(4)
    path = tmp_path / "video.mp4"
    with pytest.raises(ValueError, match="zip"):
        write_overlay(path, frames, masks[:3], fps=10)
    with pytest.raises(ValueError, match="frame 1 is"):
        write_overlay(path, [frames[0], frames[0][:32]], [masks[0], masks[0][:32]], fps=10)
    with raises_code(OutputError, "nothing_to_write"):
        write_overlay(path, [], [], fps=10)
    with raises_code(OutputError, "bad_value", ".mp4"):
        write_overlay(tmp_path / "video.avi", frames, masks, fps=10)
    for fps in (0, -1, float("nan"), float("inf")):
        with raises_code(OutputError, "bad_value", f"{fps:g}"):
            write_overlay(path, frames, masks, fps=fps)
    assert list(tmp_path.iterdir()) == []
