"""Validation is prediction: the same predictor and the same scores as `vesalius evaluate`, with forced answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vesalius.data.dataset import load_item
from vesalius.evaluation import metrics, overlap
from vesalius.segmenter import Segmenter
from vesalius.types import Item, Prediction, Sample

Row = dict[str, Any]
"""`id`, `prompt`, `says_seg`, `absent`, `logits` (their SHA-256), `alike` and each metric of one answer.

`alike`: Dice of its mask with that of the phrase before it about the same image, and the same of their truths; or None."""

Watcher = Callable[[Item, Prediction, np.ndarray, Mapping[str, float | None]], None]
"""Shown each answer with its truth, bool (h, w), and scores."""


def score_answers(
    segmenter: Segmenter,
    samples: Sequence[Sample],
    metric: str = "dice",
    on_answer: Watcher = lambda item, prediction, truth, scores: None,
) -> list[Row]:
    """A row for each (sample, prompt): the metrics of overlap, and `metric`, one of `evaluation.metrics.METRICS`.

    An empty truth that the model itself would answer without [SEG] is scored as the empty mask that this is, as
    `vesalius evaluate` does where answers are not forced. An unreadable sample raises DataError.
    """
    rows: list[Row] = []
    size = segmenter.description.batch_size
    for start in range(0, len(samples), size):
        some = samples[start : start + size]
        items = [load_item(sample) for sample in some]
        answers = iter(segmenter.predict(items))
        for sample, item in zip(some, items, strict=True):
            before: tuple[np.ndarray, np.ndarray] | None = None
            for (truth,) in () if item.masks is None else item.masks:
                prediction = next(answers)
                absent = not truth.any()
                # a mask that was forced on a phrase of which the model itself would say that it is not there
                guess = truth if absent and not prediction.says_seg else prediction.mask
                scores = _scores(truth, guess, metric, sample.spacing_mm)
                on_answer(item, prediction, truth, scores)
                rows.append(
                    {
                        "id": item.id,
                        "prompt": prediction.prompt,
                        "says_seg": prediction.says_seg,
                        "absent": absent,
                        "logits": hashlib.sha256(prediction.logits.tobytes()).hexdigest(),
                        "alike": None if before is None else _alike(before, (guess, truth)),
                        **scores,
                    }
                )
                before = guess, truth
    return rows


def _alike(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> tuple[float, float] | None:
    """Dice between the masks of two phrases of an image, and between their truths; None where both masks, or both truths,
    are empty."""
    found = []
    for first, second in zip(one, other, strict=True):
        pixels = np.count_nonzero(first) + np.count_nonzero(second)
        if not pixels:
            return None
        found.append(2 * np.count_nonzero(first & second) / pixels)
    return found[0], found[1]


def _scores(
    truth: np.ndarray, guess: np.ndarray, metric: str, spacing_mm: tuple[float, float] | None
) -> dict[str, float | None]:
    scores = overlap.score(truth, guess)
    if metric not in scores:  # skeletons and distances take far longer than counts
        scores[metric] = metrics.score(truth, guess, spacing_mm=spacing_mm)[metric]
    return scores


def average(rows: Sequence[Row]) -> dict[str, float | int | str | None]:
    """Mean of each metric over rows, None where it is defined in none; and six more.

    `seg_rate`: how often the model itself would say [SEG]; `absent_seg_rate`: the same of phrases whose mask is empty,
    None where there are none; `prediction_similarity`: Dice between the masks of a phrase and the one before it about the same
    image, and `target_similarity` between their truths, without pairs of empty ones, None where there is no pair; `n`: how
    many answers; `fingerprint` of all their logits, which do not repeat to the bit unless the weights that they come
    from do.
    """
    names = [name for name in rows[0] if name in metrics.METRICS]
    values = {name: [row[name] for row in rows if row[name] is not None] for name in names}
    means = {name: float(np.mean(found)) if found else None for name, found in values.items()}
    seg_rate = float(np.mean([row["says_seg"] for row in rows]))
    absent = [row["says_seg"] for row in rows if row["absent"]]
    rates = {"seg_rate": seg_rate, "absent_seg_rate": float(np.mean(absent)) if absent else None}
    pairs = [row["alike"] for row in rows if row["alike"] is not None]
    answers, truths = np.mean(pairs, axis=0).tolist() if pairs else (None, None)
    rates |= {"prediction_similarity": answers, "target_similarity": truths}
    logits = "".join(sorted(f"{row['id']} {row['prompt']} {row['logits']}\n" for row in rows))
    fingerprint = hashlib.sha256(logits.encode()).hexdigest()[:16]
    return {**means, **rates, "n": len(rows), "fingerprint": fingerprint}


def summarize(line: Mapping[str, Any]) -> str:
    """A line of `validation.jsonl` in words."""
    shown = [name for name in line if name in metrics.METRICS and name != "accuracy"]
    shown += ["seg_rate", "absent_seg_rate"]
    scores = "  ".join(f"{name} {line[name]:.3f}" for name in shown if line[name] is not None)
    return (
        f"validation at step {line['step']}: {scores}{'  (best checkpoint so far)' if line['best'] else ''}"
    )
