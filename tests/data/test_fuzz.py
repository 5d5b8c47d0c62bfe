"""Damaged files of every format: refused in one sentence, or read; never a crash, a hang or a full memory."""

import json
import subprocess
import sys
from pathlib import Path

from vesalius.data.formats import FORMATS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CASES = 150


def test_no_damage_breaks_a_reader(tmp_path: Path) -> None:
    command = [
        sys.executable,
        BENCHMARKS / "fuzz_readers.py",
        "--cases",
        str(CASES),
        "--json",
        tmp_path / "t.json",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "t.json").read_text())
    assert {row["format"] for row in result["rows"]} == set(FORMATS)
    assert result["failures"] == []
    # the damage is felt in every format, and does not end all of them
    assert all(0 < row["read"] < CASES for row in result["rows"])
