"""Decisions based on a run's validations: best checkpoint, early stopping, overfit test, prompt collapse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from vesalius.errors import TrainingError
from vesalius.evaluation.metrics import METRICS

ValidationLine = Mapping[str, Any]
"""One line of `validation.jsonl`."""

OVERFIT_DICE = 0.9
"""Minimum mean Dice to pass the overfit test."""
COLLAPSED = 0.9
"""Prompt collapse: minimum mean Dice between the masks predicted for two phrases."""
DIFFERENT = 0.5
"""Prompt collapse: maximum mean Dice between the targets of two phrases; above it the targets are too similar to judge."""
LASTING = 3
"""Prompt collapse: number of validations in a row after which it is reported during the run."""


def comparable(lines: Sequence[ValidationLine]) -> list[ValidationLine]:
    """The validations on the same samples as the last one; a resumed run may have changed its validation data."""
    return [line for line in lines if line.get("data") == lines[-1].get("data")]


def best_line(lines: Sequence[ValidationLine], metric: str) -> ValidationLine | None:
    """The best validation after step 0 on the last validation's samples, the earliest of equals; None without values."""
    best: ValidationLine | None = None
    for line in comparable(lines):
        value = line.get(metric)
        if line["step"] and value is not None and _improves(value, best[metric] if best else None, metric):
            best = line
    return best


def is_best(lines: Sequence[ValidationLine], metric: str) -> bool:
    """Whether the last validation is the best; also true if the metric is undefined in all validations."""
    best = best_line(lines, metric)
    return best is None or best["step"] == lines[-1]["step"]


def _improves(value: float, best: float | None, metric: str) -> bool:
    if best is None:
        return True
    return value > best if METRICS[metric].better == "higher" else value < best


def validations_since_best(lines: Sequence[ValidationLine], metric: str) -> int:
    """Number of validations after the best one; 0 if the metric is undefined in all of them."""
    best = best_line(lines, metric)
    return sum(line["step"] > best["step"] for line in comparable(lines)) if best else 0


def check_changed(lines: Sequence[ValidationLine]) -> None:
    """Raise TrainingError if training between the last two validations did not change their predictions."""
    lines = comparable(lines)
    if len(lines) < 2:
        return
    before, now = lines[-2:]
    if now["step"] > before["step"] and now.get("fingerprint") == before.get("fingerprint") is not None:
        raise TrainingError(
            f"the validations at step {before['step']} and step {now['step']} are identical: training does not change "
            "the predictions; check trainable, optim.lr and precision, and the loss in log.jsonl",
            code="unchanged_predictions",
        )


def passes_overfit_test(lines: Sequence[ValidationLine]) -> bool:
    """Whether the best mean Dice is at least `OVERFIT_DICE`; False if it is undefined in all validations."""
    best = best_line(lines, "dice")
    return best is not None and best["dice"] >= OVERFIT_DICE


def overfit_result(lines: Sequence[ValidationLine]) -> str:
    """Result of the overfit test, in one sentence."""
    best = best_line(lines, "dice")
    if best is None:
        return "overfit test failed: Dice is undefined for all samples; are their masks empty?"
    reached = f"mean Dice {best['dice']:.3f} on {best['n']} answers at step {best['step']}"
    if passes_overfit_test(lines):
        return f"overfit test passed: {reached}, at least {OVERFIT_DICE} is required"
    return (
        f"overfit test failed: {reached}, at least {OVERFIT_DICE} is required; train more steps, raise optim.lr, or train "
        "more of the model (trainable: full), and look at the ground truth in the figures of validation/"
    )


def compare_with_baseline(lines: Sequence[ValidationLine], metric: str) -> str | None:
    """Comparison of the metric after training with step 0, in one sentence; None if step 0 was not validated."""
    best = best_line(lines, metric)
    baseline = next((line for line in comparable(lines) if line["step"] == 0), None)
    if baseline is None or best is None or baseline.get(metric) is None:
        return None
    values = (
        f"{METRICS[metric].title} {best[metric]:.4g} at step {best['step']}, {baseline[metric]:.4g} before training"
    )
    if _improves(best[metric], baseline[metric], metric):
        return f"better than before training: {values}"
    return f"NOT better than before training: {values}; train longer, lower optim.lr, or check the data with vesalius check"


def find_prompt_collapse(
    lines: Sequence[ValidationLine], *, refitted: bool, from_random: bool, ended: bool = False
) -> str | None:
    """A warning if prompt collapse lasts: in the third validation in a row, or when the run has ended; else None.

    Prompt collapse: different phrases give the same mask although their targets differ. It is usual in the first
    validations. `refitted`: the run reinitialized its projector. `from_random`: it began with random weights.
    """
    lasted = sum(1 for _ in takewhile(_is_collapsed, reversed(lines)))
    # the third in a row was reported when it was recorded
    if not lasted or (lasted == LASTING) == ended:
        return None
    if refitted:
        remedy = "train more steps" + ", and keep the language model frozen (trainable: decoder)" * (not from_random)
    elif from_random:
        remedy = "train more steps, which random weights need until phrases differ, or set projector: fitted"
    else:
        remedy = "for phrases that are new to the model set projector: fitted and trainable: decoder"
    line, since = lines[-1], lines[-lasted]
    steps = f"at step {line['step']}" if lasted == 1 else f"from step {since['step']} to {line['step']}"
    return (
        f"prompt collapse {steps}: different phrases give the same mask (Dice between predictions "
        f"{line['prediction_similarity']:.2f}, between targets {line['target_similarity']:.2f}); {remedy}"
    )


def _is_collapsed(line: ValidationLine) -> bool:
    predictions, targets = line.get("prediction_similarity"), line.get("target_similarity")
    return predictions is not None and targets is not None and predictions >= COLLAPSED and targets <= DIFFERENT
