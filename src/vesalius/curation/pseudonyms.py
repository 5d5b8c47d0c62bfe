"""Keyed pseudonyms: only the holder of the secret key can trace a pseudonym back to the original name."""

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
from vesalius.types import Location, Sample

KEY_BYTES = 32
LENGTH = 12
"""Number of 5-bit characters; among a million names, the probability of any collision is 4 in 10 million."""

KEPT_METADATA = ("frame_time_ms", "segment")
"""Metadata keys that reveal nothing about a person; `strip` removes all others."""


@dataclass(frozen=True)
class Pseudonyms:
    """Pseudonyms under one secret key: equal names get equal pseudonyms, which differ between keys."""

    key: bytes = field(repr=False)
    known: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Pseudonym -> original group of earlier imports with this key."""

    @classmethod
    def new(cls) -> Pseudonyms:
        """Pseudonyms under a new random key."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def of(self, kind: str, name: str) -> str:
        """The pseudonym of a name: `LENGTH` letters and digits, different for each `kind` of name.

        HMAC-SHA256 (RFC 2104): without the key, names cannot be recovered by guessing.
        """
        return base64.b32encode(self._digest(kind, name)).decode("ascii").lower()[:LENGTH]

    def hash(self, kind: str, text: str) -> str:
        """HMAC-SHA256 of a text, as 64 hexadecimal digits."""
        return self._digest(kind, text).hex()

    def uid(self, uid: str) -> str:
        """Keyed replacement for a DICOM UID: `2.25.` and a 128-bit number (PS3.5 B.2)."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', uid)[:16], version=5).int}"

    def _digest(self, kind: str, name: str) -> bytes:
        return hmac.new(self.key, f"{kind}\0{name}".encode(), hashlib.sha256).digest()


@dataclass(frozen=True)
class Renaming:
    """Mappings from original names to pseudonyms."""

    ids: dict[str, str]
    """Sample id -> pseudonym, which starts with the pseudonym of the group."""
    groups: dict[str, str]
    sequences: dict[str, str]


def rename(samples: Sequence[Sample], pseudonyms: Pseudonyms) -> Renaming:
    """Pseudonyms of the samples: `pGROUP-iIMAGE`, or `pGROUP-sCLIP-0003` for the fourth frame of a clip.

    An image without a group is named `iIMAGE`. Group and image are hashed separately, so that a patient has the same
    pseudonym in all imports with the same key. Raises DataError if two names have the same pseudonym.
    """
    groups = {name: "p" + pseudonyms.of("group", name) for sample in samples if (name := sample.group)}
    sequences = {name: "s" + pseudonyms.of("sequence", name) for sample in samples if (name := sample.sequence)}
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
            "two names have the same pseudonym under this key; import again with a new key", code="pseudonym_collision"
        )
    return Renaming(ids, groups, sequences)


def strip(sample: Sample, renaming: Renaming) -> Sample:
    """The sample with pseudonyms as source, group and sequence, and only `KEPT_METADATA`; it keeps its original id."""
    return replace(
        sample,
        source=Location(Path(renaming.ids[sample.id])),
        group=renaming.groups[sample.group] if sample.group else None,
        sequence=renaming.sequences[sample.sequence] if sample.sequence else None,
        metadata={key: value for key, value in sample.metadata.items() if key in KEPT_METADATA},
    )


def read_key(path: Path) -> Pseudonyms:
    """The pseudonyms of an earlier import, from its key file.

    Raises SettingError if the file cannot be read, is readable by other users, or contains no key.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        with os.fdopen(descriptor, encoding="utf-8") as file:
            state = os.fstat(file.fileno())
            if os.name == "posix" and state.st_mode & 0o077:
                raise SettingError.at(path, f"other users can read this key; run: chmod 600 {path}", code="exposed_key")
            value = json.load(file)
        key, groups = bytes.fromhex(value["key"]), value["groups"]
        if len(key) != KEY_BYTES or not isinstance(groups, dict):
            raise ValueError("no key")
    except OSError as error:
        raise SettingError.at(path, f"cannot be read ({error.strerror})", code="unreadable_file") from error
    except (ValueError, KeyError, TypeError, RecursionError):
        # no message may quote the file
        raise SettingError.at(
            path, "is not a key file of an import; name the .key.json beside the imported dataset", code="invalid_key"
        ) from None
    return Pseudonyms(key, groups)


def write_key(path: Path, pseudonyms: Pseudonyms, tables: Mapping[str, Any]) -> None:
    """Write the key and the mapping from pseudonyms to originals to a file that is readable only by its owner.

    The permissions are set when the file is created. Raises OutputError, and leaves no file, if the file exists or
    cannot be written.
    """
    text = to_json({"key": pseudonyms.key.hex(), **tables}, indent=2) + "\n"
    created = False
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        created = True
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if created:
            with suppress(OSError):
                path.unlink()
        raise OutputError.at(path, f"the key cannot be written ({error.strerror})", code="write_failed") from error
