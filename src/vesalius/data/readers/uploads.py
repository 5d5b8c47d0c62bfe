"""Find local image files for the URLs and paths that Label Studio exports."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from vesalius.data.images import sample_id
from vesalius.data.readers.fields import is_file, show
from vesalius.types import Location

MAX_PATH_LENGTH = 4096
"""Maximum length of a path; file systems allow no longer ones."""


class Uploads:
    """Image files beside an annotation file, and at any depth in its `images/` folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, value: Any, where: Location) -> tuple[Path, str]:
        """(file, sample id) for a path, a URL (`s3://`, `https://`), or a path on Label Studio's disk.

        The longest tail of the path that exists as a file is taken; else the only file with the same name; else both
        again without the upload prefix, eight characters and a hyphen. AnnotationError if no file or several match.
        """
        if not isinstance(value, str) or not value.strip() or len(value) > MAX_PATH_LENGTH:
            raise where.error(f"the image must be a path, not {show(value)}", "bad_value")
        for parts in dict.fromkeys((_parts(value, where), _parts(unquote(value), where))):
            plain = re.sub(r"^[0-9a-f]{8}-(?=.)", "", parts[-1])
            for names in dict.fromkeys((parts, (*parts[:-1], plain))):
                found = self._find(names)
                if len(found) > 1:
                    shown = ", ".join(str(each.relative_to(self.root)) for each in found[:5])
                    raise where.error(f"image {show(value)} matches {len(found)} files ({shown})", "ambiguous_image")
                if found:
                    return found[0], sample_id(found[0].relative_to(self.root))
        raise where.error(
            f"there is no file {show(_parts(value, where)[-1])} in {self.root} or its images/",
            "missing_image",
            "copy the images to images/",
        )

    def _find(self, parts: tuple[str, ...]) -> list[Path]:
        for start in range(len(parts)):
            tail = PurePosixPath(*parts[start:])
            found = [file for folder in ("", "images") if is_file(file := self.root / folder / tail)]
            if found:
                return found
        return self._by_name.get(parts[-1], [])

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for file in sorted((self.root / "images").rglob("*")):
            if is_file(file):
                found.setdefault(file.name, []).append(file)
        return found


def _parts(value: str, where: Location) -> tuple[str, ...]:
    """The parts of a path or URL, without the host; AnnotationError for a path that is empty or contains `..`."""
    try:
        address = urlsplit(value)
        served = parse_qs(address.query).get("d") if address.path.rstrip("/").endswith("local-files") else None
    except ValueError as error:
        raise where.error(f"{show(value)} is not a URL ({error})", "missing_image") from error
    remote = address.scheme in ("http", "https", "s3", "gs", "azure-blob")
    path = served[0] if served else address.path if remote else value
    parts = tuple(part for part in path.replace("\\", "/").split("/") if part not in ("", "."))
    if ".." in parts or not parts:
        raise where.error(
            f"image {show(value)} is not a path in the dataset", "outside_path", "give a path in the dataset"
        )
    return parts
