"""Damaged files of every format are read or raise one error; none crashes, hangs or exhausts memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vesalius.data.formats import FORMATS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FRAMES = ("dicom", "nifti", "video")


@pytest.mark.parametrize(("formats", "cases"), [([each for each in FORMATS if each not in FRAMES], 400), (FRAMES, 150)])
def test_no_damage_breaks_a_reader(tmp_path: Path, formats: list[str], cases: int) -> None:
    chosen = [word for name in formats for word in ("--format", name)]
    command = [sys.executable, BENCHMARKS / "fuzz_readers.py", "--cases", cases, *chosen, "--json", tmp_path / "t.json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "t.json").read_text())
    assert {row["format"] for row in result["rows"]} == set(formats)
    assert result["failures"] == []
    # the damage has an effect in every format, and some datasets stay readable
    assert all(0 < row["read"] < cases for row in result["rows"])
