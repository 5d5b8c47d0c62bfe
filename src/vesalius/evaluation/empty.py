"""Values of all metrics for empty masks: one table, used by every metric and printed in docs/metrics.md.

With an empty mask, a ratio such as Dice is 0 / 0, a distance has no second boundary, and a skeleton has no pixel. Three
rules: two empty masks are correct; a total miss is never perfect; an undefined value is None and is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Literal

Case = Literal["both_empty", "false_alarm", "total_miss", "both"]
"""both_empty: both masks are empty; false_alarm: only the ground truth is empty; total_miss: only the prediction is
empty; both: both masks have pixels."""
CASES: tuple[Case, Case, Case] = ("both_empty", "false_alarm", "total_miss")
"""The columns of `EMPTY`, in order."""


class Rule(Enum):
    """An entry of `EMPTY` that is computed rather than constant."""

    FORMULA = "formula"
    """The metric's definition also holds for empty masks."""
    AT_LEAST_1 = "formula, at least 1"
    """The metric's definition, but at least 1, so that a total miss with equal numbers of holes is not perfect."""
    DIAGONAL = "diagonal"
    """The image diagonal in the metric's unit: an upper bound for distances between pixels."""


Entry = float | Rule | None
"""A value, or a rule to compute it. None: the metric is undefined, and the sample is counted and left out of the
mean."""

_FORMULA, _AT_LEAST_1, _DIAGONAL = Rule.FORMULA, Rule.AT_LEAST_1, Rule.DIAGONAL

EMPTY: Mapping[str, tuple[Entry, Entry, Entry]] = MappingProxyType(
    {
        # metric: (both empty, false alarm, total miss)
        "dice": (1.0, 0.0, 0.0),
        "iou": (1.0, 0.0, 0.0),
        "precision": (1.0, 0.0, 0.0),
        "recall": (1.0, None, 0.0),
        "specificity": (_FORMULA, _FORMULA, _FORMULA),
        "accuracy": (_FORMULA, _FORMULA, _FORMULA),
        "balanced_accuracy": (_FORMULA, _FORMULA, _FORMULA),
        "cldice": (1.0, 0.0, 0.0),
        "topology_precision": (1.0, 0.0, 0.0),
        "topology_sensitivity": (1.0, None, 0.0),
        "betti0_error": (_FORMULA, _FORMULA, _FORMULA),
        "betti1_error": (_FORMULA, _AT_LEAST_1, _AT_LEAST_1),
        "breaks": (_FORMULA, None, _FORMULA),
        "skeleton_recall": (1.0, None, 0.0),
        "skeleton_recall_of_width": (None, None, _FORMULA),
        "hd": (None, _DIAGONAL, _DIAGONAL),
        "hd95": (None, _DIAGONAL, _DIAGONAL),
        "assd": (None, _DIAGONAL, _DIAGONAL),
        "nsd": (1.0, 0.0, 0.0),
        "j": (1.0, 0.0, 0.0),
        "f": (1.0, 0.0, 0.0),
    }
)


def case_of(*, target_empty: bool, prediction_empty: bool) -> Case:
    """Case of `EMPTY` for two masks.

    >>> case_of(target_empty=False, prediction_empty=True)
    'total_miss'
    """
    if target_empty:
        return "both_empty" if prediction_empty else "false_alarm"
    return "total_miss" if prediction_empty else "both"


def apply_rule(
    metric: str, case: Case, formula: Callable[[], float | None], *, diagonal: float | None = None
) -> float | None:
    """Value of `metric`, a row of `EMPTY`: its entry for the case, or `formula()` if both masks have pixels.

    `diagonal` is required for metrics with the rule DIAGONAL.

    >>> apply_rule("dice", "total_miss", lambda: 1.0), apply_rule("dice", "both", lambda: 0.5)
    (0.0, 0.5)
    """
    rule = Rule.FORMULA if case == "both" else EMPTY[metric][CASES.index(case)]
    if rule is Rule.DIAGONAL:
        assert diagonal is not None
        return diagonal
    if not isinstance(rule, Rule):
        return rule
    value = formula()
    return value if rule is Rule.FORMULA or value is None else max(1.0, value)
