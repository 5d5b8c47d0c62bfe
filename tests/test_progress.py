"""Tests of the progress display: a pseudo-terminal shows what a user sees at each moment."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from vesalius import progress
from vesalius.progress import Progress, duration, fitting

TALKATIVE = """
import logging, sys, warnings
from vesalius.progress import Progress
logging.basicConfig(stream=sys.stderr)
with Progress({total}, "train", unit={unit}) as shown:
    for done in range(1, 6):
        shown.reach(done, f"step {{done}} of 5", "loss 0.123", "validation dice 0.456")
        shown._bar.refresh()
        print("MESSAGE on stdout")
        sys.stdout.write("MESSAGE in ")
        shown._bar.refresh()
        sys.stdout.write("two parts\\n")
        print("MESSAGE on stderr", file=sys.stderr)
        logging.getLogger("some").warning("MESSAGE of the log")
        warnings.warn("MESSAGE of a warning")
    sys.stdout.write("MESSAGE without an end")
print(" continued")
"""


def run_in_terminal(command: list[str], columns: int) -> str:
    """Everything that a command writes to a terminal of this width."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "TQDM_NCOLS")}
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        parts = []
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # Linux: the last writer has closed the terminal
                break
            if not part:
                break
            parts.append(part)
        os.close(master)
    assert process.returncode == 0, b"".join(parts).decode()
    return b"".join(parts).decode()


def lines_at_each_moment(written: str, columns: int) -> Iterator[str]:
    """The current line of the terminal after each character."""
    line, at = "", 0
    for character in written:
        if character == "\r":
            at = 0
        elif character == "\n":
            line, at = "", 0
        else:
            assert character.isprintable(), f"an escape sequence: {character!r}"
            assert at < columns or "%" not in line, f"longer than the terminal: {line!r}"
            line, at = line[:at].ljust(at) + character + line[at + 1 :], at + 1
            yield line


def final_screen(written: str) -> list[str]:
    """The lines that remain, without blanks at their ends."""
    found = []
    for line in written.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        found.append(shown.rstrip())
    return found


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize(("total", "unit"), [(5.0, None), (5, "image")])
def test_a_message_and_the_progress_never_share_a_line(columns: int, total: float, unit: str | None) -> None:
    script = TALKATIVE.format(total=total, unit=repr(unit))
    written = run_in_terminal([sys.executable, "-c", script], columns)
    seen = set(lines_at_each_moment(written, columns))
    bars = {line for line in seen if " % |" in line}
    assert not [line for line in bars if "MESSAGE" in line]
    assert any(("3/5 images" if unit else "step 3 of 5") in line for line in bars)
    assert columns == 40 or any("loss 0.123" in line for line in bars)
    assert columns < 200 or any("validation dice 0.456" in line for line in bars)
    screen = final_screen(written)
    assert not [line for line in screen if "%" in line]
    for message in (
        "MESSAGE on stdout",
        "MESSAGE in two parts",
        "MESSAGE on stderr",
        "WARNING:some:MESSAGE of the log",
    ):
        assert screen.count(message) == 5
    assert "MESSAGE without an end continued" in screen


def test_a_command_on_a_terminal_shows_its_count_and_then_only_its_result(tmp_path: Path) -> None:
    command = "synth {} --n 6 --size 64 --num-workers 0".format(tmp_path / "made").split()
    written = run_in_terminal([sys.executable, "-m", "vesalius", *command], 80)
    assert "/6 images" in written
    assert [line for line in final_screen(written) if line] == [f"{tmp_path / 'made'}: 6 images, 12 masks"]


def test_without_a_terminal_a_plain_line_appears_every_15_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Progress(40, "predict") as shown:
        for done in range(41):
            shown.reach(done)
            now += 1
    with Progress(1.0, "train", unit=None) as shown:
        shown.reach(0.0, "step 0 of 4", "loss 2.000")
        now += 60
        shown.reach(0.25, "step 1 of 4", "loss 1.000", "")
    with Progress(None, "check") as shown:
        now += 30
        shown.reach_of(1, 2)
    assert capsys.readouterr().err.splitlines() == [
        "predict: 38 %, 15/40 images, 1.0 images/s, 25 s left",
        "predict: 75 %, 30/40 images, 1.0 images/s, 10 s left",
        "train: 25 %, step 1 of 4, 3 min left, loss 1.000",
        "check: 50 %, 1/2 images",
    ]


def test_values_are_left_out_from_the_end() -> None:
    assert fitting(["step 1", "2 min left", "loss 1"], 40, 10) == "step 1, 2 min left, loss 1"
    assert fitting(["step 1", "2 min left", "loss 1"], 30, 10) == "step 1, 2 min left"
    assert fitting(["步骤一", "两分钟"], 16, 4) == "步骤一"  # a Chinese character has two columns
    assert fitting(["step 1", "2 min left"], 8, 10) == ""
    assert fitting(["step 1", "2 min left"], None, 10) == "step 1, 2 min left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3600, "60 min"), (5400, "1 h 30 min"), (90000, "25 h 0 min")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
