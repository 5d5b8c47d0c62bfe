"""An import that lets no name out: pseudonyms, images and headers written anew, and silence about the source."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vesalius.curation.burned_in import Box, find_writing
from vesalius.curation.dicom_deidentification import write_deidentified
from vesalius.curation.pseudonyms import KEPT_METADATA, Pseudonyms, read_key, rename, strip, write_key
from vesalius.data.copying import copy_images
from vesalius.data.decoders import dicom_image as dicom
from vesalius.data.grouping import is_dicom
from vesalius.data.images import read_image
from vesalius.data.readers.dicom import identify
from vesalius.errors import DataError, MissingExtraError, OutputError, SettingError
from vesalius.names import list_names
from vesalius.types import Sample

LISTED = 10

NOT_SHOWN = "what may name somebody is not shown here"
SHOWN_BY_CHECK = f"{NOT_SHOWN}; vesalius check shows it, with the same arguments"

HARMLESS_KEYS = (
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID"),
    *("shapes", "flags", "tags", "license", "date_captured", "coco_url", "flickr_url"),
)
"""Keys of metadata that may be named; any other may be a name itself, and is counted."""


@dataclass
class Nameless:
    """The state of one such import."""

    pseudonyms: Pseudonyms = field(repr=False)
    key_file: Path
    ids: dict[str, str] = field(default_factory=dict, repr=False)
    tables: dict[str, Any] = field(default_factory=dict, repr=False)
    notes: list[str] = field(default_factory=list)
    written: bool = False
    annotated: bool = True
    """Whether `vesalius check` can read the source."""
    at: str = ""
    """Which image is being placed."""

    @classmethod
    def prepare(cls, out: Path, key: Path | None) -> Nameless:
        """With the key in `key`, or a new one; OutputError where the place of the key file beside `out` is taken."""
        place = out.resolve()
        key_file = place.with_name(f"{place.name}.key.json")
        if key_file.exists():
            raise OutputError(
                f"{key_file}: is the key of an earlier import; move it elsewhere, and name it with --key to use it again"
            )
        return cls(Pseudonyms.new() if key is None else read_key(key), key_file)

    @contextmanager
    def hidden(self, misfit: str = "an argument does not fit the source") -> Iterator[None]:
        """No log line, warning or message of an error that comes from inside gets out: each may quote the source.

        A SettingError comes out as one that says `misfit`.
        """
        disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except (OutputError, MissingExtraError):
            raise
        # without the error that it came of: a traceback would quote it
        except SettingError:
            raise SettingError(f"{misfit}; {self._where_shown}") from None
        except Exception as error:
            code = getattr(error, "code", None) or type(error).__name__
            message = f"the source cannot be imported [{code}]{self.at}; {self._where_shown}"
            raise DataError(message, code=code) from None
        finally:
            logging.disable(disabled)

    @property
    def _where_shown(self) -> str:
        return SHOWN_BY_CHECK if self.annotated else NOT_SHOWN

    @contextmanager
    def keeping_key(self, out: Path) -> Iterator[None]:
        """A block in which `out` comes to be after `write_key`: where it does not, the key is taken away again."""
        try:
            yield
        except BaseException:
            if self.written and not (out.is_dir() and any(out.iterdir())):
                with suppress(OSError):
                    self.key_file.unlink()
            raise

    def write_key(self) -> None:
        """Write the key and who is who, for the owner's eyes; to be done before the dataset is at its place."""
        write_key(self.key_file, self.pseudonyms, self.tables)
        self.written = True

    def place(
        self, samples: Sequence[Sample], folder: Path, on_progress: Callable[[int], None]
    ) -> list[Sample]:
        """The samples under pseudonyms, their images decoded and written anew, and their names in the tables."""
        samples = _under_their_names(samples)
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
            shown += [f"{n} other {'key' if n == 1 else 'keys'}"] * bool(n)
            self.notes.append(f"metadata left out, which may name somebody: {', '.join(shown)}")
        phrases = {prompt for sample in samples for prompt in sample.prompts}
        if phrases:
            self.notes.append(f"phrases are kept as they are, look at them: {len(phrases)}")
        if self.annotated:
            self.notes.append(f"notes on the source: {SHOWN_BY_CHECK}")
        stripped = [strip(sample, renaming) for sample in samples]

        def follow(done: int) -> None:
            order = "their annotation" if self.annotated else "their names"
            self.at = f", image {done + 1} of {len(samples)} in the order of {order}" * (done < len(samples))
            on_progress(done)

        follow(0)
        return copy_images(stripped, folder, renaming.ids, decode=True, on_progress=follow)

    def cover(self, record: dict[str, Any]) -> dict[str, Any]:
        """`import.json` with keyed hashes of the source, by which nobody finds an image again, in order of the ids."""
        rows = [
            {key: value for key, value in row.items() if key != "source_sha256"}
            | {"source_hmac_sha256": self.pseudonyms.hash("file", row["source_sha256"])}
            for row in record["samples"]
        ]
        return record | {"samples": sorted(rows, key=lambda row: str(row["id"]))}

    def write_dicom(self, samples: Sequence[Sample], folder: Path) -> dict[str, Any]:
        """Write `dicom/` by the basic profile, one file for each of the source, and note what is burned in."""
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
                f"DICOM files whose pictures show who the patient is, as they say: {_list(stated)}"
            )
        if silent:
            self.notes.append(
                f"DICOM files that do not say whether their pictures show who the patient is: {silent}"
            )
        return {"dicom": list(files.values())}

    def look_for_writing(self, placed: Sequence[Sample]) -> dict[str, Any]:
        """Regions of the pictures that may be writing; nothing is painted over."""
        found: dict[str, list[Box]] = {}
        for sample in placed:
            boxes = find_writing(read_image(sample.image))
            if boxes:
                found[sample.id] = boxes
        if found:
            shown = [f"{name} (x {b[0]} to {b[2]}, y {b[1]} to {b[3]})" for name, (b, *_) in found.items()]
            self.notes.append(f"images that may have writing in the picture, look at them: {_list(shown)}")
        else:
            self.notes.append(
                "no writing was found in the pictures; small, pale or slanted writing is missed, so look at them"
            )
        return {"writing": {name: [list(box) for box in boxes] for name, boxes in found.items()}}


def _under_their_names(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with the identifiers of DICOM files themselves as groups, where these have their hashes.

    The same patient gets the same pseudonym from an annotation file that states the identifier.
    """
    stated: dict[str, str] = {}
    for path in dict.fromkeys(sample.image for sample in samples):
        if is_dicom(path):
            stated |= identify(path)
    return [replace(each, group=stated.get(each.group or "", each.group)) for each in samples]


def _list(names: Sequence[str]) -> str:
    return f"{len(names)}: {list_names(names, LISTED)}"
