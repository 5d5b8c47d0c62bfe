"""Findings created from errors and samples."""

from __future__ import annotations

from pathlib import Path

from vesalius.checks.findings import error_finding, sample_finding, split_source
from vesalius.codes import CODES
from vesalius.errors import AnnotationError, DataError
from vesalius.types import Location, Sample


def test_a_finding_has_path_field_message_and_remedy_of_its_error() -> None:
    error = AnnotationError(
        "d/a.json, entry 3 (a.png): has 2 masks but 1 text",
        code="phrase_count_mismatch",
        path="d/a.json",
        field="entry 3 (a.png)",
        remedy="add a text",
    )
    assert str(error) == "d/a.json, entry 3 (a.png): has 2 masks but 1 text; add a text"
    found = error_finding(error)
    assert (found.file, found.location) == ("d/a.json", "entry 3 (a.png)")
    assert (found.message, found.remedy, found.severity) == ("has 2 masks but 1 text", "add a text", "error")


def test_an_error_without_path_and_remedy_keeps_its_whole_message() -> None:
    found = error_finding(DataError("all is lost: really", code="damaged_file"))
    assert (found.code, found.file, found.location) == ("damaged_file", "", "")
    assert (found.message, found.remedy) == ("all is lost: really", CODES["damaged_file"].remedy)


def test_an_error_is_a_finding_of_severity_error_whatever_its_code() -> None:
    assert error_finding(AnnotationError("a.json: x", code="exif_rotation")).severity == "error"


def test_the_location_of_a_sample_without_an_entry_is_its_file() -> None:
    sample = Sample("a", Path("d/images/a.png"), ("v",), None, source=Location(Path("d/images/a.png")))
    found = sample_finding("overlapping_objects", sample, "m", within="'v'")
    assert (found.file, found.location, found.samples) == ("d/images/a.png", "a.png: 'v'", ("a",))
    clip = Sample("a", Path("d/clip.mp4"), ("v",), None, source=Location(Path("d/clip.mp4"), "frame 7"))
    assert split_source(clip) == ("d/clip.mp4", "frame 7")
