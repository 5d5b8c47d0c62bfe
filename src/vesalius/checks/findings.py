"""Findings of a check, made from codes, errors and samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from vesalius.codes import CODES, Severity
from vesalius.errors import DataError
from vesalius.types import Finding, Sample


def finding(
    code: str,
    file: str | Path,
    location: str,
    message: str,
    *,
    remedy: str = "",
    severity: Severity | None = None,
    samples: Iterable[str] = (),
) -> Finding:
    """A finding with this code, and with severity and remedy of the table of codes unless others are given."""
    kind = CODES[code]
    return Finding(
        code, severity or kind.severity, str(file), location, message, remedy or kind.remedy, tuple(samples)
    )


def is_summary(found: Finding) -> bool:
    """Whether a finding summarizes findings of single samples for a whole split; summaries are not counted."""
    return found.code in ("size_mismatch", "outside_image") and not found.location and len(found.samples) > 1


def count_errors(findings: Iterable[Finding]) -> int:
    """Number of errors without summaries."""
    return sum(each.severity == "error" and not is_summary(each) for each in findings)


def error_finding(error: DataError, sample: Sample | None = None) -> Finding:
    """The finding for an error about a file or an entry, or about the image of `sample`; its severity is error."""
    remedy, message = error.remedy or "", without_location(error)
    found = finding(error.code, error.path or "", error.field or "", message, remedy=remedy, severity="error")
    if sample is None:
        return found
    location = split_source(sample)[1] or sample.image.name
    return replace(found, file=str(sample.image), location=location, samples=(sample.id,))


def sample_finding(code: str, sample: Sample, message: str, *, within: str = "", remedy: str = "") -> Finding:
    """A finding about a sample, or about a part `within` it, such as one of its masks."""
    file, location = split_source(sample)
    location = ": ".join(part for part in (location or Path(file).name, within) if part)
    return finding(code, file, location, message, remedy=remedy, samples=(sample.id,))


def without_location(error: DataError, where: str = "") -> str:
    """The message of an error without its location (`where`, or path and field) and its remedy."""
    where = where or ", ".join(part for part in (error.path, error.field) if part)
    return str(error).removeprefix(f"{where}: ").removesuffix(f"; {error.remedy}")


def split_source(sample: Sample) -> tuple[str, str]:
    """The annotation file of a sample, and its entry: `d/annotations.json` and `entry 3 (a.png)`."""
    return (str(sample.source.path), sample.source.field) if sample.source else (sample.id, "")
