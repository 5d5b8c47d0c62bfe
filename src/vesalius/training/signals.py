"""SIGTERM and Ctrl-C: the step that runs is ended and saved; a second signal ends the run where it stands."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

from vesalius.errors import InterruptionError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """While it is entered, the first signal is only noted, and asked for between steps.

    Signals reach the main thread of a process alone; a run in another thread is not interrupted.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.signal: signal.Signals | None = None
        """The one that came."""
        self._saved_step: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        again = self.signal is not None
        self.signal = signal.Signals(number)
        if self._saved_step is not None:
            raise self.told(self.signal, self._saved_step)
        if again:
            raise KeyboardInterrupt

    @contextmanager
    def nothing_to_lose(self, step: int) -> Iterator[None]:
        """Within it the first signal ends the run at once: its last step is saved."""
        self._saved_step = step
        try:
            if self.signal is not None:
                raise self.told(self.signal, step)
            yield
        finally:
            self._saved_step = None

    def told(self, number: signal.Signals, step: int) -> InterruptionError:
        """What to raise when the step is saved."""
        return InterruptionError(
            f"{self.run}: stopped by {number.name} after step {step}, which is saved; continue with "
            f"vesalius train --resume {self.run}",
            number,
        )
