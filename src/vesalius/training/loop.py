"""The training loop: optimizer steps, logging, checkpoints and validation."""

from __future__ import annotations

import math
import resource
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vesalius.errors import TrainingError
from vesalius.files import write_json
from vesalius.training.context import TrainingContext
from vesalius.training.loader import Microbatch
from vesalius.training.memory_probe import probe_memory
from vesalius.training.run_folder import TrainState
from vesalius.training.sanity import GradientCheck, measure_baseline
from vesalius.training.sharding import is_sharded, local_shard, unsharded
from vesalius.training.signals import SignalHandler
from vesalius.training.validation import check_progress, record, score_validation_set, validate

MIN_LR_FACTOR = 1e-3
"""Minimum learning rate as a fraction of `optim.lr`; at 0 the last step would have no effect."""


@dataclass(frozen=True)
class Measured:
    """Sample ids, weight and losses of one microbatch, gathered over processes."""

    ids: list[str]
    weight: float
    losses: dict[str, float]


def run_loop(context: TrainingContext, state: TrainState) -> None:
    """Train to the end of the run or until a signal arrives; validate after epochs and at the end.

    A checkpoint is saved before each validation and every `save_every_minutes`. After a signal, the current step is
    completed and saved, and InterruptionError is raised.
    """
    before_first_step(context, state)
    if state.step and state.validated_step == state.step:
        check_progress(context, state)  # the run may have stopped early before it was resumed
    begun = state.step
    groups, in_any_process = context.learner.groups, context.process.in_any_process
    check = None if state.gradients_checked else GradientCheck(groups, in_any_process)
    with SignalHandler(context.folder.path) as signals:
        while True:
            if validation_is_due(context, state):
                if state.saved_step != state.step:
                    save(context, state)
                with signals.stop_at_once(state.step):
                    validate(context, state)
            if state.stopped_early or context.progress(state) >= 1:
                break
            train_epoch(context, state, check, signals)
    if check is not None and state.step > begun:
        check.verify_at_end()


def before_first_step(context: TrainingContext, state: TrainState) -> None:
    """Initialize FSDP2; in a new run also run the memory probe and the baseline score. A collective."""
    module = context.learner.module
    if is_sharded(module):
        _initialize_shards(context)
    if state.step:
        return
    if context.process.device.type == "cuda":
        context.monitoring.on_note(probe_memory(context))
    if "start_fingerprint" not in context.card.lineage:  # a baseline of random weights is meaningless
        return
    refitted = context.settings.projector == "fitted" and hasattr(module, "projector")
    with unsharded(module):
        baseline = measure_baseline(
            context.learner, context.card, context.loader.samples, context.settings.batch_size, refitted
        )
    context.monitoring.on_note(str(baseline))
    if context.validation_samples:
        record(context, score_validation_set(context, state))


def _initialize_shards(context: TrainingContext) -> None:
    """Run one forward pass in training mode, because FSDP2 initializes itself in the first full forward pass."""
    context.learner.module.train()
    microbatch = next(context.loader.steps(0)).microbatches[0]
    with unsharded(context.learner.module):  # reshards modules that would stay gathered until a backward pass
        context.learner.losses(context.model, microbatch.batch.to(context.process.device))


def validation_is_due(context: TrainingContext, state: TrainState) -> bool:
    """Whether the current step is not validated yet and ends the run or an epoch with validation."""
    every = context.settings.validate_.every_epochs
    epoch_ended = state.batch_in_epoch == 0 and state.epoch % every == 0
    return state.step != state.validated_step and (epoch_ended or context.progress(state) >= 1)


def train_epoch(
    context: TrainingContext, state: TrainState, check: GradientCheck | None, signals: SignalHandler
) -> None:
    """Train to the end of the epoch, or of the run if it ends first."""
    context.learner.module.train()
    started = time.perf_counter()
    for step in context.loader.steps(state.epoch, state.batch_in_epoch):
        losses, grad_norm = train_step(context, state, step.microbatches, check)
        took_s = context.process.broadcast(time.perf_counter() - started)  # includes waiting for data
        if context.average is not None:
            context.average.update()
        state.training_s += took_s
        state.batch_in_epoch += len(step.microbatches)
        state.step += 1
        log_step(context, state, losses, grad_norm, step.images / took_s)
        if state.batch_in_epoch >= context.loader.batches_in_epoch():
            state.epoch, state.batch_in_epoch = state.epoch + 1, 0
        if check is not None:
            state.gradients_checked = state.gradients_checked or check.verify_when_due()
        save_or_stop(context, state, signals)
        started = time.perf_counter()  # excludes the time of a checkpoint
        if context.progress(state) >= 1:
            break


def train_step(
    context: TrainingContext, state: TrainState, microbatches: Sequence[Microbatch], check: GradientCheck | None
) -> tuple[dict[str, float], float]:
    """Run one optimizer step on the mean loss over all processes' images; returns mean losses and the gradient norm."""
    process, optimizer = context.process, context.optimizer
    seed_step(context.settings.seed, state.step, process.rank)
    set_lr(optimizer, context.settings.optim.lr * lr_factor(context, state))
    own = [
        Measured(each.ids, each.weight, backward(context, each, is_last=each is microbatches[-1]))
        for each in microbatches
    ]
    grad_norm = process.clip_grad_norm(trained_parameters(context), context.settings.optim.max_grad_norm)
    measured = [each for of_one in process.gather(own) for each in of_one]
    check_finite(context, state, measured, grad_norm)
    if check is not None:
        check.note_gradients(any(each.losses["mask"] > 0 for each in measured))
    optimizer.step()
    optimizer.zero_grad()
    means: dict[str, float] = defaultdict(float)
    for each in measured:
        for name, value in each.losses.items():
            means[name] += each.weight * value
    return means, grad_norm


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generator (dropout) from run seed, step and rank, so that a resumed run draws the same numbers."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of each parameter group to `lr` times its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["multiplier"]


def lr_factor(context: TrainingContext, state: TrainState) -> float:
    """Learning rate as a fraction of `optim.lr`: linear warm-up, then cosine decay to `MIN_LR_FACTOR`."""
    total = context.total_steps
    # progress at the midpoint of this step, so that the rate is above 0 in the first and last step
    done = context.progress(state) + (0.5 / total if total else 5e-4)
    warmup = context.settings.optim.warmup_ratio
    if done < warmup:
        return done / warmup
    return max(MIN_LR_FACTOR, 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup)))))


def trained_parameters(context: TrainingContext) -> list[torch.nn.Parameter]:
    """All trainable parameters."""
    return [parameter for group in context.learner.groups.values() for parameter in group]


def backward(context: TrainingContext, microbatch: Microbatch, is_last: bool) -> dict[str, float]:
    """Accumulate the gradient of one microbatch and return its losses; the last microbatch all-reduces gradients."""
    process = context.process
    with process.no_sync(context.model, is_last):
        losses = context.learner.losses(context.model, microbatch.batch.to(process.device))
        process.backward(microbatch.weight * losses["total"])
        return {name: value.item() for name, value in losses.items()}


def check_finite(context: TrainingContext, state: TrainState, measured: Sequence[Measured], grad_norm: float) -> None:
    """Raise TrainingError if a loss or the gradient is NaN or infinite, before the weights change.

    The main process writes the losses of the failed step to `failure.json`.
    """
    wrong = [each for each in measured if not all(map(math.isfinite, each.losses.values()))]
    if not wrong and math.isfinite(grad_norm):
        return
    step, path = state.step + 1, context.folder.path / "failure.json"
    what, value = ("loss", wrong[0].losses["total"]) if wrong else ("gradient", grad_norm)
    if context.process.is_main:
        batches = [{"ids": each.ids, "losses": {name: str(v) for name, v in each.losses.items()}} for each in measured]
        failure = {"step": step, "epoch": state.epoch, "grad_norm": str(grad_norm), "batches": batches}
        write_json(path, failure)
    ids = dict.fromkeys(sample_id for each in wrong or measured for sample_id in each.ids)
    last = context.folder.path / "last"
    left = "the last checkpoint is intact" if last.exists() else "there is no checkpoint yet"
    raise TrainingError(
        f"the {what} became {value} at step {step} on the samples {', '.join(ids)}: look at these images, or lower "
        f"optim.lr; {path} has the losses, and {left}",
        code="not_finite_loss",
        path=path,
    )


def save_or_stop(context: TrainingContext, state: TrainState, signals: SignalHandler) -> None:
    """Save a checkpoint if it is due or a process received a signal; a signal also ends the run. A collective."""
    due = time.monotonic() - state.saved_at > 60 * context.settings.save_every_minutes
    answers = context.process.gather((signals.received, due))
    received = [number for number, _ in answers if number is not None]
    if received or answers[0][1]:
        save(context, state)
    if received:
        raise signals.error(received[0], state.step)


def log_step(
    context: TrainingContext, state: TrainState, losses: dict[str, float], grad_norm: float, images_per_s: float
) -> None:
    """In the main process, append a line to `log.jsonl` and pass it to trackers and `on_step`."""
    if not context.process.is_main:
        return
    first = context.optimizer.param_groups[0]
    line = {
        "step": state.step,
        "epoch": state.epoch,
        "loss": losses["total"],
        **{f"loss_{name}": value for name, value in losses.items() if name != "total"},
        "lr": first["lr"] / first["multiplier"],
        "grad_norm": grad_norm,
        "images_per_s": round(images_per_s, 3),
        "peak_bytes": peak_bytes(context.process.device),
        "progress": context.progress(state),
    }
    context.folder.append(context.folder.log, line)
    context.monitoring.trackers.log_step(line)
    context.monitoring.on_step(line)


def peak_bytes(device: torch.device) -> int:
    """Peak GPU memory in bytes; on a CPU, peak resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def save(context: TrainingContext, state: TrainState) -> None:
    """Write a checkpoint that resumes the run exactly. A collective.

    Raises TrainingError if a weight is NaN or infinite; `last` then stays the previous checkpoint.
    """
    spoiled = [
        name
        for name, group in context.learner.groups.items()
        if not all(bool(local_shard(parameter.detach()).isfinite().all()) for parameter in group)
    ]
    if context.process.in_any_process(bool(spoiled)):
        raise TrainingError(
            f"weights of {', '.join(spoiled) or 'another process'} became NaN or infinite by step {state.step}, which is "
            "not saved: start a new run with a lower optim.lr",
            code="not_finite_weights",
        )

    def write_extras(checkpoint: Path) -> None:
        context.write_card(checkpoint, state.step)
        if context.average is not None:
            context.average.save(checkpoint)

    card = context.card.changed(step=state.step)
    with context.averaged():
        context.folder.save(context.process, context.learner, card, context.optimizer, state, write_extras)
    state.saved_step, state.saved_at = state.step, time.monotonic()
