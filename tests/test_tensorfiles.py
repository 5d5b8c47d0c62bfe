"""Safetensors files: the library reads what is written, and errors name the file."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tests.codes import raises_code

from vesalius.errors import CheckpointError, OutputError
from vesalius.files import replacing
from vesalius.tensorfiles import (
    TensorType,
    find_shards,
    locate_tensors,
    read_blocks,
    read_header,
    write_shards,
    write_tensors,
)

TENSORS = {
    "half": np.arange(3, dtype=np.float16),
    "single": np.arange(4, dtype=np.float32).reshape(2, 2),
    "flags": np.array([True, False, True]),
    "none": np.zeros((0, 3), dtype=np.float32),
    "scalar": np.array(7, dtype=np.int64),
}
NAMES = {"float16": "F16", "float32": "F32", "bool": "BOOL", "int64": "I64"}


def types_of(tensors: Mapping[str, np.ndarray]) -> dict[str, TensorType]:
    return {name: TensorType(NAMES[array.dtype.name], array.shape) for name, array in tensors.items()}


def reader(tensors: Mapping[str, np.ndarray], block: int = 5) -> Callable[[str], Iterator[bytes]]:
    def read(name: str) -> Iterator[bytes]:
        data = tensors[name].tobytes()
        yield from (data[i : i + block] for i in range(0, len(data), block))

    return read


def assert_same(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    done: list[int] = []
    write_tensors(path, types_of(TENSORS), reader(TENSORS), on_bytes=done.append)
    assert_same(load_file(path), TENSORS)
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert sum(done) == sum(array.nbytes for array in TENSORS.values())


def test_every_tensor_is_aligned(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, types_of(TENSORS), reader(TENSORS))
    for name, location in read_header(path).items():
        assert location.offset % TENSORS[name].dtype.itemsize == 0, name


def test_a_tensor_is_read_in_blocks_from_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    location = read_header(path)["single"]
    assert (location.dtype, location.shape, location.n_bytes) == ("F32", (2, 2), 16)
    assert b"".join(read_blocks(location, 4, 8)) == TENSORS["single"].tobytes()[4:12]
    assert list(read_blocks(location, 4, 0)) == []


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    location = read_header(path)["single"]
    os.truncate(path, location.offset + 4)
    with raises_code(CheckpointError, "damaged_weights", "a.safetensors"):
        list(read_blocks(location, 0, 16))
    path.unlink()
    with raises_code(CheckpointError, "unreadable_file", "a.safetensors"):
        list(read_blocks(location, 0, 16))


@given(sizes=st.lists(st.integers(0, 9), max_size=6), limit=st.integers(1, 20))
def test_shards_hold_all_tensors_once_and_are_no_larger_than_asked(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    tensors = {f"t{i}": np.full(size, i, dtype=np.float16) for i, size in enumerate(sizes)}
    write_shards(folder, types_of(tensors), reader(tensors), shard_bytes=limit)
    paths = find_shards(folder)
    assert_same({name: array for path in paths for name, array in load_file(path).items()}, tensors)
    for path in paths:
        shard = load_file(path)
        assert sum(array.nbytes for array in shard.values()) <= limit or len(shard) == 1
    names = [path.name for path in paths]
    index = folder / "model.safetensors.index.json"
    if len(names) == 1:
        assert names == ["model.safetensors"] and not index.exists()
    else:
        assert names == [f"model-{i + 1:05d}-of-{len(names):05d}.safetensors" for i in range(len(names))]
        found = json.loads(index.read_text())
        assert found["metadata"] == {"total_size": sum(array.nbytes for array in tensors.values())}
        assert set(found["weight_map"]) == set(tensors)


@pytest.mark.parametrize("shape", [(5,), (3,)], ids=["too few", "too many"])
def test_another_number_of_bytes_than_declared_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = {"a": np.arange(4, dtype=np.float16)}
    with raises_code(CheckpointError, "wrong_shape", "8 bytes", f"F16 [{shape[0]}]"):
        write_tensors(tmp_path / "a.safetensors", {"a": TensorType("F16", shape)}, reader(tensors))


def test_a_full_disk_is_an_output_error_and_leaves_no_file(tmp_path: Path) -> None:
    tensors = {"a": np.zeros(1 << 20, dtype=np.float32)}
    out = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with raises_code(OutputError, "write_failed", str(out)), replacing(out) as aside:
            aside.mkdir()
            write_shards(aside, types_of(tensors), reader(tensors, block=1 << 18))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_shards(tmp_path, types_of(TENSORS), reader(TENSORS), shard_bytes=16)
    assert len(find_shards(tmp_path)) > 1
    return tmp_path


def change_index(folder: Path, **entries: str | None) -> None:
    """Set entries of the weight map; None removes one."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {name: file for name, file in (index["weight_map"] | entries).items() if file is not None}
    path.write_text(json.dumps(index))


INDEX_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "not an index": (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), ""),
    "missing shard": (lambda folder: find_shards(folder)[1].unlink(), "model-00002"),
    "shard in the parent folder": (
        lambda folder: change_index(folder, half="../other.safetensors"),
        "../other.safetensors",
    ),
    "shard in a subfolder": (
        lambda folder: change_index(folder, half="sub/model.safetensors"),
        "sub/model.safetensors",
    ),
    "unnamed shard": (lambda folder: save_file(TENSORS, folder / "stray.safetensors"), "stray.safetensors"),
    "tensor without shard": (
        lambda folder: change_index(folder, more=find_shards(folder)[0].name),
        "lacks the tensor more",
    ),
    "unnamed tensor": (lambda folder: change_index(folder, flags=None), "contains the tensor flags"),
}


@pytest.mark.parametrize(("damage", "part"), INDEX_FAULTS.values(), ids=INDEX_FAULTS)
def test_an_index_that_disagrees_with_its_shards_is_refused(
    sharded: Path, damage: Callable[[Path], object], part: str
) -> None:
    (sharded / "sub").mkdir()
    for path in (sharded / "sub" / "model.safetensors", sharded.parent / "other.safetensors"):
        save_file(TENSORS, path)
    damage(sharded)
    with raises_code(CheckpointError, "shard_index_mismatch", "index.json", part):
        find_shards(sharded)


def test_two_files_with_the_same_tensor_are_refused(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": TENSORS["half"]}, tmp_path / name)
    with raises_code(CheckpointError, "repeated_tensor", "b.safetensors", "tensor x", "a.safetensors"):
        locate_tensors(find_shards(tmp_path))


def test_an_unsupported_dtype_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with raises_code(CheckpointError, "unknown_dtype", "a.safetensors", "F4"):
        read_header(path)
