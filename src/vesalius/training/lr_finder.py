"""A learning rate to begin with: the rate rises step by step, and the loss says where it is too small and too large."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vesalius.errors import TrainingError
from vesalius.files import replacing

if TYPE_CHECKING:
    from vesalius.training.loader import Part
    from vesalius.training.loop import Run

P = TypeVar("P")

LOWEST, HIGHEST, STEPS = 1e-7, 1.0, 80
"""Rates of the first and the last step, and how many there are."""
REMEMBERED = 0.85
"""Share of the mean loss so far that the next step keeps."""
TOO_LARGE = 3.0
"""Times the best mean loss, at which the search ends."""


@dataclass(frozen=True)
class Search:
    """Rates that were tried, the loss before the step with each, and its running mean."""

    rates: list[float]
    losses: list[float]
    means: list[float]

    @property
    def lowest_at(self) -> float:
        """The rate at which the mean loss was lowest."""
        return self.rates[int(np.argmin(self.means))]

    @property
    def suggestion(self) -> float:
        """A tenth of it, to two digits: there the loss still falls, and fast."""
        return float(f"{self.lowest_at / 10:.1e}")

    @property
    def found(self) -> bool:
        """Whether the loss fell, by a tenth at least."""
        return min(self.means) < 0.9 * self.means[0]

    def as_json(self) -> dict[str, Any]:
        """For `--json`; no suggestion where none was found."""
        tried = {"rates": self.rates, "losses": self.losses, "means": self.means}
        return {"suggestion": self.suggestion if self.found else None, **tried}

    def __str__(self) -> str:
        if not self.found:
            return (
                f"no learning rate found: the loss did not fall between {self.rates[0]:.0e} and {self.rates[-1]:.0e} "
                f"({self.means[0]:.3f} at first, {min(self.means):.3f} at best); look at the data and at trainable"
            )
        if self.lowest_at == self.rates[-1]:
            return (
                f"learning rate: the loss still fell ({self.means[0]:.3f} to {min(self.means):.3f}) at the highest rate "
                f"that was tried, {self.rates[-1]:.1e}; optim.lr={self.suggestion:.1e} is the most to try"
            )
        return (
            f"learning rate: try optim.lr={self.suggestion:.1e}; the loss was lowest ({min(self.means):.3f}, "
            f"{self.means[0]:.3f} at first) at {self.lowest_at:.1e}, and the search ended at {self.rates[-1]:.1e}"
        )


def find_rate(run: Run, on_progress: Callable[[float], None] = lambda share: None) -> Search:
    """Train a run that nobody keeps, with rates from `LOWEST` to `HIGHEST`. Its weights are spoilt afterwards.

    Source: Smith 2017, Cyclical learning rates for training neural networks, WACV; that it ends where the loss has
    grown, and its running mean, as in fastai.
    """
    run.learner.module.train()
    return search(
        lambda rate, parts: _step(run, rate, parts),
        _steps(run),
        np.geomspace(LOWEST, HIGHEST, STEPS).tolist(),
        on_progress,
    )


def search(
    step: Callable[[float, P], float],
    batches: Iterator[P],
    rates: Sequence[float],
    on_progress: Callable[[float], None] = lambda share: None,
) -> Search:
    """Take a step with each rate until the mean loss is far above its best, or is no number; `batches` do not end."""
    tried: list[float] = []
    losses: list[float] = []
    means: list[float] = []
    mean = 0.0
    for rate in rates:
        loss = step(rate, next(batches))
        mean = REMEMBERED * mean + (1 - REMEMBERED) * loss
        unbiased = mean / (1 - REMEMBERED ** (len(means) + 1))
        if not math.isfinite(loss) or (means and unbiased > TOO_LARGE * min(means)):
            break
        tried.append(rate)
        losses.append(loss)
        means.append(unbiased)
        on_progress(len(tried) / len(rates))
    if not tried:
        raise TrainingError(
            "the loss is no number at the first step, before any weight moved; look at the data"
        )
    return Search(tried, losses, means)


def _steps(run: Run) -> Iterator[Sequence[Part]]:
    """Parts of step after step, over as many epochs as there must be."""
    for epoch in count():
        for step in run.feed.steps(epoch, 0, run.settings.optim.gradient_accumulation_steps):
            yield step.parts


def _step(run: Run, rate: float, parts: Sequence[Part]) -> float:
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]
    total = 0.0
    for part in parts:
        with run.engine.alone(run.model, last=part is parts[-1]):
            loss = part.share * run.learner.losses(run.model, part.batch.to(run.engine.device))["total"]
            run.engine.backward(loss)
        total += loss.item()
    parameters = [p for group in run.learner.groups.values() for p in group]
    run.engine.clip(parameters, run.settings.optim.max_grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return sum(run.engine.gather(total))


def draw_search(found: Search, path: Path) -> None:
    """Write a PNG of loss over rate, with the suggestion as an upright line."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color="#777777", alpha=0.5, linewidth=0.8, label="each step")
    axes.plot(found.rates, found.means, color="#0072b2", linewidth=2, label="running mean")
    if found.found:
        axes.axvline(found.suggestion, color="#d55e00", label=f"suggestion: {found.suggestion:.1e}")
    axes.set(xscale="log", xlabel="learning rate", title="loss while the learning rate rises")
    axes.set_ylim(top=1.1 * max(found.losses[: len(found.losses) // 2 + 1]))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
