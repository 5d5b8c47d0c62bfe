"""Learning rate finder: train with exponentially rising learning rates and suggest one from the loss curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vesalius.errors import TrainingError
from vesalius.files import replacing
from vesalius.fonts import fit_fonts, label
from vesalius.training.context import TrainingContext
from vesalius.training.loader import Microbatch
from vesalius.training.loop import backward, set_lr, trained_parameters

P = TypeVar("P")

LOWEST, HIGHEST, STEPS = 1e-7, 1.0, 80
"""First and last learning rate, and number of steps."""
SMOOTHING = 0.85
"""Decay of the exponential moving average of the loss."""
DIVERGED = 3.0
"""The search ends when the averaged loss exceeds 3 times its minimum, after the first `SKIPPED` steps."""
SKIPPED = 10
"""The first 10 averages, of few losses, are too noisy for a suggestion, as in fastai."""


@dataclass(frozen=True)
class LrSearch:
    """Learning rates tried, the loss before the step with each rate, and the moving average of the loss."""

    rates: list[float]
    losses: list[float]
    means: list[float]

    @property
    def best_rate(self) -> float:
        """The rate with the lowest averaged loss, after the first `SKIPPED` steps."""
        return self.rates[self._start + int(np.argmin(self.means[self._start :]))]

    @property
    def suggestion(self) -> float:
        """A tenth of `best_rate`, rounded to two digits; at this rate the loss still falls fast."""
        return float(f"{self.best_rate / 10:.1e}")

    @property
    def found(self) -> bool:
        """Whether the averaged loss fell by at least 10 % after the first `SKIPPED` steps."""
        return self._lowest < 0.9 * self._first

    @property
    def _start(self) -> int:
        return min(SKIPPED, len(self.means) - 1)

    @property
    def _first(self) -> float:
        return self.means[self._start]

    @property
    def _lowest(self) -> float:
        return min(self.means[self._start :])

    def as_json(self) -> dict[str, Any]:
        """The search for `--json`; `suggestion` is None if the loss fell by less than 10 %."""
        tried = {"rates": self.rates, "losses": self.losses, "means": self.means}
        return {"suggestion": self.suggestion if self.found else None, **tried}

    def __str__(self) -> str:
        if not self.found:
            return (
                f"no learning rate found: the loss fell by less than 10 % ({self._first:.3f} at first, {self._lowest:.3f} at "
                f"best) between {self.rates[0]:.0e} and {self.rates[-1]:.0e}; if the model does not know such data yet, check "
                "the data and trainable"
            )
        if self.best_rate == self.rates[-1]:
            return (
                f"learning rate: the loss still fell ({self._first:.3f} to {self._lowest:.3f}) at the highest rate "
                f"tried, {self.rates[-1]:.1e}; try at most optim.lr={self.suggestion:.1e}"
            )
        return (
            f"learning rate: try optim.lr={self.suggestion:.1e}; the loss was lowest ({self._lowest:.3f}, "
            f"{self._first:.3f} at first) at {self.best_rate:.1e}, and the search ended at {self.rates[-1]:.1e}"
        )


def search_lr(context: TrainingContext, on_progress: Callable[[float], None] = lambda fraction: None) -> LrSearch:
    """Train with learning rates from `LOWEST` to `HIGHEST`; the weights are useless afterwards.

    Source: Smith 2017, Cyclical learning rates for training neural networks, WACV. Moving average and stopping rule are
    those of fastai.
    """
    context.learner.module.train()
    return sweep(
        lambda rate, microbatches: _train_step(context, rate, microbatches),
        _endless_steps(context),
        np.geomspace(LOWEST, HIGHEST, STEPS).tolist(),
        on_progress,
    )


def sweep(
    step: Callable[[float, P], float],
    batches: Iterator[P],
    rates: Sequence[float],
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> LrSearch:
    """Take one step per rate until the averaged loss diverges or the loss is not finite; `batches` must be endless."""
    tried: list[float] = []
    losses: list[float] = []
    means: list[float] = []
    mean = 0.0
    for rate in rates:
        loss = step(rate, next(batches))
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        unbiased = mean / (1 - SMOOTHING ** (len(means) + 1))
        if not math.isfinite(loss) or (means[SKIPPED:] and unbiased > DIVERGED * min(means[SKIPPED:])):
            break
        tried.append(rate)
        losses.append(loss)
        means.append(unbiased)
        on_progress(len(tried) / len(rates))
    if not tried:
        raise TrainingError(
            "the loss is NaN or infinite at the first step, before any weight changed; check the data",
            code="not_finite_loss",
        )
    return LrSearch(tried, losses, means)


def _endless_steps(context: TrainingContext) -> Iterator[Sequence[Microbatch]]:
    for epoch in count():
        for step in context.loader.steps(epoch):
            yield step.microbatches


def _train_step(context: TrainingContext, rate: float, microbatches: Sequence[Microbatch]) -> float:
    set_lr(context.optimizer, rate)
    total = 0.0
    for each in microbatches:
        losses = backward(context, each, is_last=each is microbatches[-1])
        total += each.weight * losses["total"]
    context.process.clip_grad_norm(trained_parameters(context), context.settings.optim.max_grad_norm)
    context.optimizer.step()
    context.optimizer.zero_grad()
    return sum(context.process.gather(total))


def draw_search(search: LrSearch, path: Path) -> None:
    """Write a PNG of loss against learning rate, with a vertical line at the suggested rate."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(search.rates, search.losses, color="#777777", alpha=0.5, linewidth=0.8, label=label("each step"))
    axes.plot(search.rates, search.means, color="#0072b2", linewidth=2, label=label("moving average"))
    if search.found:
        axes.axvline(
            search.suggestion, color="#d55e00", label=label("suggestion: {rate}", rate=f"{search.suggestion:.1e}")
        )
    axes.set(xscale="log", xlabel=label("learning rate"), title=label("loss while the learning rate rises"))
    axes.set_ylim(top=1.1 * max(search.losses[: len(search.losses) // 2 + 1]))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    fit_fonts(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
