"""A split or import that is killed or cannot be written leaves no files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vesalius.cli import main

VERBS = {"split": ["--folds", "2"], "import": ["--pseudonymize"]}


def make(root: Path, n: int) -> Path:
    """A dataset of `n` images of noise without objects."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (200, 200), np.uint8)).save(root / "images" / f"{i}.png")
    entries = [{"image": f"{i}.png", "mask": [None], "text": ["vessel"]} for i in range(n)]
    (root / "annotations.json").write_text(json.dumps(entries))
    return root


@pytest.mark.parametrize("verb", VERBS)
def test_a_killed_job_leaves_nothing(tmp_path: Path, verb: str) -> None:
    command = [sys.executable, "-m", "vesalius", verb, make(tmp_path / "in", 60), tmp_path / "out", *VERBS[verb]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = tmp_path / f".out.{process.pid}.partial"
    deadline = time.monotonic() + 60
    while not partial.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    killed = process.wait(timeout=60) == 1
    assert killed or verb == "split"  # which may have finished before the signal
    if killed:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("fails", ["record", "rename"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str, fails: str
) -> None:
    data = make(tmp_path / "in", 4)
    write, rename = Path.write_text, Path.replace

    def fill(path: Path, text: str, **more: Any) -> int:
        if f"{verb}.json" in path.name:
            path.unlink(missing_ok=True)
            path.symlink_to("/dev/full")
        return write(path, text, **more)

    def refuse(path: Path, target: Path) -> Path:
        if target.name == "out":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, *(("write_text", fill) if fails == "record" else ("replace", refuse)))
        assert main([verb, str(data), str(tmp_path / "out"), *VERBS[verb]]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
