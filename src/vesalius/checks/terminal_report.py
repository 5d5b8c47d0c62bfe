"""Findings as text lines for the terminal, grouped by code and remedy: errors first, most frequent codes first."""

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
"""Maximum number of locations in a row, and of messages about whole files."""

NO_FILE = re.compile(r"[a-z]+ \d+\b(?! \()")
"""Matches a location that contains no file name, such as `frame 0`; `entry 3 (a.png)` does not match."""


def summarize(report: Report, every: bool = False) -> Iterator[str]:
    """Formats, notes, counts and findings of a dataset as text lines; `every` is as in `list_findings`."""
    for name, part in report.parts.items():
        yield f"{part.root}{name and f', {name}'}: format {part.format}"
        yield from part.notes
    yield from (f"{name}: {value}" for name, value in report.counts.items())
    yield from list_findings(report.findings, every)


def as_json(report: Report) -> dict[str, Any]:
    """Formats, counts and findings for `--json`; `failed` is the number of errors."""
    return {
        "format": ", ".join(dict.fromkeys(part.format for part in report.parts.values())),
        "counts": report.counts,
        "findings": [vars(finding) for finding in report.findings],
        "failed": count_errors(report.findings),
    }


def list_findings(findings: Sequence[Finding], every: bool = False) -> list[str]:
    """Per code and remedy: a row (severity, code, count, first locations), then messages and the remedy.

    The messages are those about whole files, or else that of the first location. With `every`, each location has its own
    line with its message. The last line counts errors and warnings. Summaries are listed but not counted.
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
        yield from (f"  {_location(each)}: {each.message}" for each in alike)
    else:
        locations = list(dict.fromkeys(_location(each) for each in single))
        yield row + list_names(locations, SHOWN, "; ")
        whole = [each for each in alike if not each.location] or [first]
        files = {each.file for each in whole}
        for each in whole[:SHOWN]:
            yield f"  {Path(each.file).name + ': ' if len(files) > 1 else ''}{each.message}"
        if len(whole) > SHOWN:
            yield f"  and {len(whole) - SHOWN} more; list them with -v"
    yield f"  {first.remedy}"


def _location(finding: Finding) -> str:
    name = Path(finding.file).name
    if NO_FILE.match(finding.location):
        return f"{name}, {finding.location}"
    return finding.location or name
