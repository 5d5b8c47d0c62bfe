"""Display of a training run on the terminal: messages, and a progress line with loss and last validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vesalius.progress import Progress
from vesalius.training.settings import RunSettings
from vesalius.training.validation import summarize


@contextmanager
def shown(settings: RunSettings, label: str = "train") -> Iterator[dict[str, Any]]:
    """Yield `on_note`, `on_step` and `on_validation` for `train` and `resume`, which display the run until the block ends.

    Notes and validations are printed. The progress line has the step, the time left, the last loss and the last value of
    `validate.metric`.
    """
    metric = settings.validate_.metric
    validated = ""

    def on_validation(line: Mapping[str, Any]) -> None:
        nonlocal validated
        print(summarize(line), flush=True)
        if line[metric] is not None:
            validated = f"validation {metric} {line[metric]:.3f}"

    with Progress(1.0, label, unit=None) as progress:
        yield {
            "on_note": print,
            "on_step": lambda line: progress.reach(
                min(1.0, line["progress"]), steps_of(settings, line), f"loss {line['loss']:.3f}", validated
            ),
            "on_validation": on_validation,
        }


def steps_of(settings: RunSettings, line: Mapping[str, Any]) -> str:
    """`step 27 of 220`, or `step 27` for a run that is limited by time, from a line of `log.jsonl`."""
    step = line["step"]
    return f"step {step}" if settings.minutes is not None else f"step {step} of {round(step / line['progress'])}"
