"""De-identified import: pseudonyms, re-encoded images and headers, and messages that quote nothing of the source."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vesalius.curation.burned_in import Box, find_text
from vesalius.curation.dicom_deidentification import write_deidentified
from vesalius.curation.pseudonyms import KEPT_METADATA, Pseudonyms, read_key, rename, strip, write_key
from vesalius.data.copying import copy_images
from vesalius.data.decoders import dicom_image as dicom
from vesalius.data.grouping import is_dicom
from vesalius.data.images import read_image
from vesalius.data.readers.dicom import identify
from vesalius.errors import DataError, MissingExtraError, OutputError, SettingError, VesaliusError
from vesalius.names import count_of, list_names
from vesalius.types import Sample

MAX_LISTED = 10

NOT_SHOWN = "details are hidden because they may identify a person"
SHOWN_BY_CHECK = f"{NOT_SHOWN}; run vesalius check with the same arguments to see them"

HARMLESS_KEYS = (
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID"),
    *("shapes", "flags", "tags", "license", "date_captured", "coco_url", "flickr_url"),
)
"""Metadata keys that notes may name; other keys are only counted, because they may contain a person's name."""


@dataclass
class Deidentifier:
    """Pseudonyms, tables and notes of one de-identified import."""

    pseudonyms: Pseudonyms = field(repr=False)
    key_file: Path
    ids: dict[str, str] = field(default_factory=dict, repr=False)
    tables: dict[str, Any] = field(default_factory=dict, repr=False)
    notes: list[str] = field(default_factory=list)
    written: bool = False
    annotated: bool = True
    """True if `vesalius check` can read the source."""
    progress: str = ""
    """Position of the current image, for error messages: `, image 2 of 3 in the order of their names`."""

    @classmethod
    def create(cls, out: Path, key: Path | None) -> Deidentifier:
        """A deidentifier with the key in file `key`, or a new key; OutputError if the key file of `out` exists."""
        resolved = out.resolve()
        key_file = resolved.with_name(f"{resolved.name}.key.json")
        if key_file.exists():
            raise OutputError.at(
                key_file,
                "is the key of an earlier import; move it elsewhere, and give it with --key to use it again",
                code="output_exists",
            )
        return cls(Pseudonyms.new() if key is None else read_key(key), key_file)

    @contextmanager
    def hiding(self, mismatch: str = "an argument does not match the source") -> Iterator[None]:
        """Suppress log lines, warnings and error messages of the block, which may quote the source.

        A SettingError is replaced by one with the message `mismatch`, and every other exception except OutputError and
        MissingExtraError by a DataError; the code is kept.
        """
        disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except (OutputError, MissingExtraError):
            raise
        # from None: the traceback of the cause may quote the source
        except SettingError as error:
            raise SettingError(f"{mismatch}; {self._advice}", code=error.code) from None
        except Exception as error:
            code = error.code if isinstance(error, VesaliusError) else "unexpected"
            name = code if isinstance(error, VesaliusError) else type(error).__name__
            message = f"the source cannot be imported [{name}]{self.progress}; {self._advice}"
            raise DataError(message, code=code) from None
        finally:
            logging.disable(disabled)

    @property
    def _advice(self) -> str:
        return SHOWN_BY_CHECK if self.annotated else NOT_SHOWN

    @contextmanager
    def keeping_key(self, out: Path) -> Iterator[None]:
        """Remove the key file if the block fails after `write_key` and before `out` exists."""
        try:
            yield
        except BaseException:
            if self.written and not (out.is_dir() and any(out.iterdir())):
                with suppress(OSError):
                    self.key_file.unlink()
            raise

    def write_key(self) -> None:
        """Write the key file, readable only by its owner; call this before the dataset gets its final path."""
        write_key(self.key_file, self.pseudonyms, self.tables)
        self.written = True

    def copy(self, samples: Sequence[Sample], folder: Path, on_progress: Callable[[int], None]) -> list[Sample]:
        """Copy the samples under pseudonyms, with re-encoded images; fills `ids` and `tables`."""
        samples = _with_original_identifiers(samples)
        renaming = rename(samples, self.pseudonyms)
        self.ids = renaming.ids
        self.tables = {
            "groups": {new: old for old, new in renaming.groups.items()},
            "sequences": {new: old for old, new in renaming.sequences.items()},
            "samples": {
                renaming.ids[sample.id]: {
                    "id": sample.id,
                    "path": str(sample.image.absolute()),
                    "frame": sample.frame,
                    "group": sample.group,
                }
                for sample in samples
            },
        }
        dropped = Counter(key for sample in samples for key in sample.metadata if key not in KEPT_METADATA)
        if dropped:
            shown = [f"{key} ({dropped[key]})" for key in sorted(dropped) if key in HARMLESS_KEYS]
            n = len(dropped) - len(shown)
            shown += [count_of(n, "other key")] * bool(n)
            self.notes.append(f"metadata removed because it may identify a person: {', '.join(shown)}")
        phrases = {prompt for sample in samples for prompt in sample.prompts}
        if phrases:
            self.notes.append(f"phrases are kept unchanged; check them for names: {len(phrases)}")
        if self.annotated:
            self.notes.append(f"notes on the source: {SHOWN_BY_CHECK}")
        stripped = [strip(sample, renaming) for sample in samples]

        def follow(done: int) -> None:
            order = "their annotation" if self.annotated else "their names"
            self.progress = f", image {done + 1} of {len(samples)} in the order of {order}" * (done < len(samples))
            on_progress(done)

        follow(0)
        return copy_images(stripped, folder, renaming.ids, decode=True, on_progress=follow)

    def hide_sources(self, record: dict[str, Any]) -> dict[str, Any]:
        """The contents of `import.json`, sorted by id, with keyed instead of plain hashes of the source files."""
        rows = [
            {key: value for key, value in row.items() if key != "source_sha256"}
            | {"source_hmac_sha256": self.pseudonyms.hash("file", row["source_sha256"])}
            for row in record["samples"]
        ]
        return record | {"samples": sorted(rows, key=lambda row: str(row["id"]))}

    def write_dicom(self, samples: Sequence[Sample], folder: Path) -> dict[str, Any]:
        """Write de-identified DICOM files to `dicom/`, one per source file; adds notes on burned-in annotations."""
        first = {sample.image: sample for sample in reversed(samples)}
        files: dict[str, dict[str, Any]] = {}
        for path, sample in reversed(first.items()):
            if not is_dicom(path):
                continue
            name = self.ids[sample.id]
            if sample.sequence and sample.frame is not None:
                name = name.rpartition("-")[0]
            if name in files:
                name = self.ids[sample.id]
            target = folder / "dicom" / f"{name}.dcm"
            target.parent.mkdir(exist_ok=True)
            patient = self.ids[sample.id].partition("-")[0]
            done = write_deidentified(path, target, self.pseudonyms, patient)
            burned_in = dicom.read_facts(path).burned_in_annotation
            files[name] = {"file": f"dicom/{name}.dcm", "attributes": dict(done), "burned_in": burned_in}
            self.tables.setdefault("dicom", {})[name] = str(path.absolute())
        if not files:
            return {}
        stated = [name for name, facts in files.items() if facts["burned_in"]]
        silent = sum(facts["burned_in"] is None for facts in files.values())
        if stated:
            self.notes.append(
                f"DICOM files that state burned-in annotations: {len(stated)} ({list_names(stated, MAX_LISTED)})"
            )
        if silent:
            self.notes.append(f"DICOM files that do not state whether they have burned-in annotations: {silent}")
        return {"dicom": list(files.values())}

    def find_burned_in_text(self, copied: Sequence[Sample]) -> dict[str, Any]:
        """Regions that may be burned-in text, for `import.json`, with a note; pixels stay unchanged."""
        found: dict[str, list[Box]] = {}
        for sample in copied:
            if boxes := find_text(read_image(sample.image)):
                found[sample.id] = boxes
        note = "no burned-in text was found, but small, pale or slanted text is missed; inspect the images"
        if found:
            shown = [f"{name} (x {b[0]} to {b[2]}, y {b[1]} to {b[3]})" for name, (b, *_) in found.items()]
            them = "it" if len(found) == 1 else "them"
            note = f"{count_of(len(found), 'image')} may contain burned-in text; inspect {them}: "
            note += list_names(shown, MAX_LISTED)
        self.notes.append(note)
        return {"burned_in_text": {name: [list(box) for box in boxes] for name, boxes in found.items()}}


def _with_original_identifiers(samples: Sequence[Sample]) -> list[Sample]:
    """The samples, grouped by the patient identifiers of DICOM files instead of their hashes.

    A patient then gets the same pseudonym from a DICOM file and from an annotation file with the same identifier.
    """
    stated: dict[str, str] = {}
    for path in dict.fromkeys(sample.image for sample in samples):
        if is_dicom(path):
            stated |= identify(path)
    return [replace(each, group=stated.get(each.group or "", each.group)) for each in samples]
