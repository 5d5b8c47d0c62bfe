"""Fingerprints: equal for equal content, different for any change; damaged files are refused."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tests.codes import raises_code

from vesalius import lineage
from vesalius.errors import CheckpointError, ImageError
from vesalius.lineage import commit, fingerprint_samples, fingerprint_weights, hash_file, hash_pixels, versions
from vesalius.types import Absent, MaskFile, Polygons, Sample

VLM = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.weight": np.arange(4, dtype=np.float16),
    "c.scale": np.array(2.5, dtype=np.float32),
    "empty": np.zeros((0, 3), dtype=np.float32),
}
SAM = {"a.weight": np.arange(5, dtype=np.int64)}
PROJECTOR = {"0.weight": np.ones((2, 2), dtype=np.float32)}


def make_bundle(folder: Path, vlm: Mapping[str, Mapping[str, np.ndarray]]) -> Path:
    """A bundle with the given files in vlm/, and the same sam/ and projector each time."""
    (folder / "vlm").mkdir(parents=True)
    (folder / "sam").mkdir()
    for name, tensors in vlm.items():
        save_file(dict(tensors), folder / "vlm" / name)
    save_file(SAM, folder / "sam" / "model.safetensors")
    save_file(PROJECTOR, folder / "projector.safetensors")
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle", {"model.safetensors": VLM})


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], first: int, last: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_pixels_agree_whatever_their_layout_in_memory() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert hash_pixels(pixels) == hash_pixels(np.asfortranarray(pixels))
    others = (pixels.reshape(6, 4), pixels.astype(np.int8), pixels + 1)
    assert len({hash_pixels(each) for each in (pixels, *others)}) == 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(shards=st.lists(st.integers(0, 2), min_size=len(VLM), max_size=len(VLM)), order=st.permutations(list(VLM)))
def test_the_fingerprint_is_independent_of_sharding_and_order(
    tmp_path_factory: pytest.TempPathFactory, shards: list[int], order: list[str]
) -> None:
    shard_of = dict(zip(VLM, shards, strict=True))
    files = {
        f"model-{shard}.safetensors": {name: VLM[name] for name in order if shard_of[name] == shard}
        for shard in set(shards)
    }
    root = tmp_path_factory.mktemp("weights")
    whole = make_bundle(root / "whole", {"model.safetensors": VLM})
    assert fingerprint_weights(make_bundle(root / "parts", files)) == fingerprint_weights(whole)


def test_the_fingerprint_follows_its_written_definition(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    save_file(PROJECTOR, bundle / "projector.safetensors")
    data = hashlib.sha256(PROJECTOR["0.weight"].tobytes()).hexdigest()
    line = json.dumps(["projector.0.weight", "F32", [2, 2], data]) + "\n"
    assert fingerprint_weights(bundle) == hashlib.sha256(line.encode()).hexdigest()


def test_only_tensors_change_the_fingerprint(bundle: Path) -> None:
    before = fingerprint_weights(bundle)
    (bundle / "vesalius.json").write_text('{"threshold": 0.4}')
    save_file(VLM, bundle / "vlm" / "model.safetensors", metadata={"format": "np"})
    assert fingerprint_weights(bundle) == before


@pytest.mark.parametrize(
    "change",
    [
        {"a.weight": VLM["a.weight"] + 1},
        {"a.weight": VLM["a.weight"].reshape(3, 2)},
        {"a.weight": VLM["a.weight"].view(np.int32)},
        {"new": np.zeros(1, dtype=np.float32)},
    ],
    ids=["bytes", "shape", "dtype", "name"],
)
def test_any_change_of_a_tensor_changes_the_fingerprint(
    tmp_path: Path, bundle: Path, change: dict[str, np.ndarray]
) -> None:
    other = make_bundle(tmp_path / "other", {"model.safetensors": {**VLM, **change}})
    assert fingerprint_weights(other) != fingerprint_weights(bundle)


def test_a_file_changed_in_place_is_read_again(bundle: Path) -> None:
    before = fingerprint_weights(bundle)
    save_file({"0.weight": np.zeros((2, 2), dtype=np.float32)}, bundle / "projector.safetensors")
    assert fingerprint_weights(bundle) != before


def test_an_adapter_counts(bundle: Path) -> None:
    before = fingerprint_weights(bundle)
    (bundle / "adapter").mkdir()
    save_file(PROJECTOR, bundle / "adapter" / "adapter_model.safetensors")
    assert fingerprint_weights(bundle) != before


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with raises_code(CheckpointError, "no_weights"):
        fingerprint_weights(tmp_path)


def test_a_file_cut_anywhere_is_refused(bundle: Path) -> None:
    path = bundle / "projector.safetensors"
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with raises_code(CheckpointError, "damaged_weights", "projector.safetensors"):
            fingerprint_weights(bundle)


DAMAGED = {
    "empty file": b"",
    "oversized header": (1 << 62).to_bytes(8, "little") + b"{}",
    "deeply nested header": safetensors_bytes(b"{" * 200_000),
    "header is not text": safetensors_bytes(b"\xff\xfe{}"),
    "header is not an object of tensors": safetensors_bytes({"a": 3}),
    "data missing": safetensors_bytes({"a": entry("F32", [1], 0, 4)}),
    "data left over": safetensors_bytes({"a": entry("F32", [1], 0, 4)}, bytes(8)),
    "hole before the data": safetensors_bytes({"a": entry("F32", [1], 4, 8)}, bytes(8)),
    "shape beyond its bytes": safetensors_bytes({"a": entry("F32", [2], 0, 4)}, bytes(4)),
    "negative side": safetensors_bytes({"a": entry("F32", [-1], 0, 4)}, bytes(4)),
    "unknown dtype": safetensors_bytes({"a": entry("Q7", [1], 0, 4)}, bytes(4)),
    "overlapping tensors": safetensors_bytes({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, bytes(4)),
    "a pickle": pickle.dumps({"a": 1}),
}
"""A safetensors file that the library refuses, by kind of damage."""


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_by_name(bundle: Path, content: bytes) -> None:
    (bundle / "sam" / "model.safetensors").write_bytes(content)
    with raises_code(CheckpointError, "damaged_weights", "sam/model.safetensors"):
        fingerprint_weights(bundle)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(header=st.binary(max_size=60), data=st.binary(max_size=20))
def test_random_bytes_never_raise_anything_else(bundle: Path, header: bytes, data: bytes) -> None:
    (bundle / "sam" / "model.safetensors").write_bytes(safetensors_bytes(header, data))
    with suppress(CheckpointError):  # `{}` is a valid file without tensors
        fingerprint_weights(bundle)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle large enough for the hash cache, last changed a minute ago; the cache belongs to the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = make_bundle(tmp_path / "large", {"model.safetensors": {"w": np.zeros(9 << 20, np.float32)}})
    age(bundle / "vlm" / "model.safetensors", 60)
    return bundle


def age(path: Path, seconds: float) -> None:
    changed_ns = time.time_ns() - int(seconds * 1e9)
    os.utime(path, ns=(changed_ns, changed_ns))


def forget() -> None:
    """Clear the cache of this process, as in a new process."""
    lineage._hash_tensors.cache_clear()


def change_unseen(path: Path) -> None:
    """Change the last byte, but neither size nor modification time."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_large_file_of_the_same_path_size_and_time_is_hashed_once(large: Path, tmp_path: Path) -> None:
    path = large / "vlm" / "model.safetensors"
    before = fingerprint_weights(large)
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1, "one per large file, none for small files"
    change_unseen(path)
    forget()
    assert fingerprint_weights(large) == before
    age(path, 30)
    forget()
    after = fingerprint_weights(large)
    assert after != before
    forget()
    assert fingerprint_weights(large) == after


def test_a_file_that_has_just_changed_is_hashed_again(large: Path) -> None:
    path = large / "vlm" / "model.safetensors"
    age(path, 0)
    before = fingerprint_weights(large)
    change_unseen(path)
    forget()
    assert fingerprint_weights(large) != before


@pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', '{"files": [], "tensors": [[1]]}'])
def test_a_damaged_cache_is_ignored_and_replaced(large: Path, tmp_path: Path, content: str) -> None:
    before = fingerprint_weights(large)
    [note] = (tmp_path / "cache").rglob("*.json")
    note.write_text(content)
    forget()
    assert fingerprint_weights(large) == before
    assert json.loads(note.read_text())["tensors"]


def test_a_cache_that_cannot_be_written_is_no_error(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    before = fingerprint_weights(large)
    forget()
    assert fingerprint_weights(large) == before


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    for name in ("a.png", "b.png", "mask.png"):
        (tmp_path / name).write_bytes(name.encode())
    triangle = Polygons(((0.0, 0.0, 4.0, 0.0, 4.0, 4.0),))
    return [
        Sample("a", tmp_path / "a.png", ("vessel", "wire"), ((triangle,), (Absent(),))),
        Sample("b", tmp_path / "b.png", ("vessel",), ((MaskFile(tmp_path / "mask.png"),),)),
    ]


def test_samples_agree_in_any_order_and_any_folder(samples: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    moved_image = (tmp_path / "a.png").rename(tmp_path / "moved" / "c.png")
    before = [replace(samples[0], image=moved_image), samples[1]]
    after = [samples[1], replace(samples[0], image=moved_image.rename(tmp_path / "a.png"))]
    assert fingerprint_samples(after) == fingerprint_samples([replace(each) for each in samples])
    moved_image.write_bytes(b"a.png")
    assert fingerprint_samples(before) == fingerprint_samples(after)


def test_any_change_of_a_sample_changes_the_fingerprint(samples: list[Sample], tmp_path: Path) -> None:
    seen = {fingerprint_samples(samples), fingerprint_samples(samples[:1])}
    first, second = samples
    assert first.masks is not None
    for other in (
        replace(first, id="c"),
        replace(first, prompts=("vessel", "stent")),
        replace(first, masks=(first.masks[1], first.masks[1])),
        replace(first, masks=None),
    ):
        seen.add(fingerprint_samples([other, second]))
    (tmp_path / "mask.png").write_bytes(b"other")
    seen.add(fingerprint_samples(samples))
    (tmp_path / "a.png").write_bytes(b"other")
    seen.add(fingerprint_samples(samples))
    assert len(seen) == 8


def test_an_image_that_is_missing_is_named(samples: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "a.png").unlink()
    with raises_code(ImageError, "unreadable_file", "a.png"):
        fingerprint_samples(samples)


def test_versions_are_found_without_importing_torch() -> None:
    found = versions()
    assert found["numpy"] == np.__version__
    assert found["python"].startswith("3.")
    assert set(found) >= {"vesalius", "torch", "transformers"}
    code = "import sys; from vesalius.lineage import versions; versions(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"], check=True)


def test_the_commit_is_that_of_the_own_tree_of_the_package(tmp_path: Path) -> None:
    package = tmp_path / "src" / "vesalius"
    package.mkdir(parents=True)
    (package / "a.py").write_text("")
    assert commit(package) is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    assert commit(package) is None
    git("add", ".")
    git("commit", "-m", "first")
    assert commit(package) == git("rev-parse", "HEAD")
    (package / "a.py").write_text("changed")
    assert commit(package) == git("rev-parse", "HEAD") + "-dirty"
    installed = tmp_path / ".venv" / "site-packages" / "vesalius"
    installed.mkdir(parents=True)
    assert commit(installed) is None
