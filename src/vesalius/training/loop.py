"""The training loop, in the order in which things happen."""

from __future__ import annotations

import contextlib
import math
import resource
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from vesalius.errors import TrainingError
from vesalius.models.checkpoint import Card
from vesalius.training.curves import draw_curves
from vesalius.training.feed import Feed
from vesalius.training.learner import Learner, Movable
from vesalius.training.rundir import RunDir, TrainState
from vesalius.training.settings import RunSettings
from vesalius.training.trainable import MovementCheck
from vesalius.training.validate import validate
from vesalius.types import Sample

CHECKED_STEPS = 3
"""After that many optimiser steps every trainable group must have moved."""


@dataclass
class Run:
    """All that one run works on."""

    settings: RunSettings
    learner: Learner
    card: Card
    feed: Feed
    val: list[Sample]
    run_dir: RunDir
    accelerator: Accelerator
    optimiser: torch.optim.Optimizer
    state: TrainState
    on_step: Callable[[dict[str, Any]], None]
    on_validation: Callable[[dict[str, Any]], None]

    def total_steps(self) -> int | None:
        """Optimiser steps of the whole run; None where it is bounded by time."""
        settings = self.settings
        if settings.epochs is not None:
            return settings.epochs * self.feed.steps_in_epoch(settings.optim.accumulate)
        return settings.steps

    def progress(self) -> float:
        """Share of the run that is done."""
        if self.settings.minutes is not None:
            return self.state.trained_s / (60 * self.settings.minutes)
        return self.state.step / (self.total_steps() or 1)


def run_loop(run: Run) -> None:
    """Train until the run's length is reached; validate and save at the end of epochs and of the run."""
    state, settings = run.state, run.settings
    model = run.accelerator.prepare_model(run.learner.module)
    check = MovementCheck(run.learner.groups) if state.step == 0 else None
    while run.progress() < 1:
        run.learner.module.train()
        started = time.perf_counter()
        for batches in run.feed.steps(state.epoch, state.batch_in_epoch, settings.optim.accumulate):
            losses, norm = train_step(run, model, batches, check)
            took_s = time.perf_counter() - started  # waiting for data included
            started += took_s
            state.trained_s += took_s
            state.batch_in_epoch += len(batches)
            state.step += 1
            report_step(run, losses, norm, sum(len(ids) for ids, _ in batches) / took_s)
            if check is not None and state.step == CHECKED_STEPS:
                check.verify()
                check = None
            if run.progress() >= 1:
                break
        if state.batch_in_epoch >= run.feed.batches_in_epoch():
            state.epoch, state.batch_in_epoch = state.epoch + 1, 0
        ended = run.progress() >= 1
        if ended or (state.batch_in_epoch == 0 and state.epoch % settings.validate_.every_epochs == 0):
            validate_and_save(run)
    if check is not None:  # a run of fewer steps than are waited for
        check.verify()


def train_step(
    run: Run, model: torch.nn.Module, batches: list[tuple[list[str], Movable]], check: MovementCheck | None
) -> tuple[dict[str, float], float]:
    """One step of the optimiser on the mean loss over the images of all `batches`: (losses, gradient's norm)."""
    for group in run.optimiser.param_groups:
        group["lr"] = run.settings.optim.lr * rate_factor(run) * group["factor"]
    images = sum(len(ids) for ids, _ in batches)
    totals: dict[str, float] = defaultdict(float)
    for index, (ids, batch) in enumerate(batches):
        last = index == len(batches) - 1
        with contextlib.nullcontext() if last else run.accelerator.no_sync(model):
            losses = backward(run, model, ids, batch, share=len(ids) / images)
        for name, value in losses.items():
            totals[name] += value
    if check is not None:
        check.note_gradients()
    parameters = [p for group in run.learner.groups.values() for p in group]
    norm = float(run.accelerator.clip_grad_norm_(parameters, run.settings.optim.clip))
    run.optimiser.step()
    run.optimiser.zero_grad()
    return totals, norm


def backward(
    run: Run, model: torch.nn.Module, ids: list[str], batch: Movable, share: float
) -> dict[str, float]:
    """Add the gradient of `share` times the losses of one batch, and return those."""
    batch = batch.to(run.accelerator.device)
    losses = run.learner.losses(model, batch)
    total = losses["total"]
    if not torch.isfinite(total):
        raise TrainingError(
            f"the loss became {total.item()} at step {run.state.step + 1} with the samples "
            f"{', '.join(ids)}: look at them, or lower optim.lr"
        )
    run.accelerator.backward(share * total)
    return {name: share * value.item() for name, value in losses.items()}


def rate_factor(run: Run) -> float:
    """Factor on the learning rate: rises over the warm-up, then falls to 0 on a cosine."""
    # the share in the middle of this step, so that neither the first nor the last stands still
    done = run.progress() + (0.5 / total if (total := run.total_steps()) else 5e-4)
    warmup = run.settings.optim.warmup
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup))))


def report_step(run: Run, losses: dict[str, float], norm: float, images_per_s: float) -> None:
    """One line in `log.jsonl`."""
    if not run.accelerator.is_main_process:
        return
    first = run.optimiser.param_groups[0]
    lr = first["lr"] / first["factor"]
    line = {
        "step": run.state.step,
        "epoch": run.state.epoch,
        "loss": losses["total"],
        **{f"loss_{name}": value for name, value in losses.items() if name != "total"},
        "lr": lr,
        "grad_norm": norm,
        "images_per_s": round(images_per_s * run.accelerator.num_processes, 3),
        "peak_bytes": peak_bytes(run.accelerator.device),
    }
    run.run_dir.append(run.run_dir.log, line)
    run.on_step({**line, "progress": run.progress()})


def peak_bytes(device: torch.device) -> int:
    """Most memory used so far: of the GPU, or of this process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def validate_and_save(run: Run) -> None:
    """Validate with the predictor, write the line and the checkpoint; the best one is the best by the metric."""
    state, settings = run.state, run.settings
    if run.accelerator.is_main_process:
        card = run.card.changed(step=state.step)
        is_best = True
        if run.val:
            segmenter = run.learner.segmenter(card, settings.batch)
            line = {"step": state.step, "epoch": state.epoch, **validate(segmenter, run.val)}
            value = line[settings.validate_.metric]
            is_best = state.best is None or (value is not None and value > state.best)
            if is_best:
                state.best = value
            run.run_dir.append(run.run_dir.validation, line)
            run.on_validation({**line, "best": is_best})
        folder = run.run_dir
        folder.save(run.learner, card, run.optimiser, state, is_best)
        draw_curves(folder.lines(folder.log), folder.lines(folder.validation), folder.path / "curves.png")
    run.accelerator.wait_for_everyone()
