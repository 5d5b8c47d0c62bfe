"""Names that tell nothing, made with a secret key: who has the key finds the person again, and nobody else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vesalius.errors import DataError, OutputError, SettingError
from vesalius.files import to_json
from vesalius.types import Sample

KEY_BYTES = 32
LENGTH = 12
"""Characters of 5 bits: among a million names the chance that any two are equal is 4 in 10 million."""

KEPT_METADATA = ("frame_time_ms", "segment")
"""Keys of annotations that tell nothing about a person; all others are left out."""


@dataclass(frozen=True)
class Pseudonyms:
    """A secret key. The same name gives the same pseudonym under the same key, and another under any other."""

    key: bytes = field(repr=False)
    known: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Pseudonym -> patient or sequence of earlier imports with this key."""

    @classmethod
    def new(cls) -> Pseudonyms:
        """A key that nobody has."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def of(self, kind: str, name: str) -> str:
        """The pseudonym of a name: `LENGTH` letters and digits, different for each `kind` of thing.

        HMAC-SHA256 (RFC 2104): without the key nobody can try names out.
        """
        return base64.b32encode(self._digest(kind, name)).decode("ascii").lower()[:LENGTH]

    def hash(self, kind: str, text: str) -> str:
        """HMAC-SHA256 in 64 hexadecimal figures, for what has to be told apart and is not shown."""
        return self._digest(kind, text).hex()

    def uid(self, uid: str) -> str:
        """The DICOM UID in the place of another: 2.25 and a number of 128 bits (PS3.5 B.2)."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', uid)[:16], version=5).int}"

    def _digest(self, kind: str, name: str) -> bytes:
        return hmac.new(self.key, f"{kind}\0{name}".encode(), hashlib.sha256).digest()


@dataclass(frozen=True)
class Renaming:
    """Samples that are to get pseudonyms, in order: what each is called now."""

    ids: dict[str, str]
    """Id -> pseudonym, which begins with that of the group."""
    groups: dict[str, str]
    sequences: dict[str, str]


def rename(samples: Sequence[Sample], pseudonyms: Pseudonyms) -> Renaming:
    """Pseudonyms of samples: `pGROUP-IMAGE`, and `pGROUP-CLIP-0003` for the fourth frame of a clip.

    An image without a group is called `iIMAGE`. Group and image are hashed apart, so that a patient keeps one
    pseudonym in all imports with one key. Raises DataError where two things would have the same pseudonym.
    """
    groups = {name: "p" + pseudonyms.of("group", name) for sample in samples if (name := sample.group)}
    sequences = {
        name: "s" + pseudonyms.of("sequence", name) for sample in samples if (name := sample.sequence)
    }
    ids: dict[str, str] = {}
    n_frames: dict[tuple[str | None, str], int] = {}
    for sample in samples:
        if sample.sequence:
            clip = sample.group, sample.sequence
            own = f"{sequences[sample.sequence]}-{n_frames.get(clip, 0):04d}"
            n_frames[clip] = n_frames.get(clip, 0) + 1
        else:
            own = "i" + pseudonyms.of("image", sample.id)
        ids[sample.id] = f"{groups[sample.group]}-{own}" if sample.group else own
    known = {new: old for old, new in groups.items()}
    twice = any(len(set(each.values())) < len(each) for each in (groups, sequences, ids))
    if twice or any(pseudonyms.known.get(new, old) != old for new, old in known.items()):
        raise DataError(
            "two names have the same pseudonym under this key; import again with a new key",
            code="pseudonym_collision",
        )
    return Renaming(ids, groups, sequences)


def strip(sample: Sample, renaming: Renaming) -> Sample:
    """The sample under its old id, with nothing that names anybody: group and clip renamed, metadata left out."""
    return replace(
        sample,
        source=renaming.ids[sample.id],
        group=renaming.groups[sample.group] if sample.group else None,
        sequence=renaming.sequences[sample.sequence] if sample.sequence else None,
        metadata={key: value for key, value in sample.metadata.items() if key in KEPT_METADATA},
    )


def read_key(path: Path) -> Pseudonyms:
    """The key of an earlier import.

    Raises SettingError where the file cannot be read, is open to others than its owner, or holds no key.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        with os.fdopen(descriptor, encoding="utf-8") as file:
            state = os.fstat(file.fileno())
            if os.name == "posix" and state.st_mode & 0o077:
                raise SettingError(f"{path}: others than its owner may read this key; run: chmod 600 {path}")
            value = json.load(file)
        key, groups = bytes.fromhex(value["key"]), value["groups"]
        if len(key) != KEY_BYTES or not isinstance(groups, dict):
            raise ValueError("no key")
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError):
        # what the file holds must not get into a message
        raise SettingError(f"{path}: is no key that an import wrote; name the .key.json beside one") from None
    return Pseudonyms(key, groups)


def write_key(path: Path, pseudonyms: Pseudonyms, tables: Mapping[str, Any]) -> None:
    """Write the key and the tables of who is who to a file that its owner alone may read, from its first byte on.

    Raises OutputError, and leaves nothing, where the file is there already or cannot be written.
    """
    text = to_json({"key": pseudonyms.key.hex(), **tables}, indent=2) + "\n"
    made = False
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        made = True
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if made:
            with suppress(OSError):
                path.unlink()
        raise OutputError(f"{path}: the key cannot be written ({error.strerror})") from error
