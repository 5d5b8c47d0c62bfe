"""Findings as lines for a terminal: grouped by code, errors first, the commonest first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from vesalius.data.checks.findings import count
from vesalius.types import Finding

SHOWN = 5
"""Places of a code."""


def list_findings(findings: Sequence[Finding], every: bool = False) -> list[str]:
    """A row for each code: severity, code, number and the first places; under it what is wrong and what to do.

    What is wrong is told of the first place, or of the whole data set where a finding sums up; with `every`, of each
    place, on a line of its own. The last line counts errors and warnings.
    """
    by_code = defaultdict(list)
    for each in findings:
        by_code[each.code].append(each)
    errors = sum(each.severity == "error" for each in findings)
    rows = sorted(by_code.values(), key=lambda alike: (alike[0].severity, -len(alike)))
    width = max(map(len, by_code), default=0)
    lines = [line for alike in rows for line in _rows(alike, width, every)]
    return [*lines, f"{count(errors, 'error')}, {count(len(findings) - errors, 'warning')}"]


def _rows(alike: Sequence[Finding], width: int, every: bool) -> Iterator[str]:
    first = alike[0]
    row = f"{first.severity:<9}{first.code:<{width}}{len(alike):>7}  "
    if every:
        yield row.rstrip()
        yield from (f"  {_where(each)}: {each.message}" for each in alike)
    else:
        places = [_where(each) for each in alike if each.place] or [_where(first)]
        more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
        yield row + "; ".join(places[:SHOWN]) + more
        yield f"  {next((each for each in alike if not each.place), first).message}"
    yield f"  {first.remedy}"


def _where(finding: Finding) -> str:
    return finding.place or Path(finding.file).name
