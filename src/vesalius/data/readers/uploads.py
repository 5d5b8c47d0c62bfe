"""Find the file of an image that an annotation tool names by the address or path in its own storage."""

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
"""No file system has longer paths."""


class Uploads:
    """The files beside an annotation file, and those at any depth in `images/` there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, value: Any, where: Location) -> tuple[Path, str]:
        """The file and the sample id for a path, an address (`s3://`, `https://`), or a path on Label Studio's disk.

        The file that exists under as much of the end of the path as possible is taken; else the only one of that
        name; else the only one of that name without the eight characters and the hyphen that an upload adds in front.
        AnnotationError if there is none, or more than one.
        """
        if not isinstance(value, str) or not value.strip() or len(value) > MAX_PATH_LENGTH:
            raise where.error(f"the image must be a path, not {show(value)}", "bad_value")
        for parts in dict.fromkeys((_parts(value, where), _parts(unquote(value), where))):
            plain = re.sub(r"^[0-9a-f]{8}-(?=.)", "", parts[-1])
            for names in dict.fromkeys((parts, (*parts[:-1], plain))):
                found = self._find(names)
                if len(found) > 1:
                    shown = ", ".join(str(each.relative_to(self.root)) for each in found[:5])
                    raise where.error(
                        f"image {show(value)} may be any of {len(found)} files ({shown})", "ambiguous_image"
                    )
                if found:
                    return found[0], sample_id(found[0].relative_to(self.root))
        raise where.error(
            f"no file {show(_parts(value, where)[-1])} is in {self.root} or in images/ there",
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
    """The names in a path or address, without the server; AnnotationError for a path with `..` or without names."""
    try:
        address = urlsplit(value)
        served = (
            parse_qs(address.query).get("d") if address.path.rstrip("/").endswith("local-files") else None
        )
    except ValueError as error:
        raise where.error(f"{show(value)} is no address ({error})", "missing_image") from error
    remote = address.scheme in ("http", "https", "s3", "gs", "azure-blob")
    path = served[0] if served else address.path if remote else value
    parts = tuple(part for part in path.replace("\\", "/").split("/") if part not in ("", "."))
    if ".." in parts or not parts:
        raise where.error(
            f"image {show(value)} names no file of the dataset", "outside_path", "give a path in the dataset"
        )
    return parts
