"""`vesalius predict` on 2,000 images, killed twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vesalius.masks import decode_rle

from ..segmenters import draw_squares

N = 2000


@pytest.mark.slow
def test_command_killed_twice_ends_with_each_answer_once(tmp_path: Path) -> None:
    draw_squares(tmp_path / "in", N)
    (tmp_path / "in" / "500.png").write_bytes(b"no image")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vesalius", "predict", "tiny", str(tmp_path / "in")]
    command += ["--prompt", "blood vessel", "--out", str(out), "--json"]
    lines = out / ".predictions.unfinished"
    for share in (0.2, 0.7):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
            while not lines.exists() or lines.read_bytes().count(b"\n") < share * N:
                time.sleep(0.05)
                assert job.poll() is None
            job.send_signal(signal.SIGKILL)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "failed: " in done.stderr and "500.png" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["coverage"] == {"ok": N - 1, "no_seg": 0, "failed": 1}
    answers = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert sorted(line["id"] for line in answers) == sorted(f"{index:03d}" for index in range(N))
    for line in answers:
        if line["status"] == "ok":
            with Image.open(out / line["mask"]) as mask:
                np.testing.assert_array_equal(np.asarray(mask) > 0, decode_rle(line["rle"]))
    assert len(list((out / "masks").iterdir())) == N - 1
    assert {path.name for path in out.iterdir()} == {"masks", "overlays", "predictions.jsonl", "run.json"}
