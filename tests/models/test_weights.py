"""Weight views return the same rows as numpy slicing, and loading is exact."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.codes import raises_code

from vesalius.errors import CheckpointError
from vesalius.models.layout_mapping import Assembly, Rows
from vesalius.models.weights import (
    TORCH_TYPES,
    AssembledWeights,
    HashedWeights,
    RenamedWeights,
    Weights,
    load_tensor,
    open_weights,
)
from vesalius.tensorfiles import ITEM_BYTES, Block, TensorType


class ArrayWeights:
    """Arrays in memory, read one number at a time."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.tensors = {name: TensorType("F32", array.shape) for name, array in arrays.items()}

    def read(self, name: str, first: int = 0, count: int | None = None) -> Iterator[Block]:
        rows = np.atleast_1d(self.arrays[name])[first : None if count is None else first + count]
        yield from (number.tobytes() for number in rows.ravel())


def rows_of(weights: Weights, name: str, first: int = 0, count: int | None = None) -> np.ndarray:
    data = b"".join(weights.read(name, first, count))
    return np.frombuffer(data, np.float32).reshape(-1, *weights.tensors[name].shape[1:])


@st.composite
def assemblies(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], Assembly]:
    """Sources of equal row shape, and a tensor of some of their rows."""
    tail = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    sources, start = {}, 0
    for i, length in enumerate(lengths):
        size = length * int(np.prod(tail))
        sources[f"s{i}"] = np.arange(start, start + size, dtype=np.float32).reshape(length, *tail)
        start += size
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(sorted(sources)))
        first = draw(st.integers(0, len(sources[name]) - 1))
        rows.append(Rows(name, first, draw(st.integers(1, len(sources[name]) - first))))
    return sources, Assembly((sum(part.count for part in rows), *tail), tuple(rows))


@given(case=assemblies(), data=st.data())
def test_rows_of_an_assembled_tensor_are_those_of_its_sources(
    case: tuple[dict[str, np.ndarray], Assembly], data: st.DataObject
) -> None:
    sources, assembly = case
    whole = np.concatenate([sources[part.source][part.first :][: part.count] for part in assembly.rows])
    weights = AssembledWeights(ArrayWeights(sources), {"t": assembly})
    first = data.draw(st.integers(0, len(whole)))
    count = data.draw(st.none() | st.integers(0, len(whole) - first))
    wanted = whole[first : None if count is None else first + count]
    np.testing.assert_array_equal(rows_of(weights, "t", first, count), wanted)
    np.testing.assert_array_equal(load_tensor(weights, "t").numpy(), whole)


@given(lengths=st.lists(st.integers(0, 4), min_size=1, max_size=5), data=st.data())
def test_hashes_taken_while_reading_equal_those_of_the_bytes(lengths: list[int], data: st.DataObject) -> None:
    arrays = {f"t{i}": np.arange(n, dtype=np.float32) + i for i, n in enumerate(lengths)}
    weights = HashedWeights(ArrayWeights(arrays))
    for _ in range(data.draw(st.integers(0, 6))):
        name = data.draw(st.sampled_from(sorted(arrays)))
        first = data.draw(st.integers(0, len(arrays[name])))
        count = data.draw(st.integers(0, len(arrays[name]) - first))
        np.testing.assert_array_equal(rows_of(weights, name, first, count), arrays[name][first:][:count])
    wanted = {
        name: (name, "F32", array.shape, hashlib.sha256(array.tobytes()).hexdigest()) for name, array in arrays.items()
    }
    assert weights.lines() == wanted


def test_reading_that_stops_halfway_does_not_spoil_the_hash() -> None:
    array = np.arange(6, dtype=np.float32)
    weights = HashedWeights(ArrayWeights({"t": array}))
    next(iter(weights.read("t")))
    assert b"".join(weights.read("t")) == array.tobytes()
    assert weights.lines()["t"][3] == hashlib.sha256(array.tobytes()).hexdigest()


def test_a_tensor_of_two_dtypes_is_refused() -> None:
    inner = ArrayWeights({"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)})
    inner.tensors["b"] = TensorType("BF16", (2,))
    parts = (Rows("a", 0, 2), Rows("b", 0, 2))
    with raises_code(CheckpointError, "weights_mismatch", "a, b"):
        AssembledWeights(inner, {"t": Assembly((4,), parts)})


def test_an_assembly_lists_the_tensors_made_from_each_source() -> None:
    inner = ArrayWeights({"a": np.zeros(4, np.float32), "b": np.zeros(2, np.float32)})
    made = {"first": Assembly((2,), (Rows("a", 0, 2),)), "both": Assembly((4,), (Rows("a", 2, 2), Rows("b", 0, 2)))}
    assert AssembledWeights(inner, made).uses() == {"a": ("first", "both"), "b": ("both",)}


def test_every_dtype_of_a_file_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    bits = torch.arange(1, 65, dtype=torch.uint8)
    tensors = {name: bits.clone().view(dtype).reshape(2, -1) for name, dtype in TORCH_TYPES.items() if name != "BOOL"}
    tensors |= {"scalar": torch.tensor(1.5), "none": torch.zeros(0, 3), "BOOL": torch.tensor([True, False])}
    save_file(tensors, tmp_path / "model.safetensors")
    weights = open_weights(tmp_path)
    assert TORCH_TYPES.keys() == ITEM_BYTES.keys()
    assert weights.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        loaded = load_tensor(weights, name)
        assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape), name
        assert loaded.reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8)), name


def test_renamed_weights_are_the_same_by_another_name() -> None:
    inner = ArrayWeights({"vlm.a": np.arange(3, dtype=np.float32), "sam.a": np.zeros(1, np.float32)})
    part = RenamedWeights(inner, {"a": "vlm.a"})
    assert part.tensors == {"a": TensorType("F32", (3,))}
    np.testing.assert_array_equal(rows_of(part, "a", 1), [1, 2])


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with raises_code(CheckpointError, "no_weights"):
        open_weights(tmp_path)
