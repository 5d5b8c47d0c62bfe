"""Import a dataset of any supported format, with a record of the source of each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vesalius.curation.deidentification import Deidentifier
from vesalius.data.copying import copy_images
from vesalius.data.dataset import Dataset, open_dataset
from vesalius.data.decoders.frame_files import SUFFIXES as FRAME_SUFFIXES
from vesalius.data.decoders.frame_files import kind_of
from vesalius.data.decoders.picture import SUFFIXES
from vesalius.data.formats import check_there, detect, find_annotations
from vesalius.data.grouping import group_of, note_on_groups, regroup
from vesalius.data.image_files import find_images
from vesalius.data.writers.formats import WRITERS
from vesalius.errors import AnnotationError, SettingError, UsageError
from vesalius.files import check_new, check_outside, check_replaceable, replacing, write_json
from vesalius.lineage import hash_file, versions
from vesalius.types import MaskFile, Sample
from vesalius.window import AUTO, Window

MARKER = "import.json"
NAMES = ("images", "masks", "dicom", "annotations.json", "classes.json", MARKER)
"""Everything in the folder of an import; a folder with other content is never replaced."""

Progress = Callable[[float], None]
"""Callback for the finished fraction, 0 to 1."""


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
    window: Any = AUTO,
    overwrite: bool = False,
    on_progress: Progress = lambda fraction: None,
) -> dict[str, Any]:
    """Write images to `out/images/`, the annotation in the format `to` (a key of `WRITERS`), and `import.json`.

    Images without annotation become samples without masks. A `window` other than `auto`, as `Window.parse` reads it,
    makes every image an 8-bit PNG; under `auto`, image files of more than 8 bits stay as they are, while frames of files
    and photos turned by EXIF become 8-bit PNG files. With `pseudonymize`, nothing that identifies a person gets
    into `out`, a message or the log: ids, groups and sequences are keyed pseudonyms, images are re-encoded, only
    `KEPT_METADATA` is kept, and DICOM files with headers by the basic profile are written to `out/dicom/`. The key and
    the mapping to the originals go to `OUT.key.json` beside `out`; `key` is the key file of an earlier import.
    `overwrite` replaces an earlier import when the new one is complete, but never a key. Returns `import.json` without
    its samples. Raises OutputError if `out` or its key exists, SettingError for an argument that does not match the
    source, DataError if the source cannot be read; with `pseudonymize`, their messages quote nothing of the source.
    """
    options = _Options(split, prompt, group, Window.of(window))
    if to not in WRITERS:
        raise SettingError(
            f"{to!r} is not an output format; choose one of {', '.join(WRITERS)}", code="bad_value", field="to"
        )
    if key is not None and not pseudonymize:
        raise UsageError(
            "--key needs --pseudonymize; add it, or leave --key out", code="conflicting_settings", field="key"
        )
    check_there(source)
    _check_target(out, source, overwrite)
    if not pseudonymize:
        dataset = _open(source, _is_annotated(source, split), options)
        with replacing(out) as folder:
            copied = copy_images(dataset.samples, folder, on_progress=_scaled(on_progress, dataset.samples))
            notes = [*dataset.notes, *WRITERS[to](folder, copied)]
            record = _account(dataset, copied, folder, to) | {"source": dataset.name, "notes": notes}
            write_json(folder / MARKER, record)
        return _summary(record, out)
    deidentifier = Deidentifier.create(out, key)
    dataset = _open_hidden(deidentifier, source, options)
    with deidentifier.keeping_key(out), replacing(out) as folder:
        with deidentifier.hiding():
            copied = deidentifier.copy(dataset.samples, folder, _scaled(on_progress, dataset.samples))
            record = deidentifier.hide_sources(_account(dataset, copied, folder, to))
            record |= deidentifier.write_dicom(dataset.samples, folder)
            record |= deidentifier.find_burned_in_text(copied)
        copied.sort(key=lambda sample: sample.id)  # the order of the source reveals that of the original names
        notes = [note_on_groups(copied), *deidentifier.notes, *WRITERS[to](folder, copied)]
        record |= {"pseudonymized": True, "notes": notes}
        write_json(folder / MARKER, record)
        deidentifier.write_key()
    return _summary(record, out) | {"key": str(deidentifier.key_file)}


def _check_target(out: Path, source: Path, overwrite: bool) -> None:
    check_outside(out, source)
    if overwrite:
        check_replaceable(out, "imported dataset", NAMES, MARKER)
    else:
        check_new(out, "name another folder, or replace an earlier import with --overwrite")


def _is_annotated(path: Path, split: str | None) -> bool:
    """True for a supported annotation format, False for bare images; AnnotationError for any other source."""
    try:
        detect(path, split)
    except AnnotationError as error:
        if error.code != "unknown_format" or not _is_bare(path):
            raise
        return False
    return True


class _Options(NamedTuple):
    """Arguments about the source."""

    split: str | None
    prompt: str | None
    group: str | None
    window: Window


def _open(path: Path, annotated: bool, options: _Options) -> Dataset:
    """The dataset of the source; unannotated images become a dataset too."""
    if annotated:
        return open_dataset(path, **options._asdict())
    samples = find_images([path], options.window)
    if options.group is not None:
        samples = regroup(samples, options.group)
    root = path if path.is_dir() else path.parent
    note = f"no annotation was found: {len(samples)} images without masks"
    return Dataset(root.resolve().name, "images", root, tuple(samples), (note, note_on_groups(samples)))


def _open_hidden(deidentifier: Deidentifier, path: Path, options: _Options) -> Dataset:
    """Open the dataset step by step, so that an error names the invalid argument but quotes nothing of the source."""
    split, prompt, group, _ = options
    with deidentifier.hiding(_mismatch("--split", split)):
        deidentifier.annotated = _is_annotated(path, split)
    with deidentifier.hiding(_mismatch("--prompt", prompt)):
        dataset = _open(path, deidentifier.annotated, options._replace(group=None))
    if group is None:
        return dataset
    with deidentifier.hiding(_mismatch("--group", group)):
        return replace(dataset, samples=tuple(regroup(dataset.samples, group)))


def _mismatch(option: str, value: str | None) -> str:
    return f"the source needs {option}" if value is None else f"{option} {value!r} does not match the source"


def _is_bare(path: Path) -> bool:
    """True for images without a possible annotation file."""
    if path.is_dir():
        return not find_annotations(path)
    return path.is_file() and (path.suffix.lower() in SUFFIXES or kind_of(path) is not None)


def _scaled(on_progress: Progress, samples: Sequence[Sample]) -> Callable[[int], None]:
    return lambda done: on_progress(0.9 * done / max(len(samples), 1))


def _account(dataset: Dataset, copied: Sequence[Sample], folder: Path, to: str) -> dict[str, Any]:
    """The contents of `import.json`."""
    hashes: dict[Path, str] = {}
    rows = []
    for before, after in zip(dataset.samples, copied, strict=True):
        if before.image not in hashes:
            hashes[before.image] = hash_file(before.image)
        image = after.image.relative_to(folder).as_posix()
        row: dict[str, Any] = {"id": after.id, "group": after.group, "image": image}
        rows.append(row | {"frame": before.frame, "source_sha256": hashes[before.image]})
    masks = [each for sample in dataset.samples for objects in sample.masks or () for each in objects]
    suffixes = Counter(
        f"{_known_suffix(before.image)} to {after.image.suffix}"
        for before, after in zip(dataset.samples, copied, strict=True)
        if before.image.suffix != after.image.suffix or before.frame is not None
    )
    return {
        "format": dataset.format,
        "to": to,
        "pseudonymized": False,
        "counts": {
            "images": len(copied),
            "files": len(hashes),
            "annotated": sum(sample.masks is not None for sample in copied),
            "groups": len({group_of(sample) for sample in copied}),
        },
        "converted": {
            "images": dict(sorted(suffixes.items())),
            "mask files to RLE": sum(isinstance(each, MaskFile) for each in masks),
        },
        "versions": versions(),
        "samples": rows,
    }


def _known_suffix(path: Path) -> str:
    """The suffix of an image file, else `other`, because an unknown suffix may be part of a person's name."""
    suffix = path.suffix.lower()
    return suffix if suffix in SUFFIXES + FRAME_SUFFIXES else "other"


def _summary(record: dict[str, Any], out: Path) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "samples"} | {"out": str(out)}
