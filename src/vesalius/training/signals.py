"""SIGTERM and Ctrl-C: the first signal ends the run after the current step is saved, the second one immediately."""

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


class SignalHandler:
    """Context manager that records signals; the training loop reads `received` between steps.

    Python delivers signals to the main thread only, so a run in another thread is not interrupted.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.received: signal.Signals | None = None
        self._saved_step: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        again = self.received is not None
        self.received = signal.Signals(number)
        if self._saved_step is not None:
            raise self.error(self.received, self._saved_step)
        if again:
            raise KeyboardInterrupt

    @contextmanager
    def stop_at_once(self, saved_step: int) -> Iterator[None]:
        """Context in which the first signal ends the run immediately, because `saved_step` is already on disk."""
        self._saved_step = saved_step
        try:
            if self.received is not None:
                raise self.error(self.received, saved_step)
            yield
        finally:
            self._saved_step = None

    def error(self, number: signal.Signals, step: int) -> InterruptionError:
        """The exception that ends the run once `step` is saved."""
        return InterruptionError(
            f"{self.run}: stopped by {number.name} after step {step}, which is saved; continue with "
            f"vesalius train --resume {self.run}",
            number,
        )
