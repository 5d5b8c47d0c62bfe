"""Images that nobody annotated: files and folders to samples, one for each frame."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from vesalius.data.decoders import frame_files
from vesalius.data.decoders.picture import SUFFIXES
from vesalius.data.images import frame_id, sample_id
from vesalius.data.readers.fields import is_file
from vesalius.errors import ImageError
from vesalius.types import Sample

log = logging.getLogger(__name__)


def find_images(paths: Sequence[Path]) -> list[Sample]:
    """Samples without annotation for image files, and for the images at any depth in folders.

    A file of several frames gives a sample for each, which share a sequence. They come in the order given. Ids are
    paths under the given folder, or the stem of a given file. Raises ImageError where a path does not exist, a
    folder holds no image or has one inside that cannot be entered, or two ids are equal.
    """
    samples: dict[str, Sample] = {}
    for path in paths:
        for file in _list_files(path) if path.is_dir() else [path]:
            if not file.exists():
                raise ImageError(f"{file}: there is no such file; give images or folders of images")
            if str(file) != str(file).encode(errors="replace").decode():
                raise ImageError(f"{str(file)!r}: the name is not UTF-8; rename the file")
            name = sample_id(file.relative_to(path) if path.is_dir() else Path(file.name))
            for sample in frames_of(file, name):
                if sample.id in samples:
                    raise ImageError(
                        f"{file}: has the same id {sample.id} as {samples[sample.id].image}; "
                        "give the folder above both, or rename one"
                    )
                samples[sample.id] = sample
    if not samples:
        raise ImageError("no image was given; name image files, or folders that hold images")
    return list(samples.values())


def frames_of(file: Path, name: str) -> list[Sample]:
    """The samples of one file, whose id is `name` where it is a single image."""
    kind = None if file.suffix.lower() in SUFFIXES else frame_files.kind_of(file)
    n = 1 if kind is None else kind.count_frames(file)
    if n == 1:
        return [Sample(name, file, prompts=(), masks=None, source=str(file))]
    return [
        Sample(frame_id(name, i), file, (), None, f"{file}, frame {i}", frame=i, group=name, sequence=name)
        for i in range(n)
    ]


def _list_files(folder: Path) -> list[Path]:
    """Images and files of frames under the folder, in order of their names; what is neither is counted."""

    def refuse(error: OSError) -> None:
        raise ImageError(
            f"{error.filename}: cannot be read ({error.strerror}); open it, or take it away"
        ) from error

    paths = (Path(parent, name) for parent, _, names in os.walk(folder, onerror=refuse) for name in names)
    files = sorted(path for path in paths if not path.name.startswith(".") and is_file(path))
    found = [
        path for path in files if path.suffix.lower() in SUFFIXES or frame_files.kind_of(path) is not None
    ]
    if not found:
        raise ImageError(
            f"{folder}: holds no image; png, jpg, bmp, tif, {', '.join(frame_files.KINDS)} are read"
        )
    others = len(files) - len(found)
    if others:
        log.warning("%s: %d file%s not read: no images", folder, others, "s" * (others != 1))
    return found
