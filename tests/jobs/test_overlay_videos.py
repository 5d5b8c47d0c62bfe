"""Overlay videos of clips after the writing process was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.video_files import read_video

from vesalius.data.clips import group_clips
from vesalius.data.image_files import find_images
from vesalius.jobs import overlay_videos
from vesalius.jobs.folder import predict_and_write, write_predictions

from ..segmenters import SIDE, Bright

pytest.importorskip("av", reason="needs the extra video")

FRAMES = 100  # more than the encoder of MP4 looks ahead
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.jobs import test_overlay_videos
from vesalius.jobs import overlay_videos

def masks(files, size, original=overlay_videos._masks):
    for mask in original(files, size):
        if list(Path(sys.argv[3], "videos").glob(".*" + sys.argv[4] + ".*.partial")):
            os.kill(os.getpid(), signal.SIGKILL)
        yield mask

overlay_videos._masks = masks
test_overlay_videos.predict(Path(sys.argv[2]), Path(sys.argv[3]))
"""
"""Kills itself while it writes the video with this suffix."""


def predict(clip: Path, out: Path) -> None:
    samples = find_images([clip])
    worker = overlay_videos.with_videos(partial(predict_and_write, Bright()), group_clips(samples), ["light"])
    write_predictions(Bright(), samples, ["light"], out, save=["masks", "video"], worker=worker)


@pytest.mark.parametrize("suffix", [".mp4", ".masks.mkv"])
def test_video_of_a_killed_writer_is_removed_and_written_again(tmp_path: Path, suffix: str) -> None:
    clip, out = tmp_path / "cine.mkv", tmp_path / "out"
    shown = np.random.default_rng(0).random((FRAMES, SIDE, SIDE)) > 0.5
    overlay_videos.write_masks(clip, shown, (SIDE, SIDE), 15)
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", KILLED, str(root), str(clip), str(out), suffix]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = [path.name for path in (out / "videos").iterdir() if path.name.endswith(".partial")]
    assert len(left) == 1 and left[0].startswith(f".cine{suffix}.")
    predict(clip, out)
    assert sorted(path.name for path in (out / "videos").iterdir()) == ["cine.masks.mkv", "cine.mp4"]
    np.testing.assert_array_equal(
        [frame[:, :, 0] > 0 for frame in read_video(out / "videos" / "cine.masks.mkv")], shown
    )
    assert sorted(path.name for path in out.iterdir()) == ["masks", "predictions.jsonl", "run.json", "videos"]
