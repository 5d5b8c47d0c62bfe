"""Data of any format brought into one dataset, with an account of what became of each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vesalius.curation.deidentification import Nameless
from vesalius.data.copying import copy_images
from vesalius.data.dataset import Dataset, open_dataset
from vesalius.data.decoders.frame_files import SUFFIXES as FRAME_SUFFIXES
from vesalius.data.decoders.frame_files import kind_of
from vesalius.data.decoders.picture import SUFFIXES
from vesalius.data.formats import check_there, detect, find_annotations
from vesalius.data.grouping import group_of, note_on_groups, regroup
from vesalius.data.image_files import find_images
from vesalius.data.writers.formats import WRITERS
from vesalius.errors import AnnotationError, SettingError
from vesalius.files import check_new, check_outside, replacing, write_json
from vesalius.lineage import hash_file, versions
from vesalius.types import MaskFile, Sample

MARKER = "import.json"

Progress = Callable[[float], None]
"""Hears the share that is done."""


def import_dataset(
    source: Path,
    out: Path,
    *,
    to: str = "vesalius",
    pseudonymize: bool = False,
    key: Path | None = None,
    prompt: str | None = None,
    split: str | None = None,
    group: str | None = None,
    on_progress: Progress = lambda share: None,
) -> dict[str, Any]:
    """Write the images of `source` into `out/images/`, their annotation by `WRITERS[to]`, and `import.json`.

    Images that nobody annotated are samples without masks. With `pseudonymize` nothing that names a person gets into
    `out`, a message or the log: ids, groups and clips are keyed pseudonyms, images are decoded and written anew,
    metadata is left out but for a few keys, DICOM headers are kept in `out/dicom/` by the basic profile. Key and
    names go to `OUT.key.json` beside it; `key` is such a file of an earlier import. Returns `import.json` without its
    samples. Raises OutputError where `out`, or its key, is there already, SettingError where an argument does not
    fit, DataError where the source cannot be read: with `pseudonymize` it quotes nothing of the source.
    """
    if to not in WRITERS:
        raise SettingError(f"{to!r} is no format to write; choose one of {', '.join(WRITERS)}")
    if key is not None and not pseudonymize:
        raise SettingError("--key belongs to --pseudonymize")
    _check_out(source, out)
    if not pseudonymize:
        dataset = _open(source, _is_annotated(source, split), split=split, prompt=prompt, group=group)
        with replacing(out) as folder:
            placed = copy_images(dataset.samples, folder, on_progress=_share(on_progress, dataset.samples))
            notes = [*dataset.notes, *WRITERS[to](folder, placed)]
            record = _account(dataset, placed, folder, to) | {"source": dataset.name, "notes": notes}
            write_json(folder / MARKER, record)
        return _summary(record, out)
    nameless = Nameless.prepare(out, key)
    dataset = _open_hidden(nameless, source, split=split, prompt=prompt, group=group)
    with nameless.keeping_key(out), replacing(out) as folder:
        with nameless.hidden():
            placed = nameless.place(dataset.samples, folder, _share(on_progress, dataset.samples))
            record = nameless.cover(_account(dataset, placed, folder, to))
            record |= nameless.write_dicom(dataset.samples, folder)
            record |= nameless.look_for_writing(placed)
        placed.sort(key=lambda sample: sample.id)  # the order of the source is one of names
        notes = [note_on_groups(placed), *nameless.notes, *WRITERS[to](folder, placed)]
        record |= {"pseudonymized": True, "notes": notes}
        write_json(folder / MARKER, record)
        nameless.write_key()
    return _summary(record, out) | {"key": str(nameless.key_file)}


def _check_out(source: Path, out: Path) -> None:
    check_there(source)
    check_outside(out, source)
    check_new(out)


def _is_annotated(path: Path, split: str | None) -> bool:
    """Whether it is in a format that is read; AnnotationError where it is neither that nor images alone."""
    try:
        detect(path, split)
    except AnnotationError as error:
        if error.code != "unknown_format" or not _is_bare(path):
            raise
        return False
    return True


def _open(
    path: Path, annotated: bool, *, split: str | None, prompt: str | None, group: str | None
) -> Dataset:
    """The dataset, or the images where there is no annotation."""
    if annotated:
        return open_dataset(path, split=split, prompt=prompt, group=group)
    samples = find_images([path])
    if group is not None:
        samples = regroup(samples, group)
    root = path if path.is_dir() else path.parent
    note = f"no annotation was found: {len(samples)} images without masks"
    return Dataset(root.resolve().name, "images", root, tuple(samples), (note, note_on_groups(samples)))


def _open_hidden(
    nameless: Nameless, path: Path, *, split: str | None, prompt: str | None, group: str | None
) -> Dataset:
    """The same, step by step: an argument that does not fit is named, and nothing of the source is."""
    with nameless.hidden(_misfit("--split", split)):
        nameless.annotated = _is_annotated(path, split)
    with nameless.hidden(_misfit("--prompt", prompt)):
        dataset = _open(path, nameless.annotated, split=split, prompt=prompt, group=None)
    if group is None:
        return dataset
    with nameless.hidden(_misfit("--group", group)):
        return replace(dataset, samples=tuple(regroup(dataset.samples, group)))


def _misfit(option: str, value: str | None) -> str:
    return f"the source needs {option}" if value is None else f"{option} {value!r} does not fit the source"


def _is_bare(path: Path) -> bool:
    """Whether there are images, and nothing that may be their annotation."""
    if path.is_dir():
        return not find_annotations(path)
    return path.is_file() and (path.suffix.lower() in SUFFIXES or kind_of(path) is not None)


def _share(on_progress: Progress, samples: Sequence[Sample]) -> Callable[[int], None]:
    return lambda done: on_progress(0.9 * done / max(len(samples), 1))


def _account(dataset: Dataset, placed: Sequence[Sample], folder: Path, to: str) -> dict[str, Any]:
    """What `import.json` says of a dataset whose images are in place."""
    hashes: dict[Path, str] = {}
    rows = []
    for before, after in zip(dataset.samples, placed, strict=True):
        if before.image not in hashes:
            hashes[before.image] = hash_file(before.image)
        row: dict[str, Any] = {
            "id": after.id,
            "group": after.group,
            "image": after.image.relative_to(folder).as_posix(),
        }
        rows.append(row | {"frame": before.frame, "source_sha256": hashes[before.image]})
    masks = [each for sample in dataset.samples for objects in sample.masks or () for each in objects]
    suffixes = Counter(
        f"{_known_suffix(before.image)} to {after.image.suffix}"
        for before, after in zip(dataset.samples, placed, strict=True)
        if before.image.suffix != after.image.suffix or before.frame is not None
    )
    return {
        "format": dataset.format,
        "to": to,
        "pseudonymized": False,
        "counts": {
            "images": len(placed),
            "files": len(hashes),
            "annotated": sum(sample.masks is not None for sample in placed),
            "groups": len({group_of(sample) for sample in placed}),
        },
        "converted": {
            "images": dict(sorted(suffixes.items())),
            "mask files to RLE": sum(isinstance(each, MaskFile) for each in masks),
        },
        "versions": versions(),
        "samples": rows,
    }


def _known_suffix(path: Path) -> str:
    """The suffix where it is one of images; any other may be part of a name."""
    suffix = path.suffix.lower()
    return suffix if suffix in SUFFIXES + FRAME_SUFFIXES else "other"


def _summary(record: dict[str, Any], out: Path) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "samples"} | {"out": str(out)}
