"""Validation with forced answers, by the predictor and metrics of `vesalius evaluate`; best checkpoint, early stopping."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from vesalius.data.dataset import load_items
from vesalius.evaluation import metrics, overlap
from vesalius.segmenter import Segmenter
from vesalius.training.context import TrainingContext
from vesalius.training.early_stopping import (
    ValidationLine,
    best_line,
    check_changed,
    find_prompt_collapse,
    is_best,
    validations_since_best,
)
from vesalius.training.figures import ValidationFigures, draw_curves
from vesalius.training.run_folder import TrainState
from vesalius.training.sharding import unsharded
from vesalius.types import Item, Prediction, Sample

AnswerScores = dict[str, Any]
"""Scores of one prediction: `id`, `prompt`, `says_seg`, `absent`, `logits` (SHA-256), `similarity` and each metric.

`similarity`: Dice between the masks predicted for this phrase and the previous phrase on the same image, and Dice between
their targets; None for the first phrase, or if both masks or both targets are empty."""

OnAnswer = Callable[[Item, Prediction, np.ndarray, Mapping[str, float | None]], None]
"""Receiver of each prediction with its item, target (bool (h, w)) and scores."""


def score_samples(
    segmenter: Segmenter,
    samples: Sequence[Sample],
    metric: str = "dice",
    on_answer: OnAnswer = lambda item, prediction, target, scores: None,
) -> list[AnswerScores]:
    """Scores of each (sample, prompt): the overlap metrics, and `metric`, one of `evaluation.metrics.METRICS`.

    If the target is empty and the model itself would not answer [SEG], the forced mask is replaced by an empty one, as
    in `vesalius evaluate`. Raises DataError for an unreadable sample.
    """
    segmenter.check_prompts(prompt for sample in samples for prompt in sample.prompts)  # `prepare` has given the notes
    rows: list[AnswerScores] = []
    size = segmenter.description.batch_size
    loaded = load_items(samples)
    for start in range(0, len(samples), size):
        some = samples[start : start + size]
        items = list(islice(loaded, size))
        predictions = iter(segmenter.predict(items))
        for sample, item in zip(some, items, strict=True):
            previous: tuple[np.ndarray, np.ndarray] | None = None
            for (target,) in () if item.masks is None else item.masks:
                prediction = next(predictions)
                absent = not target.any()
                mask = target if absent and not prediction.says_seg else prediction.mask
                scores = _score(target, mask, metric, sample.spacing_mm)
                on_answer(item, prediction, target, scores)
                rows.append(
                    {
                        "id": item.id,
                        "prompt": prediction.prompt,
                        "says_seg": prediction.says_seg,
                        "absent": absent,
                        "logits": hashlib.sha256(prediction.logits.tobytes()).hexdigest(),
                        "similarity": None if previous is None else _similarity(previous, (mask, target)),
                        **scores,
                    }
                )
                previous = mask, target
    return rows


def _similarity(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> tuple[float, float] | None:
    """Dice between two predicted masks, and between their targets; None if both masks of a pair are empty."""
    found = []
    for first, second in zip(one, other, strict=True):
        pixels = np.count_nonzero(first) + np.count_nonzero(second)
        if not pixels:
            return None
        found.append(2 * np.count_nonzero(first & second) / pixels)
    return found[0], found[1]


def _score(
    target: np.ndarray, mask: np.ndarray, metric: str, spacing_mm: tuple[float, float] | None
) -> dict[str, float | None]:
    scores = overlap.score(target, mask)
    if metric not in scores:  # only on request: skeletons and distances take far longer than overlap metrics
        scores[metric] = metrics.score(target, mask, spacing_mm=spacing_mm)[metric]
    return scores


def average(rows: Sequence[AnswerScores]) -> dict[str, float | int | str | None]:
    """Mean of each metric over rows (None if it is undefined in all rows), and six further values.

    `seg_rate`: fraction of prompts that the model itself would answer with [SEG]. `absent_seg_rate`: this fraction among
    prompts with an empty target; None without such prompts. `prediction_similarity`: mean Dice between the masks
    predicted for successive phrases on one image. `target_similarity`: mean Dice between their targets. Both
    similarities are None without non-empty pairs. `n`: number of predictions. `fingerprint`: hash of all logits, equal
    only for equal weights.
    """
    names = [name for name in rows[0] if name in metrics.METRICS]
    values = {name: [row[name] for row in rows if row[name] is not None] for name in names}
    means = {name: float(np.mean(found)) if found else None for name, found in values.items()}
    absent = [row["says_seg"] for row in rows if row["absent"]]
    pairs = [row["similarity"] for row in rows if row["similarity"] is not None]
    predictions, targets = np.mean(pairs, axis=0).tolist() if pairs else (None, None)
    logits = "".join(sorted(f"{row['id']} {row['prompt']} {row['logits']}\n" for row in rows))
    return {
        **means,
        "seg_rate": float(np.mean([row["says_seg"] for row in rows])),
        "absent_seg_rate": float(np.mean(absent)) if absent else None,
        "prediction_similarity": predictions,
        "target_similarity": targets,
        "n": len(rows),
        "fingerprint": hashlib.sha256(logits.encode()).hexdigest()[:16],
    }


def summarize(line: Mapping[str, Any]) -> str:
    """The scores of one line of `validation.jsonl` as text for the terminal."""
    shown = [name for name in line if name in metrics.METRICS and name != "accuracy"]
    shown += ["seg_rate", "absent_seg_rate"]
    scores = "  ".join(f"{name} {line[name]:.3f}" for name in shown if line[name] is not None)
    return f"validation at step {line['step']}: {scores}{'  (best checkpoint so far)' if line['best'] else ''}"


def validate(context: TrainingContext, state: TrainState) -> None:
    """Score the checkpoint just saved, log it, update `best`, and decide on early stopping. A collective."""
    folder = context.folder
    line = score_validation_set(context, state) if context.validation_samples else None
    # without validation data the newest checkpoint is the best, unless the log has earlier validations
    best = record(context, line) if line is not None else not folder.lines(folder.validation)
    state.validated_step = state.step
    if context.process.is_main:
        context.write_card(folder.last(), state.step, line)
        folder.mark_validated(state, best)
        draw_curves(
            folder.lines(folder.log),
            folder.lines(folder.validation),
            folder.path / "curves.png",
            context.settings.validate_.metric,
        )
    context.process.barrier()
    check_progress(context, state)


def score_validation_set(context: TrainingContext, state: TrainState) -> dict[str, Any]:
    """Score the current weights: a line of `validation.jsonl`; also writes validation figures. A collective.

    Each process scores all samples, because prediction with a sharded model is a collective.
    """
    settings, samples = context.settings, context.validation_samples
    figures = ValidationFigures(samples, settings.validate_.figures if context.process.is_main else 0, state.step)
    with context.averaged(), unsharded(context.learner.module):
        segmenter = context.learner.segmenter(context.card.changed(step=state.step), settings.batch_size)
        rows = score_samples(segmenter, samples, settings.validate_.metric, figures)
    scores = context.process.broadcast(average(rows))
    if (picture := figures.write(context.folder.path / "validation")) is not None:
        context.monitoring.trackers.log_figures(picture, state.step)
    return {"step": state.step, "epoch": state.epoch, **scores, "data": context.validation_fingerprint}


def record(context: TrainingContext, line: ValidationLine) -> bool:
    """Log and report a validation in the main process; returns whether it is the best so far (False in others)."""
    if not context.process.is_main:
        return False
    folder, monitoring, metric = context.folder, context.monitoring, context.settings.validate_.metric
    folder.append(folder.validation, line)
    lines = folder.lines(folder.validation)
    best = line["step"] > 0 and is_best(lines, metric)
    monitoring.trackers.log_validation(line)
    monitoring.on_validation({**line, "best": best})
    if line[metric] is None:
        monitoring.on_note(
            f"{metric} is undefined for all {line['n']} predictions, so it cannot select the best checkpoint: set another "
            "validate.metric, or add the required data (metrics in mm need spacing_mm)"
        )
    note_prompt_collapse(context, lines)
    return best


def note_prompt_collapse(context: TrainingContext, lines: Sequence[ValidationLine], ended: bool = False) -> None:
    """Report prompt collapse that lasts, during the run or when it has `ended`."""
    settings = context.settings
    if not hasattr(context.learner.module, "projector"):
        return  # a U-Net: its phrases are separate output channels
    refitted, from_random = settings.projector == "fitted", "start_fingerprint" not in context.card.lineage
    warning = find_prompt_collapse(lines, refitted=refitted, from_random=from_random, ended=ended)
    if warning is not None:
        context.monitoring.on_note(warning)


def check_progress(context: TrainingContext, state: TrainState) -> None:
    """Set `state.stopped_early` after `validate.patience` validations without improvement. A collective.

    Raises TrainingError if the last two validations are identical.
    """
    if not context.validation_samples:
        return
    folder = context.folder
    lines = context.process.broadcast(folder.lines(folder.validation) if context.process.is_main else [])
    check_changed(lines)
    metric, patience = context.settings.validate_.metric, context.settings.validate_.patience
    if patience is not None and validations_since_best(lines, metric) >= patience:
        state.stopped_early = True
        best = best_line(lines, metric)
        reached = f"{best[metric]:.4g} at step {best['step']}" if best else "none"
        context.monitoring.on_note(
            f"early stopping: {patience} validations without a better {metric} (best: {reached})"
        )
