"""Make samples from unannotated image files and folders, one for each frame."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from vesalius.data.decoders import frame_files
from vesalius.data.decoders.limits import missing_file
from vesalius.data.decoders.picture import SUFFIXES
from vesalius.data.images import frame_id, sample_id
from vesalius.data.readers.fields import is_file
from vesalius.data.source import Samples, unreadable
from vesalius.errors import ImageError
from vesalius.types import Location, Sample

log = logging.getLogger(__name__)


def find_images(paths: Sequence[Path]) -> list[Sample]:
    """Unannotated samples of image files, and of all images at any depth in folders, in the order of `paths`.

    A multi-frame file gives one sample for each frame, with the file as sequence. An id is the path under the given
    folder, or the stem of a given file. Raises ImageError if a path does not exist, a folder has no image or an
    unreadable subfolder, or two ids are equal.
    """
    samples = Samples()
    for path in paths:
        for file in _list_files(path) if path.is_dir() else [path]:
            where = Location(file)
            if not file.exists():
                raise missing_file(file)
            if str(file) != str(file).encode(errors="replace").decode():
                message = f"{str(file)!r}: the name is not UTF-8; rename the file"
                raise ImageError(message, code="bad_value", path=repr(str(file)), remedy="rename the file")
            name = sample_id(file.relative_to(path) if path.is_dir() else Path(file.name))
            for sample in frames_of(file, name):
                samples.add(sample, where, "give the folder above both, or rename one", ImageError)
    if not samples:
        remedy = "give image files or folders of images"
        raise ImageError(f"no image was given; {remedy}", code="no_image", remedy=remedy)
    return samples


def frames_of(file: Path, name: str) -> list[Sample]:
    """The samples of one file: id `name` for a single image, `frame_id(name, i)` for frame i of several."""
    kind = None if file.suffix.lower() in SUFFIXES else frame_files.kind_of(file)
    n = 1 if kind is None else kind.count_frames(file)
    if n == 1:
        return [Sample(name, file, prompts=(), masks=None, source=Location(file))]
    return [
        Sample(frame_id(name, i), file, (), None, Location(file, f"frame {i}"), frame=i, group=name, sequence=name)
        for i in range(n)
    ]


def _list_files(folder: Path) -> list[Path]:
    """Image and multi-frame files under the folder, sorted by path; the number of other files is logged."""

    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename), error, ImageError) from error

    paths = (Path(parent, name) for parent, _, names in os.walk(folder, onerror=refuse) for name in names)
    files = sorted(path for path in paths if not path.name.startswith(".") and is_file(path))
    found = [path for path in files if path.suffix.lower() in SUFFIXES or frame_files.kind_of(path) is not None]
    if not found:
        raise Location(folder).error(
            "has no image", "no_image", f"png, jpg, bmp, tif, {', '.join(frame_files.KINDS)} are read", kind=ImageError
        )
    others = len(files) - len(found)
    if others:
        log.warning("%s: %d file%s ignored: not an image", folder, others, "s" * (others != 1))
    return found
