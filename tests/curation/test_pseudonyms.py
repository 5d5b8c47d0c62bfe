"""Pseudonyms are keyed, stable and distinct, and only the owner may read the key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.codes import raises_code

from vesalius.curation.pseudonyms import LENGTH, Pseudonyms, read_key, rename, strip, write_key
from vesalius.errors import DataError, OutputError, SettingError
from vesalius.types import Location, Sample

KEY = Pseudonyms(bytes(range(32)))


def sample(name: str, **more: Any) -> Sample:
    return Sample(
        name, Path("Mueller_Hans") / f"{name}.png", (), None, source=Location(Path(f"Mueller_Hans/{name}")), **more
    )


def test_a_name_has_one_pseudonym_per_key() -> None:
    assert KEY.of("group", "Mueller") == Pseudonyms(bytes(range(32))).of("group", "Mueller")
    others = {KEY.of("image", "Mueller"), KEY.of("group", "Muller"), Pseudonyms.new().of("group", "Mueller")}
    assert len(others | {KEY.of("group", "Mueller")}) == 4
    assert len(KEY.of("group", "Mueller")) == LENGTH
    assert "Mueller" not in repr(KEY) and KEY.key.hex() not in repr(KEY)


def test_a_pseudonym_is_the_hmac_of_kind_and_name() -> None:
    digest = hmac.new(bytes(range(32)), b"group\0Mueller", hashlib.sha256).digest()
    assert KEY.of("group", "Mueller") == base64.b32encode(digest).decode().lower()[:LENGTH]


def test_uids_are_valid_in_dicom_and_keyed() -> None:
    uid = KEY.uid("1.2.3")
    assert uid.startswith("2.25.") and uid[5:].isdigit() and len(uid) <= 64
    assert len({uid, KEY.uid("1.2.4"), Pseudonyms.new().uid("1.2.3")}) == 3


def test_a_patient_has_one_pseudonym_and_frames_of_a_clip_keep_their_order() -> None:
    samples = [
        sample("a", group="Mueller", sequence="run"),
        sample("b", group="Mueller", sequence="run"),
        sample("c", group="Mueller"),
        sample("d", group="Schmidt"),
        sample("e"),
    ]
    ids = rename(samples, KEY).ids
    patient = "p" + KEY.of("group", "Mueller")
    clip = "s" + KEY.of("sequence", "run")
    assert ids["a"] == f"{patient}-{clip}-0000"
    assert ids["b"] == f"{patient}-{clip}-0001"
    assert ids["c"] == f"{patient}-i{KEY.of('image', 'c')}"
    assert ids["d"].startswith("p" + KEY.of("group", "Schmidt"))
    assert ids["e"] == "i" + KEY.of("image", "e")
    assert rename(samples[2:3], KEY).ids["c"] == ids["c"]


@given(st.lists(st.tuples(st.text(max_size=5), st.one_of(st.none(), st.text(min_size=1, max_size=3))), max_size=20))
def test_pseudonyms_are_file_names_and_differ(names: list[tuple[str, str | None]]) -> None:
    samples = [sample(f"{i}{name}", group=group) for i, (name, group) in enumerate(names)]
    ids = list(rename(samples, KEY).ids.values())
    assert len(set(ids)) == len(samples)
    assert all(each.replace("-", "").isalnum() and each.isascii() and each == each.lower() for each in ids)


def test_two_names_with_one_pseudonym_are_refused() -> None:
    known = Pseudonyms(KEY.key, {"p" + KEY.of("group", "Mueller"): "Schmidt"})
    with raises_code(DataError, "pseudonym_collision") as caught:
        rename([sample("a", group="Mueller")], known)
    assert "Mueller" not in str(caught.value)


def test_a_stripped_sample_contains_no_name() -> None:
    metadata = {"frame_time_ms": 66.7, "segment": ["5"], "patient": "Mueller", "PatientID": "patient-1234"}
    before = sample("a", group="Mueller", sequence="Mueller-run", spacing_mm=(0.3, 0.3), metadata=metadata)
    after = strip(before, rename([before], KEY))
    assert after.metadata == {"frame_time_ms": 66.7, "segment": ["5"]}
    assert after.spacing_mm == (0.3, 0.3)
    assert "Mueller" not in f"{after.source} {after.group} {after.sequence}"


def test_a_key_file_is_readable_by_its_owner_only_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    old = os.umask(0)
    try:
        write_key(path, KEY, {"groups": {"p1": "Mueller"}})
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key(path) == Pseudonyms(KEY.key, {"p1": "Mueller"})
    with raises_code(OutputError, "write_failed"):
        write_key(path, Pseudonyms.new(), {"groups": {}})
    assert read_key(path).key == KEY.key


@pytest.mark.skipif(os.name != "posix", reason="needs permissions as POSIX has them")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "k.json"
    write_key(path, KEY, {"groups": {}})
    path.chmod(mode)
    with raises_code(SettingError, "exposed_key", "chmod 600"):
        read_key(path)


@pytest.mark.parametrize(
    "value",
    [
        "Mueller",
        [],
        {"key": "00"},
        {"key": "00", "groups": {}},
        {"key": "x" * 64, "groups": {}},
        {"key": 5, "groups": {}},
    ],
)
def test_other_files_are_refused_without_quoting_them(tmp_path: Path, value: object) -> None:
    path = tmp_path / "k.json"
    path.write_text(json.dumps(value))
    path.chmod(0o600)
    with raises_code(SettingError, "invalid_key") as caught:
        read_key(path)
    assert "Mueller" not in str(caught.value)
    with raises_code(SettingError, "unreadable_file"):
        read_key(tmp_path / "none.json")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_key_that_cannot_be_written_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "k.json"
    really = os.open

    def open_full(name: Any, flags: int, mode: int = 0o777) -> int:
        os.close(really(name, flags, mode))
        return really("/dev/full", os.O_WRONLY)

    monkeypatch.setattr(os, "open", open_full)
    with raises_code(OutputError, "write_failed"):
        write_key(path, KEY, {"groups": {}})
    assert not path.exists()
