"""What watches over a run and shows it: looks at its start, measures and judges it, writes what people read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vesalius.errors import OutputError, SettingError, TrainingError
from vesalius.training.baseline_score import look_at_start
from vesalius.training.curves import draw_curves
from vesalius.training.early_stopping import (
    Line,
    best_line,
    check_changed,
    compare_with_start,
    is_best,
    judge_overfit,
    judge_phrases,
    validations_since_best,
)
from vesalius.training.ema import WeightAverage
from vesalius.training.figures import Sheet
from vesalius.training.memory_probe import probe_memory
from vesalius.training.model_card import write_model_card
from vesalius.training.sharding import is_sharded, readable
from vesalius.training.trackers import Trackers
from vesalius.training.validation import average, score_answers

if TYPE_CHECKING:
    from vesalius.training.loop import Run

AVERAGE = "average.pt"
"""In a checkpoint of a run with `optim.ema_decay`: the weights themselves, and their mean."""


@dataclass
class Watch:
    """What a run has for it."""

    on_note: Callable[[str], None] = lambda note: None
    trackers: Trackers = field(default_factory=Trackers)
    average: WeightAverage | None = None
    ended: bool = False
    """No validation was better for as long as `validate.patience` says."""

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the model is what is validated and saved."""
        return nullcontext() if self.average is None else self.average.applied()


def make_average(model: torch.nn.Module, decay: float | None) -> WeightAverage | None:
    """The mean of the weights that train, where it is wanted."""
    if decay is None:
        return None
    if is_sharded(model):
        raise SettingError(
            "optim.ema_decay cannot be used where the model lies in shards; leave it out, or use DDP"
        )
    return WeightAverage([each for each in model.parameters() if each.requires_grad], decay)


def begin(run: Run) -> None:
    """Before the first step: does it fit, what can the model do, and how good is it. A collective."""
    if is_sharded(run.learner.module):
        _set_up_shards(run)
    if run.state.step:
        return
    if run.engine.device.type == "cuda":
        run.watch.on_note(probe_memory(run))
    if "start_fingerprint" not in run.card.lineage:  # random weights can do nothing
        return
    with readable(run.learner.module):
        start = look_at_start(run.learner, run.card, run.feed.samples, run.settings.batch_size)
    if run.settings.projector == "fitted" and hasattr(run.learner.module, "projector"):
        start = replace(start, fresh=True)
    run.watch.on_note(str(start))
    if run.val:
        record(run, measure(run))


def _set_up_shards(run: Run) -> None:
    """FSDP2 sets itself up in the first pass through the whole model, which must be one of training."""
    run.learner.module.train()
    part = next(run.feed.steps(0, 0, 1)).parts[0]
    with readable(run.learner.module):  # which cuts up again what waits for a backward pass
        run.learner.losses(run.model, part.batch.to(run.engine.device))


def measure(run: Run) -> dict[str, Any]:
    """A line of `validation.jsonl` of the weights as they are, and the sheet of its pictures. A collective.

    Each process validates all samples: where the model lies in shards none can predict alone.
    """
    state, settings = run.state, run.settings
    sheet = Sheet(run.val, settings.validate_.figures if run.engine.is_main else 0, state.step)
    with run.watch.averaged(), readable(run.learner.module):
        segmenter = run.learner.segmenter(run.card.changed(step=state.step), settings.batch_size)
        rows = score_answers(segmenter, run.val, settings.validate_.metric, sheet)
    scores = run.engine.agree(average(rows))
    if (picture := sheet.write(run.run_folder.path / "validation")) is not None:
        run.watch.trackers.log_sheet(picture, state.step)
    return {"step": state.step, "epoch": state.epoch, **scores, "data": run.val_fingerprint}


def record(run: Run, line: Line) -> bool:
    """Write down a validation and tell of it; whether it is the best."""
    if not run.engine.is_main:
        return False
    run.run_folder.append(run.run_folder.validation, line)
    best = line["step"] > 0 and is_best(_lines(run), run.settings.validate_.metric)
    run.watch.trackers.log_validation(line)
    run.on_validation({**line, "best": best})
    if line[run.settings.validate_.metric] is None:
        run.watch.on_note(
            f"{run.settings.validate_.metric} is defined in none of the {line['n']} answers: nothing is chosen by it; "
            "take another validate.metric, or data that have it (mm need spacing_mm)"
        )
    # a U-Net has no projector, and a channel for each phrase
    if hasattr(run.learner.module, "projector") and (
        told := judge_phrases(_lines(run), run.settings.projector == "fitted")
    ):
        run.watch.on_note(told)
    return best


def judge(run: Run) -> None:
    """End the run where its validations say so; TrainingError where they do not change. A collective."""
    if not run.val:
        return
    lines = run.engine.agree(_lines(run) if run.engine.is_main else [])
    check_changed(lines)
    metric, patience = run.settings.validate_.metric, run.settings.validate_.patience
    if patience is not None and validations_since_best(lines, metric) >= patience:
        run.watch.ended = True
        best = best_line(lines, metric)
        reached = f"{best[metric]:.4g} at step {best['step']}" if best else "none"
        run.watch.on_note(f"ends early: {patience} validations without a better {metric} (best: {reached})")


def finish(run: Run) -> None:
    """At the end: what came of it, in a sentence, and LoRA in the weights, where that is wanted."""
    if not run.engine.is_main:
        return
    best = best_line(_lines(run), run.settings.validate_.metric)
    if run.settings.trainable.save == "merged":
        run.run_folder.merge_best(lambda folder: describe(run, folder, best))
    if not run.val:
        return
    if run.card.lineage.get("overfit"):
        run.watch.on_note(judge_overfit(_lines(run)))
    elif told := compare_with_start(_lines(run), run.settings.validate_.metric):
        run.watch.on_note(told)


def _lines(run: Run) -> list[dict[str, Any]]:
    return run.run_folder.lines(run.run_folder.validation)


def draw(run: Run) -> None:
    """Draw `curves.png` anew."""
    steps = run.run_folder.lines(run.run_folder.log)
    draw_curves(steps, _lines(run), run.run_folder.path / "curves.png", run.settings.validate_.metric)


def describe(run: Run, folder: Path, line: Line | None = None) -> None:
    """Write the model card into a checkpoint; `line` is its validation."""
    samples = run.feed.samples
    phrases = list(dict.fromkeys(prompt for sample in samples for prompt in sample.prompts))
    card = run.card.changed(step=run.state.step if line is None else line["step"])
    write_model_card(folder, card, run.settings, len(samples), phrases, line)


def write_beside(run: Run, folder: Path) -> None:
    """Write into a checkpoint what is neither the model's nor the optimizer's. In the main process."""
    describe(run, folder)
    if run.watch.average is not None:
        try:
            torch.save(run.watch.average.state_dict(), folder / AVERAGE)
        except RuntimeError as error:  # what torch calls a full disk
            raise OutputError(f"{folder / AVERAGE}: cannot be written ({str(error)[:200]})") from error


def read_beside(run: Run, folder: Path) -> None:
    """Continue the mean of the weights, where there is one: the bundle holds the mean, and the file the weights too."""
    if run.watch.average is None:
        return
    try:
        state = torch.load(folder / AVERAGE, weights_only=True, map_location="cpu")
        run.watch.average.load_state_dict(state)
    except Exception as error:  # a broken file makes torch raise nearly anything
        raise TrainingError(
            f"{folder / AVERAGE}: cannot be read ({' '.join(str(error).split())[:200]})"
        ) from error
