"""Construction of findings from codes, errors and samples."""

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
    """A finding; severity and remedy default to those of its code in `codes.py`."""
    kind = CODES[code]
    return Finding(code, severity or kind.severity, str(file), location, message, remedy or kind.remedy, tuple(samples))


def is_summary(found: Finding) -> bool:
    """Whether a finding summarizes the same findings of several samples of a split; summaries are not counted."""
    return found.code in ("size_mismatch", "outside_image") and not found.location and len(found.samples) > 1


def count_errors(findings: Iterable[Finding]) -> int:
    """Number of errors, not counting summaries."""
    return sum(each.severity == "error" and not is_summary(each) for each in findings)


def error_finding(error: DataError, sample: Sample | None = None) -> Finding:
    """The finding of severity error for an exception about a file or entry, or about the image of `sample`."""
    remedy, message = error.remedy or "", without_location(error)
    found = finding(error.code, error.path or "", error.field or "", message, remedy=remedy, severity="error")
    if sample is None:
        return found
    location = split_source(sample)[1] or sample.image.name
    return replace(found, file=str(sample.image), location=location, samples=(sample.id,))


def sample_finding(code: str, sample: Sample, message: str, *, within: str = "", remedy: str = "") -> Finding:
    """A finding about a sample, or about the part of it named `within`, such as one of its masks."""
    file, location = split_source(sample)
    location = ": ".join(part for part in (location or Path(file).name, within) if part)
    return finding(code, file, location, message, remedy=remedy, samples=(sample.id,))


def without_location(error: DataError, where: str = "") -> str:
    """The message of an error without its location (`where`; default: path and field) and without its remedy."""
    where = where or ", ".join(part for part in (error.path, error.field) if part)
    return str(error).removeprefix(f"{where}: ").removesuffix(f"; {error.remedy}")


def split_source(sample: Sample) -> tuple[str, str]:
    """(annotation file, entry) of a sample: `("d/annotations.json", "entry 3 (a.png)")`."""
    return (str(sample.source.path), sample.source.field) if sample.source else (sample.id, "")
