"""Readers of run folders for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def lines(run: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    """The lines of a log of a run."""
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def losses(run: Path) -> list[float]:
    """The loss of each step."""
    return [line["loss"] for line in lines(run)]


class StopAfter:
    """An `on_step` that interrupts in the step after the given one, as Ctrl-C would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, line: dict[str, Any]) -> None:
        if line["step"] > self.step:
            raise KeyboardInterrupt
