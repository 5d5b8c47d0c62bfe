"""A model from one layout to the other, a block at a time, with proof that nothing was lost on the way.

The result is written aside, read again from the disk file by file, compared with what was read from the source, and only
then gets its name.
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vesalius.conversion.adapter import write_adapter
from vesalius.conversion.job import Conversion, open_tokenizer, prepare
from vesalius.conversion.parity import forward_parity
from vesalius.conversion.proof import compare, describe, describe_training
from vesalius.conversion.verification import Rereading
from vesalius.errors import CheckpointError, OutputError
from vesalius.files import check_new, replacing, write_json
from vesalius.lineage import TensorHash, fingerprint_hashes, locate_bundle_tensors, versions
from vesalius.models.adapter import TENSORS as ADAPTER_TENSORS
from vesalius.models.cards import ADAPTER, CARD, SOURCE, Card
from vesalius.models.config_files import PROOF
from vesalius.models.layout_mapping import Assembly, to_bundle
from vesalius.models.reference import Layout
from vesalius.models.stored_model import (
    SHOWN,
    empty_model,
    hash_model,
    open_stored,
    remember_model,
    shapes_of,
)
from vesalius.models.weights import TORCH_TYPES, FileWeights, RenamedWeights, Weights
from vesalius.tensorfiles import Report, TensorType, write_shards, write_tensors

MARGIN_BYTES = 64 << 20
"""Room for headers, configurations, tokenizer and proof."""

OnBytes = Callable[[int, int], None]
"""Told how many bytes of how many are done: each is written once and read again once."""


def convert(
    source: str | Path,
    out: Path,
    *,
    to: Layout = "vesalius",
    base: str | Path | None = None,
    keep_adapter: bool = False,
    lora_alpha: float | None = None,
    on_bytes: OnBytes | None = None,
) -> dict[str, Any]:
    """Write the model `source` to the new folder `out` in the layout `to`; gives the proof, also in `conversion.json`.

    `base` is the model that a training checkpoint belongs to; any other source is compared with it, and a bundle
    without `source/` takes the small files of the official layout from it.
    CheckpointError where the source is damaged, unknown or not what it says, or where the result is not equal to it;
    SettingError for arguments that do not go together; OutputError where there is no room. Then `out` is absent.
    """
    started = time.perf_counter()
    _check_place(out, source)
    job = prepare(source, to, base, keep_adapter, lora_alpha)
    _check_room(out, job)
    before = None if base is None else hash_model(base)
    progress = _Progress(2 * job.n_weight_bytes, on_bytes)
    with replacing(out) as aside, Rereading(_assemblies(job), progress.add) as again:
        _write(job, aside, progress.add, again)
        read, written = job.canonical.lines(), again.lines()
        _check_equal(read, written, _tensors_of(to, aside), out)
        fingerprints = {"source": fingerprint_hashes(read), "result": fingerprint_hashes(written)}
        if to == "vesalius":
            _write_card(job, aside, str(source), fingerprints["result"])
        proof = {
            "source": str(source),
            "result": str(out),
            "to": to,
            **describe(job),
            "training": None if job.training is None else describe_training(job.training),
            "base": None if before is None else {"model": str(base), **compare(before, written)},
            "fingerprints": fingerprints,
            "parity": _parity(job, aside),
            "took_s": round(time.perf_counter() - started, 3),
            "versions": versions(),
        }
        write_json(aside / PROOF, proof)
    remember_model(out, written)
    return proof


def _check_place(out: Path, source: str | Path) -> None:
    check_new(out)
    if Path(source).is_dir() and out.resolve().is_relative_to(Path(source).resolve()):
        raise OutputError(f"{out}: lies inside the model that is read; choose another folder")


def _check_room(out: Path, job: Conversion) -> None:
    parent = next(folder for folder in out.absolute().parents if folder.is_dir())
    free, needed = shutil.disk_usage(parent).free, job.n_bytes + MARGIN_BYTES
    if free < needed:
        raise OutputError(
            f"{out}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free; make room or choose another disk"
        )


class _Progress:
    """Bytes that are done, counted by several threads."""

    def __init__(self, total: int, on_bytes: OnBytes | None) -> None:
        self._total, self._on_bytes = total, on_bytes
        self._done = 0
        self._lock = threading.Lock()

    def add(self, n_bytes: int) -> None:
        with self._lock:
            self._done += n_bytes
            if self._on_bytes is not None:
                self._on_bytes(min(self._done, self._total), self._total)


def _assemblies(job: Conversion) -> dict[str, Assembly] | None:
    """How the official layout's tensors make up canonical ones, as whoever opens the result will do it."""
    return None if job.to == "vesalius" else to_bundle(job.model.spec, shapes_of(job.outgoing))[0]


def _write(job: Conversion, folder: Path, on_bytes: Report, again: Rereading) -> None:
    """All files but the card and the proof; the small ones first, as they are the most likely to fail."""
    folder.mkdir(parents=True)
    if job.to == "sa2va":
        job.small_files.copy_to(folder)
        write_shards(folder, job.outgoing.tensors, job.outgoing.read, on_bytes=on_bytes, on_file=again.add)
        return
    job.small_files.copy_to(folder / SOURCE)
    parts = {part: _part(job.canonical, part) for part in ("vlm", "sam", "projector")}
    _write_configs(job, folder, vlm=_main_dtype(parts["vlm"]), sam=_main_dtype(parts["sam"]))
    for part in ("vlm", "sam"):
        add = partial(again.add, prefix=f"{part}.")
        write_shards(folder / part, parts[part].tensors, parts[part].read, on_bytes=on_bytes, on_file=add)
    path, projector = folder / "projector.safetensors", parts["projector"]
    write_tensors(path, projector.tensors, projector.read, on_bytes=on_bytes)
    again.add(path, prefix="projector.")
    if job.training is not None and job.training.keeps_adapter:
        assert job.training.alpha is not None
        checkpoint, alpha = job.training.checkpoint, job.training.alpha.value
        write_adapter(folder / ADAPTER, checkpoint, job.model.spec, alpha)
        again.add(folder / ADAPTER / ADAPTER_TENSORS, prefix=f"{ADAPTER}.")


def _part(weights: Weights, part: str) -> RenamedWeights:
    prefix = f"{part}."
    names = (name for name in weights.tensors if name.startswith(prefix))
    return RenamedWeights(weights, {name.removeprefix(prefix): name for name in names})


def _main_dtype(weights: Weights) -> torch.dtype:
    """That of most parameters; what a configuration says does not change the weights."""
    counts: Counter[str] = Counter()
    for tensor in weights.tensors.values():
        counts[tensor.dtype] += tensor.n_bytes
    return TORCH_TYPES[counts.most_common(1)[0][0]]


def _write_configs(job: Conversion, folder: Path, **dtypes: torch.dtype) -> None:
    """What transformers writes beside the weights of each half, and the tokenizer."""
    empty = empty_model(job.model.spec)
    for part, half in (("vlm", empty.vlm), ("sam", empty.sam)):
        half.config.architectures = [type(half).__name__]
        half.config.dtype = dtypes[part]
        half.config.save_pretrained(folder / part)
    tokenizer = open_tokenizer(job.model)
    try:
        tokenizer.save_pretrained(folder / "vlm")
    except Exception as error:  # a full disk is a bare Exception to the tokenizers library
        raise OutputError(f"the tokenizer cannot be written ({' '.join(str(error).split())})") from error


def _write_card(job: Conversion, folder: Path, source: str, fingerprint: str) -> None:
    step = None if job.training is None else job.training.checkpoint.step
    lineage = {"converted_from": source, "fingerprint": fingerprint}
    card = Card(
        spec=job.model.spec,
        step=step,
        lineage=lineage,
        training_images=None,
        adapter=job.training is not None and job.training.keeps_adapter,
        versions=versions(),
    )
    write_json(folder / CARD, card.model_dump(mode="json"))


def _parity(job: Conversion, folder: Path) -> dict[str, Any]:
    if job.training is not None:
        return {"skipped": "a training checkpoint does not open by itself"}
    n_parameters = sum(math.prod(tensor.shape) for tensor in job.canonical.tensors.values())
    return forward_parity(job.model.folder, folder, n_parameters)


def _tensors_of(layout: Layout, folder: Path) -> Mapping[str, TensorType]:
    """What is in the finished folder for whoever opens it, by canonical name."""
    weights = (
        FileWeights(locate_bundle_tensors(folder)) if layout == "vesalius" else open_stored(folder).weights
    )
    return weights.tensors


def _check_equal(
    read: Mapping[str, TensorHash],
    written: Mapping[str, TensorHash],
    held: Mapping[str, TensorType],
    out: Path,
) -> None:
    """Refuse a result that does not hold, on the disk and as a folder, the tensors that were read.

    An adapter is not compared: the source has it in another form.
    """
    names = {name for name in written if not name.startswith(f"{ADAPTER}.")} | read.keys()
    wrong = {name for name in names if read.get(name) != written.get(name)}
    types = {name: TensorType(*line[1:3]) for name, line in written.items()}
    wrong |= {name for name in types.keys() | held.keys() if types.get(name) != held.get(name)}
    if wrong:
        raise CheckpointError(
            f"{out}: was not kept, as {len(wrong)} tensors on the disk are not those of the source: "
            f"{', '.join(sorted(wrong)[:SHOWN])}; check the disk, and whether copies of one tensor differ in the source"
        )
