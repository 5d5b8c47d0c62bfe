"""What was written, read again from the disk: each file while the next one is written."""

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


class Rereading:
    """Hashes of a result's tensors under their canonical names; use as a context manager.

    `assemblies` tell how canonical tensors are made of those in the files; without them the files hold them as they are.
    """

    def __init__(self, assemblies: Mapping[str, Assembly] | None, on_bytes: Report) -> None:
        self._assemblies = assemblies
        self._waiting = dict(assemblies or {})
        self._places: dict[str, TensorLocation] = {}
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
        """Start to read a file that is complete, and whose tensors have this prefix before their names."""
        places = {prefix + name: place for name, place in read_header(path).items()}
        self._places |= places
        weights: Weights = FileWeights(places)
        if self._assemblies is not None:
            ready = {
                name: assembly
                for name, assembly in self._waiting.items()
                if all(rows.source in self._places for rows in assembly.rows)
            }
            self._waiting = {name: each for name, each in self._waiting.items() if name not in ready}
            weights = AssembledWeights(FileWeights(dict(self._places)), ready)
        for name, tensor in weights.tensors.items():
            self._hashed.append(self._threads.submit(hash_tensor, name, tensor, self._read(weights, name)))

    def _read(self, weights: Weights, name: str) -> Iterator[Block]:
        for block in weights.read(name):
            if self._stopped:
                return
            yield block
            self._on_bytes(len(block))

    def lines(self) -> dict[str, TensorHash]:
        """Each tensor that could be made of the files; CheckpointError where one cannot be read again."""
        return {line[0]: line for line in (hashed.result() for hashed in self._hashed)}
