"""Progress display on stderr: a bar on a terminal, otherwise a plain line every 15 seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

PLAIN_LINE_EVERY_S = 15.0
"""Seconds between progress lines if stderr is not a terminal."""


class Progress:
    """Context manager that displays progress up to `total`."""

    def __init__(self, total: float, label: str, unit: str = "image") -> None:
        self._total, self._label, self._unit = total, label, unit
        self._done = 0.0
        self._started = self._printed = time.monotonic()
        self._bar = tqdm(total=total, desc=label, unit=unit, file=sys.stderr) if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def reach(self, done: float, note: str = "") -> None:
        """Show that `done` units of the total are complete, with an optional note."""
        step, self._done = done - self._done, done
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(step)
            return
        now = time.monotonic()
        if now - self._printed >= PLAIN_LINE_EVERY_S:
            self._printed = now
            percent = 100 * done / self._total
            print(f"{self._label}: {percent:.0f} % after {now - self._started:.0f} s {note}".rstrip(), file=sys.stderr)
