"""What the validations of a run say: better or not, long enough, alive at all, learned by heart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vesalius.errors import TrainingError
from vesalius.evaluation.metrics import METRICS

BY_HEART = 0.9
"""Mean Dice from which on samples count as learned by heart."""

ALIKE = 0.9
"""Mean Dice between the masks of two phrases from which on the phrase decides nothing, if their truths do differ."""
APART = 0.5
"""Mean Dice between two truths up to which they do."""

Line = Mapping[str, Any]
"""A line of `validation.jsonl`."""


def comparable(lines: Sequence[Line]) -> list[Line]:
    """Those of the same samples as the last: a resumed run may be validated on others."""
    return [line for line in lines if line.get("data") == lines[-1].get("data")]


def best_line(lines: Sequence[Line], metric: str) -> Line | None:
    """The first of the best validations of trained weights, on the samples of the last; None where none has a value."""
    found: Line | None = None
    for line in comparable(lines):
        value = line.get(metric)
        if line["step"] and value is not None and _improves(value, found[metric] if found else None, metric):
            found = line
    return found


def is_best(lines: Sequence[Line], metric: str) -> bool:
    """Whether the last line is the best, or none has a value: then the last weights are as good as any."""
    best = best_line(lines, metric)
    return best is None or best["step"] == lines[-1]["step"]


def _improves(value: float, best: float | None, metric: str) -> bool:
    if best is None:
        return True
    return value > best if METRICS[metric].better == "higher" else value < best


def validations_since_best(lines: Sequence[Line], metric: str) -> int:
    """How many validations came after the best one; 0 where none has a value."""
    best = best_line(lines, metric)
    return sum(line["step"] > best["step"] for line in comparable(lines)) if best else 0


def check_changed(lines: Sequence[Line]) -> None:
    """TrainingError where the last two validations agree to the bit, although there were steps between them."""
    lines = comparable(lines)
    if len(lines) < 2:
        return
    before, now = lines[-2:]
    if now["step"] > before["step"] and now.get("fingerprint") == before.get("fingerprint") is not None:
        raise TrainingError(
            f"the validations at step {before['step']} and step {now['step']} agree to the last bit: training does not "
            "reach what predicts; look at trainable, optim.lr and precision, and at the loss in log.jsonl"
        )


def judge_overfit(lines: Sequence[Line]) -> str:
    """One sentence: whether the samples were learned by heart."""
    best = best_line(lines, "dice")
    if best is None:
        return "not learned by heart: no Dice could be computed; are the masks of these samples empty?"
    reached = f"mean Dice {best['dice']:.3f} on {best['n']} answers at step {best['step']}"
    if best["dice"] >= BY_HEART:
        return f"learned by heart: {reached} (at least {BY_HEART} counts): the set-up can learn"
    return (
        f"not learned by heart: {reached}, {BY_HEART} was wanted; give it more steps or a higher optim.lr, let more train "
        "(trainable: full), and look at the pictures in validation/: if the truth there is wrong, the data are"
    )


def compare_with_start(lines: Sequence[Line], metric: str) -> str | None:
    """One sentence: what training did to the metric; None where the start was not validated."""
    best, start = (
        best_line(lines, metric),
        next((line for line in comparable(lines) if line["step"] == 0), None),
    )
    if start is None or best is None or start.get(metric) is None:
        return None
    told = f"{METRICS[metric].title} {best[metric]:.4g} at step {best['step']}, {start[metric]:.4g} before training"
    if _improves(best[metric], start[metric], metric):
        return f"better than its start: {told}"
    return f"NOT better than its start: {told}; train longer, lower optim.lr, or look at the data with vesalius check"


def judge_phrases(lines: Sequence[Line], fitted: bool) -> str | None:
    """One sentence where the last validation shows that the phrase does not decide the mask, and the one before did not.

    None where it does, or nobody can tell. `fitted`: the run has made its projector anew.
    """
    if not lines or not _ignores_phrases(lines[-1]) or (len(lines) > 1 and _ignores_phrases(lines[-2])):
        return None
    line = lines[-1]
    remedy = "give it more steps, and leave the language model as it is (trainable: decoder)"
    if not fitted:
        remedy = "for phrases that the model has not learned set projector: fitted and trainable: decoder"
    return (
        f"THE PHRASE DECIDES NOTHING at step {line['step']}: the masks of two phrases of an image agree to a Dice of "
        f"{line['prediction_similarity']:.2f}, their truths to {line['target_similarity']:.2f}; {remedy}"
    )


def _ignores_phrases(line: Line) -> bool:
    answers, truths = line.get("prediction_similarity"), line.get("target_similarity")
    return answers is not None and truths is not None and answers >= ALIKE and truths <= APART
