"""Make samples from unannotated image files and folders, one for each frame."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vesalius.data.decoders import frame_files
from vesalius.data.decoders.limits import missing_file
from vesalius.data.decoders.picture import SUFFIXES
from vesalius.data.images import frame_id, sample_id, with_window
from vesalius.data.readers import maskfolder, nnunet
from vesalius.data.readers.fields import is_file
from vesalius.data.source import Source, unreadable
from vesalius.errors import ImageError
from vesalius.names import count_of, list_names
from vesalius.types import Location, Sample
from vesalius.window import AUTO, Window

log = logging.getLogger(__name__)

HEADS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"GIF8", b"\0\0\0\x0cjP  ")
"""First bytes of PNG, JPEG, TIFF, GIF and JPEG 2000, for files without their suffix."""
RESULT_MARKERS = frozenset({"predictions.jsonl", ".predictions.request.json", "samples.jsonl"})
"""Files of finished and unfinished predictions and of evaluations, whose masks and overlays are no images to predict."""


class _Found(NamedTuple):
    """An image file and its possible ids, the preferred one first."""

    file: Path
    ids: tuple[str, ...]


def find_images(paths: Sequence[Path], window: Any = AUTO) -> list[Sample]:
    """Unannotated samples of image files, and of all images at any depth in folders, in the order of `paths`.

    A multi-frame file gives one sample for each frame, with the file as sequence. A file whose frames cannot be counted
    gives one sample, and reading it raises the reason. In a dataset folder only the images are taken, never the masks.
    An id is the path under the given folder, or the stem of a given file. Files with the same id keep their suffix
    (`a.png`, `a.jpg`); given files with the same name get the name of their folder as well (`p1__a.png`); a number
    distinguishes the rest (`a.png-2`). `window`, as `Window.parse` reads it, maps pixel values of more than 8 bits to
    gray levels. Warnings name skipped files and a file given twice. Raises ImageError if a path
    does not exist, a given folder cannot be read, or there is no image.
    """
    found: dict[Path, _Found] = {}
    for path in paths:
        listed = _list_folder(path) if _is_folder(path) else [_given(path)]
        for each in listed:
            if found.setdefault(each.file.absolute(), each) is not each:
                log.warning("%s: given twice, predicted once", each.file)
    if not found:
        remedy = "give image files or folders of images"
        raise ImageError(f"no image was given; {remedy}", code="no_image", remedy=remedy)
    return with_window(_make_samples(list(found.values())), Window.of(window))


def frames_of(file: Path, name: str) -> list[Sample]:
    """The samples of one file: id `name` for a single image, `frame_id(name, i)` for frame i of several."""
    kind = frame_files.series_of(file)
    n = 1 if kind is None else kind.count_frames(file)
    if n == 1:
        return [Sample(name, file, prompts=(), masks=None, source=Location(file))]
    return [
        Sample(frame_id(name, i), file, (), None, Location(file, f"frame {i}"), frame=i, group=name, sequence=name)
        for i in range(n)
    ]


def _make_samples(found: Sequence[_Found]) -> list[Sample]:
    """The samples of all files, with unique ids."""
    names = [each.ids[0] for each in found]
    for level in range(1, max(len(each.ids) for each in found)):
        count = Counter(names)
        names = [each.ids[level] if count[name] > 1 else name for each, name in zip(found, names, strict=True)]
    samples: list[Sample] = []
    taken: set[str] = set()
    for each, name in zip(found, names, strict=True):
        number, made = 1, _readable_frames(each.file, name)
        while not taken.isdisjoint(sample.id for sample in made):
            number += 1
            made = _readable_frames(each.file, f"{name}-{number}")
        taken.update(sample.id for sample in made)
        samples += made
    return samples


def _readable_frames(file: Path, name: str) -> list[Sample]:
    """As `frames_of`, but one sample if the frames cannot be counted: reading it raises the reason."""
    try:
        if is_file(file):
            return frames_of(file, name)
    except ImageError as error:
        log.debug("%s", error)
    return [Sample(name, file, prompts=(), masks=None, source=Location(file))]


def _given(file: Path) -> _Found:
    if not _exists(file):
        raise missing_file(file)
    name = _valid(file.name)
    return _Found(file, (sample_id(Path(name)), name, f"{_valid(file.absolute().parent.name)}__{name}"))


def _list_folder(folder: Path) -> list[_Found]:
    """Image and multi-frame files under the folder, sorted by path; a warning names the other files."""
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise unreadable(folder, error, ImageError) from error
    found, others = [], []
    for file in sorted(_walk(folder, ())):
        relative = Path(_valid(str(file.relative_to(folder))))
        if _is_image(file):
            whole = "__".join(relative.parts).removeprefix("images__")
            found.append(_Found(file, (sample_id(relative), whole)))
        else:
            others.append(str(relative))
    if others:
        skipped = f"{count_of(len(others), 'file')} skipped, no image that is read: {list_names(others)}"
        phone = any(name.lower().endswith((".heic", ".heif")) for name in others)
        log.warning("%s: %s%s", folder, skipped, "; save HEIC photos as JPEG or PNG" if phone else "")
    if not found:
        raise Location(folder).error(
            "has no image",
            "no_image",
            f"{', '.join(each[1:] for each in SUFFIXES)}, DICOM, NIfTI and videos are read",
            kind=ImageError,
        )
    return found


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All entries at any depth that are not folders, except hidden ones; links to folders are followed.

    Folders with predictions or an evaluation are left out; a warning names them. `above` are the real paths of the
    folders above, because a link may lead back to one of them. A subfolder that cannot be listed is yielded itself:
    reading it as an image raises the reason.
    """
    real = folder.resolve()
    if real in above:
        return
    try:
        with os.scandir(folder) as scanned:
            listed = [entry.name for entry in scanned]
    except OSError:
        yield folder
        return
    if RESULT_MARKERS.intersection(listed):
        log.warning("%s: skipped, because it is a result of Vesalius", folder)
        return
    names = [name for name in listed if not name.startswith(".")]
    entries = {name: _is_folder(folder / name) for name in names}
    chosen = _image_folders(folder, entries)
    if chosen:
        others = [f"{name}/" if entries[name] else name for name in sorted(entries.keys() - chosen)]
        kept = " and ".join(f"{name}/" for name in sorted(chosen))
        log.warning("%s: is a dataset; only %s is predicted, without %s", folder, kept, list_names(map(_valid, others)))
    for name in chosen or entries:
        if entries[name]:
            yield from _walk(folder / name, (*above, real))
        else:
            yield folder / name


def _image_folders(folder: Path, entries: dict[str, bool]) -> Collection[str]:
    """Names of the image folders of a dataset; empty for a folder that is no dataset, or has the images in it."""
    source = Source(folder)
    if nnunet.recognize(source):
        return entries.keys() & {"imagesTr", "imagesTs"}
    annotated = any(name.lower().endswith((".json", ".xml")) for name in entries)
    if maskfolder.recognize(source) or (annotated and entries.get("images")):
        return {"images"}
    return ()


def _is_image(path: Path) -> bool:
    """True for an image with any name, a multi-frame file, and a damaged file with the suffix of one.

    False for DICOM objects without an image, such as reports and segmentations.
    """
    known = path.name.lower().endswith(frame_files.SUFFIXES)
    if path.suffix.lower() in SUFFIXES or _is_folder(path):
        return True
    if not is_file(path):
        return known
    if frame_files.kind_of(path) is not None:
        return True
    head = _head(path)
    return head.startswith(HEADS) or (known and not head.endswith(b"DICM"))


def _is_folder(path: Path) -> bool:
    """True if the folder exists; False also for a link to itself, and for names that no file system allows."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _head(path: Path) -> bytes:
    """The first 132 bytes, which end with DICM in a DICOM file; empty if the file cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(132)
    except OSError:
        return b""


def _valid(name: str) -> str:
    """The name with bytes that are not UTF-8 as escapes, because ids are written as UTF-8."""
    return name.encode(errors="backslashreplace").decode()
