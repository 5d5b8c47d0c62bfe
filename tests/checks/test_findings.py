"""The table of codes, and findings made of errors."""

from __future__ import annotations

from pathlib import Path

from vesalius.checks.findings import CODES, from_error, sample_finding, split_source
from vesalius.errors import AnnotationError, DataError, ImageError
from vesalius.types import Sample


def test_an_error_of_a_reader_is_taken_apart() -> None:
    text = "d/annotations.json, entry 3 (a.png): has 2 masks but 1 texts; give one text an object"
    found = from_error(AnnotationError(text, code="phrase_count_mismatch"))
    assert (found.file, found.location) == ("d/annotations.json", "entry 3 (a.png)")
    assert (found.message, found.remedy) == ("has 2 masks but 1 texts", "give one text an object")
    assert found.severity == "error"


def test_an_error_without_place_or_remedy_is_told_whole() -> None:
    found = from_error(DataError("all is lost"))
    assert (found.code, found.file, found.location, found.message) == ("invalid_data", "", "", "all is lost")
    assert found.remedy == CODES["invalid_data"].remedy


def test_what_stops_a_reader_is_an_error_whatever_its_code() -> None:
    assert from_error(AnnotationError("a.json: x", code="exif_rotation")).severity == "error"
    assert from_error(ImageError("a.dcm: x", code="a_code_of_tomorrow")).code == "unreadable_image"


def test_a_place_is_told_by_the_file_where_the_sample_has_no_entry() -> None:
    sample = Sample("a", Path("d/images/a.png"), ("v",), None, source="d/images/a.png")
    found = sample_finding("overlapping_objects", sample, "m", within="'v'")
    assert (found.file, found.location, found.samples) == ("d/images/a.png", "a.png: 'v'", ("a",))
    assert split_source("d/clip.mp4, frame 7") == ("d/clip.mp4", "frame 7")
