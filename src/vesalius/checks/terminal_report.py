"""Findings as lines for a terminal: grouped by code and remedy, errors first, the commonest first."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vesalius.checks.findings import count_errors, is_summary
from vesalius.checks.inspection import Report
from vesalius.names import count_of, list_names
from vesalius.types import Finding

SHOWN = 5
"""Places of a row, and messages about whole files."""

BARE = re.compile(r"[a-z]+ \d+\b(?! \()")
"""A place that says nothing of which file: `frame 0`, not `entry 3 (a.png)`."""


def summarize(report: Report, every: bool = False) -> Iterator[str]:
    """All that is told of a dataset on a terminal; `every` as for `list_findings`."""
    for name, part in report.parts.items():
        yield f"{part.root}{name and f', {name}'}: format {part.format}"
        yield from part.notes
    for name, count_of_it in report.counts.items():
        yield f"{name}: {count_of_it}"
    yield from list_findings(report.findings, every)


def as_json(report: Report) -> dict[str, Any]:
    """The same for `--json`; `failed` counts errors."""
    return {
        "format": ", ".join(dict.fromkeys(part.format for part in report.parts.values())),
        "counts": report.counts,
        "findings": [vars(finding) for finding in report.findings],
        "failed": count_errors(report.findings),
    }


def list_findings(findings: Sequence[Finding], every: bool = False) -> list[str]:
    """A row for each code and remedy: severity, code, number and the first places; under it what is wrong and what to do.

    What is wrong is told of the first place, or of each whole file where findings are about such; with `every`, of each
    place, on a line of its own. The last line counts errors and warnings. Findings that sum up others are told, and not
    counted.
    """
    alike = defaultdict(list)
    for each in findings:
        alike[each.severity, each.code, each.remedy].append(each)
    numbers = Counter((each.severity, each.code) for each in findings)
    rows = sorted(alike.values(), key=lambda row: (row[0].severity, -numbers[row[0].severity, row[0].code]))
    width = max((len(each.code) for each in findings), default=0)
    lines = [line for row in rows for line in _rows(row, width, every)]
    errors = count_errors(findings)
    warnings = sum(each.severity == "warning" for each in findings)
    return [*lines, f"{count_of(errors, 'error')}, {count_of(warnings, 'warning')}"]


def _rows(alike: Sequence[Finding], width: int, every: bool) -> Iterator[str]:
    first = alike[0]
    single = [each for each in alike if not is_summary(each)]
    row = f"{first.severity:<9}{first.code:<{width}}{len(single):>7}  "
    if every:
        yield row.rstrip()
        yield from (f"  {_where(each)}: {each.message}" for each in alike)
    else:
        places = list(dict.fromkeys(_where(each) for each in single))
        yield row + list_names(places, SHOWN, "; ")
        whole = [each for each in alike if not each.location] or [first]
        files = {each.file for each in whole}
        for each in whole[:SHOWN]:
            yield f"  {Path(each.file).name + ': ' if len(files) > 1 else ''}{each.message}"
        if len(whole) > SHOWN:
            yield f"  and {len(whole) - SHOWN} more; -v lists them"
    yield f"  {first.remedy}"


def _where(finding: Finding) -> str:
    name = Path(finding.file).name
    if BARE.match(finding.location):
        return f"{name}, {finding.location}"
    return finding.location or name
