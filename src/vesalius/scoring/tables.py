"""Tables of a report: number formats, metrics by kind, means by group, and CSV files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vesalius.evaluation.metrics import METRICS, Metric
from vesalius.evaluation.statistics import mean
from vesalius.language import translate
from vesalius.scoring.results import ResultRow

KINDS = {"overlap": "Overlap", "topology": "Lines and topology", "distance": "Distances between boundaries"}
"""Kind of metrics -> heading."""


def by_kind(names: Iterable[str]) -> list[tuple[str, list[tuple[str, Metric]]]]:
    """Headings and the metrics below them, in the order of `METRICS`; kinds without metrics are left out."""
    known = set(names)
    tables = [
        (
            translate(heading),
            [(name, metric) for name, metric in METRICS.items() if name in known and metric.kind == kind],
        )
        for kind, heading in KINDS.items()
    ]
    return [(heading, metrics) for heading, metrics in tables if metrics]


def title(name: str) -> str:
    """Title of a metric in the current language, with its unit: `HD95, px`."""
    metric = METRICS[name]
    return f"{translate(metric.title)}, {metric.unit}" if metric.unit else translate(metric.title)


def number(value: float | None) -> str:
    """The value with about four significant digits, or a dash for None; only 0 and 1 themselves are shown as such.

    >>> [number(value) for value in (0.51234, 37.4, 170.235, 0.99998, 1.0, 0.0001, 0.0, None)]
    ['0.512', '37.40', '170.2', '> 0.999', '1.000', '< 0.001', '0.000', '–']
    """
    if value is None:
        return "–"
    if 0.9995 <= value < 1:
        return "> 0.999"
    if 0 < value < 0.0005:
        return "< 0.001"
    digits = 3 if value < 10 else 2 if value < 100 else 1 if value < 1000 else 0
    return f"{value:.{digits}f}"


def interval(value: Sequence[float] | None) -> str:
    """Both ends of an interval as text, or a dash for None."""
    return "–" if value is None else translate("{low} to {high}", low=number(value[0]), high=number(value[1]))


def cell(text: object) -> str:
    """The text as one line, with Markdown markup escaped."""
    line = " ".join(str(text).split())
    return "".join("\\" + sign if sign in "\\|*_`[]<>#" else sign for sign in line)


def group_table(
    groups: Sequence[Mapping[str, Any]], rows: Sequence[ResultRow], names: Sequence[str]
) -> list[dict[str, Any]]:
    """One table row per group, in order, with the group's mean of each metric; None without a value."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        its = values.setdefault(row["group"], {})
        for name in names:
            if row[name] is not None:
                its.setdefault(name, []).append(row[name])
    return [
        {key: group[key] for key in ("group", "predictions", "failed")}
        | {name: mean(values[group["group"]].get(name, ())) for name in names}
        for group in groups
    ]
