"""The table of what may be wrong with a dataset, and findings made from it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vesalius.codes import CODES, Severity
from vesalius.errors import DataError
from vesalius.types import Finding, Sample


def finding(
    code: str,
    file: str | Path,
    place: str,
    message: str,
    *,
    remedy: str = "",
    severity: Severity | None = None,
    samples: Iterable[str] = (),
) -> Finding:
    """A finding of this code, with the severity and remedy of its kind unless others are given."""
    kind = CODES[code]
    return Finding(
        code, severity or kind.severity, str(file), place, message, remedy or kind.remedy, tuple(samples)
    )


def is_summary(found: Finding) -> bool:
    """Whether it says of a whole split what findings of its samples say one by one; it is not counted with them."""
    return found.code in ("size_mismatch", "outside_image") and not found.location and len(found.samples) > 1


def count_errors(findings: Iterable[Finding]) -> int:
    """How many are errors, without those that sum up."""
    return sum(each.severity == "error" and not is_summary(each) for each in findings)


def from_error(error: DataError) -> Finding:
    """What a reader raised about an entry or file; always an error, because that could not be used."""
    head, separator, text = str(error).partition(": ")
    file, place = split_source(head) if separator else ("", "")
    message, remedy = split_remedy(text if separator else str(error))
    return finding(known_code(error), file, place, message, remedy=remedy, severity="error")


def sample_finding(code: str, sample: Sample, message: str, *, within: str = "", remedy: str = "") -> Finding:
    """A finding about one sample, or what lies `within` it, such as one of its masks."""
    file, place = split_source(sample.source or sample.id)
    place = ": ".join(part for part in (place or Path(file).name, within) if part)
    return finding(code, file, place, message, remedy=remedy, samples=(sample.id,))


def known_code(error: DataError) -> str:
    """The error's code, or that of its class where the table does not have it."""
    return error.code if error.code in CODES else type(error).code


def split_remedy(message: str) -> tuple[str, str]:
    """`what is wrong; what to do` -> both; no remedy where none is told."""
    wrong, separator, remedy = message.rpartition("; ")
    return (wrong, remedy) if separator else (message, "")


def split_source(source: str) -> tuple[str, str]:
    """`d/annotations.json, entry 3 (a.png)` -> the file, and where in it."""
    match = re.match(r"(.*?\.\w+), (.*)", source)
    return (match[1], match[2]) if match else (source, "")
