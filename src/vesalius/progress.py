"""Progress display on stderr: one line on a terminal, otherwise a plain line every 15 seconds.

On a terminal the line is cleared before each message, so messages and progress never share a line. Messages are all
texts that the program prints or logs while the display is open.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm
from tqdm.utils import disp_len

PLAIN_LINE_EVERY_S = 15.0
"""Seconds between progress lines if stderr is not a terminal."""
NARROWEST_BAR = 4
"""Columns of the bar on a terminal that is too narrow for all values; values are then left out from the end."""


class Progress:
    """Context manager that shows the progress of a job up to `total`.

    `unit` names the counted things in the singular; the display then has their count, their number per second and the
    time left. Without a unit `total` is only the end of the job, such as 1.0. A total of None comes with `reach_of`.
    Nothing is shown before the first call of `reach`, so a process that reports nothing displays nothing.
    """

    def __init__(self, total: float | None, label: str, unit: str | None = "image") -> None:
        self._total, self._label, self._unit = total or 1.0, label, unit
        self._bar: _Bar | None = None
        self._first: tuple[float, float] | None = None
        self._printed = time.monotonic()
        self._terminal = sys.stderr if sys.stderr.isatty() else None
        self._redirected = ExitStack()

    def __enter__(self) -> Self:
        if self._terminal is not None:
            self._redirect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        self._redirected.close()

    def reach(self, done: float, *notes: str) -> None:
        """Show that `done` of the total is complete.

        The notes follow on the line, the first before the time left and the others after it.
        """
        values = self._values(done, time.monotonic(), [note for note in notes if note])
        if self._terminal is not None:
            if self._bar is None:
                self._bar = _Bar(self._terminal, self._label, self._total, done, values)
            else:
                self._bar.show(done, values)
        elif (now := time.monotonic()) - self._printed >= PLAIN_LINE_EVERY_S:
            self._printed = now
            percent = f"{100 * done / self._total:.0f} %"
            print(f"{self._label}: {', '.join((percent, *values))}", file=sys.stderr, flush=True)

    def reach_of(self, done: float, total: float) -> None:
        """Like `reach`, for a total that is known only now."""
        self._total = total
        self.reach(done)

    def _values(self, done: float, now: float, notes: Sequence[str]) -> list[str]:
        """The values of one display. Rate and time left count from the first call, so that start-up is excluded."""
        if self._first is None:
            self._first = done, now
        done_before, began = self._first
        rate = (done - done_before) / (now - began) if done > done_before and now > began else None
        left = [] if rate is None else [f"{duration((self._total - done) / rate)} left"]
        if self._unit is None:
            return [*notes[:1], *left, *notes[1:]]
        speed = [] if rate is None else [f"{rate:.1f} {self._unit}s/s" if rate < 100 else f"{rate:.0f} {self._unit}s/s"]
        return [f"{done:.0f}/{self._total:.0f} {self._unit}s", *speed, *left, *notes]

    def _redirect(self) -> None:
        """Pass stdout, stderr and the log through `_AboveBar` until this display closes."""
        real: dict[int, _AboveBar] = {}
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            above = real.setdefault(id(stream), _AboveBar(stream, self))
            self._redirected.enter_context(redirect(above))
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and id(handler.stream) in real:
                self._redirected.callback(handler.setStream, handler.setStream(real[id(handler.stream)]))
        for above in real.values():
            self._redirected.callback(above.write_rest)

    def write_above(self, stream: TextIO, text: str) -> None:
        """Write complete lines to a stream where the progress line was, and show that again below."""
        with tqdm.get_lock():
            if self._bar is not None:
                self._bar.clear(nolock=True)
            stream.write(text)
            stream.flush()
            # a reader such as `tee` prints the text a moment later, so the next `reach` draws the line
            if self._bar is not None and stream.isatty():
                self._bar.refresh(nolock=True)


class _AboveBar:
    """A text stream that passes complete lines to `Progress.write_above`; other attributes are those of the stream."""

    def __init__(self, stream: TextIO, progress: Progress) -> None:
        self._stream, self._progress, self._rest = stream, progress, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        lines, newline, self._rest = (self._rest + text).rpartition("\n")
        if newline:
            self._progress.write_above(self._stream, lines + newline)
        return len(text)

    def write_rest(self) -> None:
        """Write the last line if it has no end."""
        self._stream.write(self._rest)
        self._rest = ""


class _Bar(tqdm):
    """A tqdm bar with the values of `Progress`; it is as wide as the terminal and disappears at the end."""

    def __init__(self, terminal: TextIO, label: str, total: float, done: float, values: Sequence[str]) -> None:
        self._values = values
        super().__init__(
            desc=label,
            total=total,
            initial=done,
            file=terminal,
            bar_format="{desc} {percentage:3.0f} % |{bar}| {values}",
            dynamic_ncols=True,
            leave=False,
            miniters=0,
        )

    def show(self, done: float, values: Sequence[str]) -> None:
        """Set the values and draw the line, at most ten times per second."""
        self._values = values
        self.update(done - self.n)

    @property
    def format_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = dict(super().format_dict)
        found["values"] = fitting(self._values, found["ncols"], disp_len(f"{self.desc} 100 % || ") + NARROWEST_BAR)
        return found


def fitting(values: Sequence[str], columns: int | None, taken: int) -> str:
    """As many of the first values as fit beside `taken` columns on a terminal, separated by commas."""
    shown = list(values)
    while shown and columns and disp_len(", ".join(shown)) + taken > columns:
        shown.pop()
    return ", ".join(shown)


def duration(seconds: float) -> str:
    """A duration in words: `40 s`, `12 min` or `3 h 20 min`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
