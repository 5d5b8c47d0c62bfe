"""What a metric is where a mask is empty: one table, used by every metric and printed in docs/metrics.md.

A ratio such as Dice is then 0 / 0, a distance has no other end, a skeleton no pixel. Three laws: nothing there
and nothing said is right; a total miss is never perfect; what is not defined is None, and is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Literal

Case = Literal["both_empty", "false_alarm", "total_miss", "both"]
"""both_empty: nothing there, nothing said; false_alarm: something said; total_miss: something there; both."""
CASES: tuple[Case, Case, Case] = ("both_empty", "false_alarm", "total_miss")
"""The columns of `EMPTY`."""


class Rule(Enum):
    """An entry of `EMPTY` that is not a value."""

    FORMULA = "formula"
    """What the definition gives; it holds for an empty mask too."""
    AT_LEAST_1 = "formula, at least 1"
    """The count of errors, and 1 where it is none: one mask without holes is no reason to be perfect."""
    DIAGONAL = "diagonal"
    """The diagonal of the image, in the unit of the metric: farther than any two pixels."""


Entry = float | Rule | None
"""A value, or how to find it; None: not defined, left out of the mean and counted."""

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
    """Which masks are empty.

    >>> case_of(target_empty=False, prediction_empty=True)
    'total_miss'
    """
    if target_empty:
        return "both_empty" if prediction_empty else "false_alarm"
    return "total_miss" if prediction_empty else "both"


def apply_rule(
    metric: str, case: Case, formula: Callable[[], float | None], *, diagonal: float | None = None
) -> float | None:
    """The value of `metric` (a row of `EMPTY`): what the table says of the case, else `formula()`.

    `diagonal` is needed where the row names it.

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
