"""The training loop, in the order in which things happen."""

from __future__ import annotations

import math
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vesalius.errors import TrainingError
from vesalius.files import write_json
from vesalius.models.cards import ModelCard
from vesalius.training.distributed import Engine
from vesalius.training.gradient_check import MovementCheck
from vesalius.training.learner import Learner
from vesalius.training.loader import Feed, Part
from vesalius.training.monitoring import Watch, begin, describe, draw, judge, measure, record, write_beside
from vesalius.training.run_folder import RunFolder, TrainState
from vesalius.training.settings import RunSettings
from vesalius.training.sharding import own_shard
from vesalius.training.signals import Interruption
from vesalius.types import Sample

LOWEST_RATE = 1e-3
"""Share of `optim.lr` that is always left: weights that stand still would look like training that reaches nothing."""


@dataclass
class Run:
    """All that one run works on."""

    settings: RunSettings
    learner: Learner
    card: ModelCard
    feed: Feed
    val: list[Sample]
    val_fingerprint: str
    """Of the samples that are validated on."""
    run_folder: RunFolder
    engine: Engine
    model: torch.nn.Module
    """The learner's module as the engine wrapped it, which is called."""
    optimizer: torch.optim.Optimizer
    state: TrainState
    on_step: Callable[[dict[str, Any]], None]
    on_validation: Callable[[dict[str, Any]], None]
    watch: Watch = field(default_factory=Watch)
    saved_step: int = 0
    saved_at: float = field(default_factory=time.monotonic)

    def total_steps(self) -> int | None:
        """Optimizer steps of the whole run; None where it is bounded by time."""
        settings = self.settings
        if settings.epochs is not None:
            return settings.epochs * self.feed.steps_in_epoch(settings.optim.gradient_accumulation_steps)
        return settings.steps

    def progress(self) -> float:
        """Share of the run that is done."""
        if self.settings.minutes is not None:
            return self.state.trained_s / (60 * self.settings.minutes)
        return self.state.step / (self.total_steps() or 1)

    def validation_is_due(self) -> bool:
        """Whether an epoch after which to validate, or the run, has ended and was not validated."""
        state = self.state
        epoch_ended = state.batch_in_epoch == 0 and state.epoch % self.settings.validate_.every_epochs == 0
        return state.step != state.validated and (epoch_ended or self.progress() >= 1)


def run_loop(run: Run) -> None:
    """Train until the run's length is reached, or a signal comes; validate at the end of epochs and of the run.

    Saves then and every `save_every_minutes`. After a signal raises InterruptionError when the step is saved.
    """
    begin(run)
    if run.state.step and run.state.validated == run.state.step:
        judge(run)  # the part of the run before may have ended early
    begun = run.state.step
    check = None if run.state.moved else MovementCheck(run.learner.groups, run.engine.anywhere)
    with Interruption(run.run_folder.path) as interruption:
        while True:
            if run.validation_is_due():
                if run.saved_step != run.state.step:
                    save(run)
                with interruption.nothing_to_lose(run.state.step):
                    validate_run(run)
            if run.watch.ended or run.progress() >= 1:
                break
            train_epoch(run, check, interruption)
    if check is not None and run.state.step > begun:
        check.verify_at_end()


def train_epoch(run: Run, check: MovementCheck | None, interruption: Interruption) -> None:
    """The rest of an epoch, or of the run."""
    state, accumulate = run.state, run.settings.optim.gradient_accumulation_steps
    run.learner.module.train()
    started = time.perf_counter()
    for step in run.feed.steps(state.epoch, state.batch_in_epoch, accumulate):
        losses, norm = train_step(run, step.parts, check)
        took_s = run.engine.agree(time.perf_counter() - started)  # waiting for data included
        if run.watch.average is not None:
            run.watch.average.update()
        state.trained_s += took_s
        state.batch_in_epoch += len(step.parts)
        state.step += 1
        report_step(run, losses, norm, step.images / took_s)
        if state.batch_in_epoch >= run.feed.batches_in_epoch():
            state.epoch, state.batch_in_epoch = state.epoch + 1, 0
        if check is not None:
            state.moved = state.moved or check.verify_when_due()
        stop_or_save(run, interruption)
        started = time.perf_counter()  # what a checkpoint takes is no time of a step
        if run.progress() >= 1:
            break


def train_step(
    run: Run, parts: Sequence[Part], check: MovementCheck | None
) -> tuple[dict[str, float], float]:
    """One step of the optimizer on the mean loss over the images of all processes: (losses, gradient's norm)."""
    seed_step(run)
    for group in run.optimizer.param_groups:
        group["lr"] = run.settings.optim.lr * rate_factor(run) * group["multiplier"]
    measured = []
    for part in parts:
        with run.engine.alone(run.model, last=part is parts[-1]):
            measured.append((part.ids, part.share, backward(run, part)))
    parameters = [p for group in run.learner.groups.values() for p in group]
    norm = run.engine.clip(parameters, run.settings.optim.max_grad_norm)
    everywhere = [each for of_one in run.engine.gather(measured) for each in of_one]
    refuse_what_is_not_finite(run, everywhere, norm)
    if check is not None:
        check.note_gradients(any(losses["mask"] > 0 for _, _, losses in everywhere))
    run.optimizer.step()
    run.optimizer.zero_grad()
    totals: dict[str, float] = defaultdict(float)
    for _, share, losses in everywhere:
        for name, value in losses.items():
            totals[name] += share * value
    return totals, norm


def seed_step(run: Run) -> None:
    """Make what torch draws in this step, as dropout does, a matter of (seed, step, process) alone."""
    entropy = [run.settings.seed, run.state.step, run.engine.rank]
    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


def backward(run: Run, part: Part) -> dict[str, float]:
    """Add the gradient of one batch's share of the step, and return its losses."""
    losses = run.learner.losses(run.model, part.batch.to(run.engine.device))
    run.engine.backward(part.share * losses["total"])
    return {name: value.item() for name, value in losses.items()}


def refuse_what_is_not_finite(
    run: Run, measured: Sequence[tuple[list[str], float, dict[str, float]]], norm: float
) -> None:
    """Raise TrainingError before a loss or gradient that is no number reaches the weights; `failure.json` tells of it."""
    wrong = [
        (ids, losses["total"]) for ids, _, losses in measured if not all(map(math.isfinite, losses.values()))
    ]
    if not wrong and math.isfinite(norm):
        return
    step = run.state.step + 1
    what, value = ("loss", wrong[0][1]) if wrong else ("gradient", norm)
    if run.engine.is_main:
        batches = [
            {"ids": ids, "losses": {name: str(v) for name, v in losses.items()}}
            for ids, _, losses in measured
        ]
        failure = {"step": step, "epoch": run.state.epoch, "grad_norm": str(norm), "batches": batches}
        write_json(run.run_folder.path / "failure.json", failure)
    ids = [each for of_batch, _ in wrong for each in of_batch] or [e for each in measured for e in each[0]]
    last = run.run_folder.path / "last"
    left = "the last checkpoint is whole" if last.exists() else "there is no checkpoint yet"
    raise TrainingError(
        f"the {what} became {value} at step {step} with the samples {', '.join(dict.fromkeys(ids))}: look at them, "
        f"or lower optim.lr; {run.run_folder.path / 'failure.json'} has the losses, and {left}"
    )


def stop_or_save(run: Run, interruption: Interruption) -> None:
    """Save where it is time, or where a signal came to any process, which also ends the run."""
    due = time.monotonic() - run.saved_at > 60 * run.settings.save_every_minutes
    news = run.engine.gather((interruption.signal, due))
    signals = [number for number, _ in news if number is not None]
    if signals or news[0][1]:
        save(run)
    if signals:
        raise interruption.told(signals[0], run.state.step)


def rate_factor(run: Run) -> float:
    """Factor on the learning rate: rises over the warm-up, then falls to `LOWEST_RATE` on a cosine."""
    # the share in the middle of this step, so that neither the first nor the last stands still
    done = run.progress() + (0.5 / total if (total := run.total_steps()) else 5e-4)
    warmup = run.settings.optim.warmup_ratio
    if done < warmup:
        return done / warmup
    return max(LOWEST_RATE, 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup)))))


def report_step(run: Run, losses: dict[str, float], norm: float, images_per_s: float) -> None:
    """One line in `log.jsonl`."""
    if not run.engine.is_main:
        return
    first = run.optimizer.param_groups[0]
    lr = first["lr"] / first["multiplier"]
    line = {
        "step": run.state.step,
        "epoch": run.state.epoch,
        "loss": losses["total"],
        **{f"loss_{name}": value for name, value in losses.items() if name != "total"},
        "lr": lr,
        "grad_norm": norm,
        "images_per_s": round(images_per_s, 3),
        "peak_bytes": peak_bytes(run.engine.device),
        "progress": run.progress(),
    }
    run.run_folder.append(run.run_folder.log, line)
    run.watch.trackers.log_step(line)
    run.on_step(line)


def peak_bytes(device: torch.device) -> int:
    """Most memory used so far: of the GPU, or of this process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def save(run: Run) -> None:
    """Write a checkpoint, from which the run continues exactly. A collective.

    TrainingError where a weight is no number, and the checkpoint before stays the last.
    """
    spoiled = [
        name
        for name, group in run.learner.groups.items()
        if not all(bool(own_shard(parameter.detach()).isfinite().all()) for parameter in group)
    ]
    if run.engine.anywhere(bool(spoiled)):
        raise TrainingError(
            f"weights of {', '.join(spoiled) or 'another process'} became nan or infinite by step {run.state.step}, which is "
            "not saved: start anew with a lower optim.lr"
        )
    card = run.card.changed(step=run.state.step)
    with run.watch.averaged():
        run.run_folder.save(
            run.engine,
            run.learner,
            card,
            run.optimizer,
            run.state,
            lambda folder: write_beside(run, folder),
        )
    run.saved_step, run.saved_at = run.state.step, time.monotonic()


def validate_run(run: Run) -> None:
    """Validate the checkpoint just saved and write the line; the best one is the best by the metric. A collective."""
    line = measure(run) if run.val else None
    # validated before on data that are not there any more, a run keeps the best of then
    best = record(run, line) if line is not None else not run.run_folder.lines(run.run_folder.validation)
    run.state.validated = run.state.step
    if run.engine.is_main:
        describe(run, run.run_folder.last(), line)
        run.run_folder.mark_validated(run.state, best)
        draw(run)
    run.engine.wait()
    judge(run)
