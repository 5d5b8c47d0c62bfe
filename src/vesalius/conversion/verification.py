"""Verification: hashes of the written files, read back from disk while the next file is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from vesalius.lineage import TensorHash, hash_tensor
from vesalius.models.layout_mapping import Assembly
from vesalius.models.weights import AssembledWeights, FileWeights, Weights
from vesalius.tensorfiles import Block, Report, TensorLocation, read_header


class Verification:
    """Hashes of the written tensors by canonical name, computed in two threads; a context manager.

    `assemblies` maps canonical tensors to the rows of file tensors that they consist of; None if the files hold
    canonical tensors. `on_bytes` receives the size of each block that is read.
    """

    def __init__(self, assemblies: Mapping[str, Assembly] | None, on_bytes: Report) -> None:
        self._assemblies = assemblies
        self._waiting = dict(assemblies or {})
        self._locations: dict[str, TensorLocation] = {}
        self._hashed: list[Future[TensorHash]] = []
        self._on_bytes = on_bytes
        self._threads = ThreadPoolExecutor(max_workers=2)
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._threads.shutdown(cancel_futures=True)

    def add(self, path: Path, prefix: str = "") -> None:
        """Start hashing a complete file; `prefix` is prepended to the names of its tensors."""
        locations = {prefix + name: location for name, location in read_header(path).items()}
        self._locations |= locations
        weights: Weights = FileWeights(locations)
        if self._assemblies is not None:
            ready = {
                name: assembly
                for name, assembly in self._waiting.items()
                if all(rows.source in self._locations for rows in assembly.rows)
            }
            self._waiting = {name: each for name, each in self._waiting.items() if name not in ready}
            weights = AssembledWeights(FileWeights(dict(self._locations)), ready)
        for name, tensor in weights.tensors.items():
            self._hashed.append(self._threads.submit(hash_tensor, name, tensor, self._read(weights, name)))

    def _read(self, weights: Weights, name: str) -> Iterator[Block]:
        for block in weights.read(name):
            if self._stopped:
                return
            yield block
            self._on_bytes(len(block))

    def hashes(self) -> dict[str, TensorHash]:
        """Hash of each canonical tensor; CheckpointError if a tensor cannot be read back."""
        return {each[0]: each for each in (hashed.result() for hashed in self._hashed)}
