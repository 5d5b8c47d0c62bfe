"""Convert a model to the other layout block by block, and prove that the result equals the source.

The result is written under a temporary name, read back from disk file by file, compared with the source, and renamed
last.
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
from vesalius.conversion.parity import forward_parity
from vesalius.conversion.prepare import Conversion, open_tokenizer, prepare
from vesalius.conversion.proof import compare, describe, describe_training
from vesalius.conversion.verification import Verification
from vesalius.errors import CheckpointError, OutputError
from vesalius.files import check_new, replacing, write_json
from vesalius.lineage import TensorHash, fingerprint_hashes, locate_bundle_tensors, versions
from vesalius.models.adapter import TENSORS as ADAPTER_TENSORS
from vesalius.models.cards import ADAPTER, CARD, SOURCE, Card
from vesalius.models.config_files import PROOF
from vesalius.models.layout_mapping import Assembly, to_bundle
from vesalius.models.reference import Layout, resolve_model
from vesalius.models.stored_model import empty_model, hash_model, open_stored, remember_model, shapes_of
from vesalius.models.tensor_differences import SHOWN
from vesalius.models.weights import TORCH_TYPES, FileWeights, RenamedWeights, Weights
from vesalius.tensorfiles import Report, TensorType, write_shards, write_tensors

MARGIN_BYTES = 64 << 20
"""Disk space reserved for headers, configurations, tokenizer and proof."""

OnBytes = Callable[[int, int], None]
"""Progress callback: bytes done and total; each byte is written once and read back once."""


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
    """Write the model `source` to the new folder `out` in the layout `to`, and return the proof (`conversion.json`).

    `base` is the model that a training checkpoint was trained from. The result is compared with `base`, and a bundle
    without `source/` takes the configuration files of the official layout from it. CheckpointError if the source is
    damaged, unknown or contradicts its configuration, or if the result does not equal it; SettingError for conflicting
    arguments; OutputError if the disk is full. After an error `out` does not exist.
    """
    started = time.perf_counter()
    _check_target(out, source)
    base_ref = None if base is None else resolve_model(base)
    conversion = prepare(source, to, base_ref, keep_adapter, lora_alpha)
    _check_free_space(out, conversion)
    before = None if base_ref is None else hash_model(base_ref)
    progress = _Progress(2 * conversion.n_weight_bytes, on_bytes)
    with replacing(out) as folder, Verification(_assemblies(conversion), progress.add) as verification:
        _write(conversion, folder, progress.add, verification)
        read, written = conversion.canonical.lines(), verification.hashes()
        _check_equal(read, written, _tensors_of(to, folder), out)
        fingerprints = {"source": fingerprint_hashes(read), "result": fingerprint_hashes(written)}
        if to == "vesalius":
            _write_card(conversion, folder, str(source), fingerprints["result"])
        proof = {
            "source": str(source),
            "result": str(out),
            "to": to,
            **describe(conversion),
            "training": None if conversion.training is None else describe_training(conversion.training),
            "base": None if before is None else {"model": str(base), **compare(before, written)},
            "fingerprints": fingerprints,
            "parity": _parity(conversion, folder),
            "took_s": round(time.perf_counter() - started, 3),
            "versions": versions(),
        }
        write_json(folder / PROOF, proof)
    remember_model(out, written)
    return proof


def _check_target(out: Path, source: str | Path) -> None:
    check_new(out)
    if Path(source).is_dir() and out.resolve().is_relative_to(Path(source).resolve()):
        raise OutputError.at(out, "lies inside the source model; choose another folder", code="output_inside_data")


def _check_free_space(out: Path, conversion: Conversion) -> None:
    parent = next(folder for folder in out.absolute().parents if folder.is_dir())
    free, needed = shutil.disk_usage(parent).free, conversion.n_bytes + MARGIN_BYTES
    if free < needed:
        raise OutputError.at(
            out,
            f"{needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free; free some space or choose "
            "another disk",
            code="no_space",
        )


class _Progress:
    """Thread-safe counter of bytes done."""

    def __init__(self, total: int, on_bytes: OnBytes | None) -> None:
        self._total, self._on_bytes = total, on_bytes
        self._done = 0
        self._lock = threading.Lock()

    def add(self, n_bytes: int) -> None:
        with self._lock:
            self._done += n_bytes
            if self._on_bytes is not None:
                self._on_bytes(min(self._done, self._total), self._total)


def _assemblies(conversion: Conversion) -> dict[str, Assembly] | None:
    """Canonical tensor -> rows of the written tensors; None for a bundle, which stores canonical tensors."""
    return None if conversion.to == "vesalius" else to_bundle(conversion.model.spec, shapes_of(conversion.outgoing))[0]


def _write(conversion: Conversion, folder: Path, on_bytes: Report, verification: Verification) -> None:
    """Write all files except card and proof; the configuration files first, as they are the most likely to fail."""
    folder.mkdir(parents=True)
    if conversion.to == "sa2va":
        conversion.config_files.copy_to(folder)
        write_shards(
            folder, conversion.outgoing.tensors, conversion.outgoing.read, on_bytes=on_bytes, on_file=verification.add
        )
        return
    conversion.config_files.copy_to(folder / SOURCE)
    components = {name: _component(conversion.canonical, name) for name in ("vlm", "sam", "projector")}
    _write_configs(conversion, folder, vlm=_main_dtype(components["vlm"]), sam=_main_dtype(components["sam"]))
    for name in ("vlm", "sam"):
        add, weights = partial(verification.add, prefix=f"{name}."), components[name]
        write_shards(folder / name, weights.tensors, weights.read, on_bytes=on_bytes, on_file=add)
    path, projector = folder / "projector.safetensors", components["projector"]
    write_tensors(path, projector.tensors, projector.read, on_bytes=on_bytes)
    verification.add(path, prefix="projector.")
    if conversion.training is not None and conversion.training.keeps_adapter:
        assert conversion.training.alpha is not None
        checkpoint, alpha = conversion.training.checkpoint, conversion.training.alpha.value
        write_adapter(folder / ADAPTER, checkpoint, conversion.model.spec, alpha)
        verification.add(folder / ADAPTER / ADAPTER_TENSORS, prefix=f"{ADAPTER}.")


def _component(weights: Weights, component: str) -> RenamedWeights:
    prefix = f"{component}."
    names = (name for name in weights.tensors if name.startswith(prefix))
    return RenamedWeights(weights, {name.removeprefix(prefix): name for name in names})


def _main_dtype(weights: Weights) -> torch.dtype:
    """Dtype of most of the bytes, for the configuration; each tensor keeps its own dtype."""
    counts: Counter[str] = Counter()
    for tensor in weights.tensors.values():
        counts[tensor.dtype] += tensor.n_bytes
    return TORCH_TYPES[counts.most_common(1)[0][0]]


def _write_configs(conversion: Conversion, folder: Path, **dtypes: torch.dtype) -> None:
    """Write the transformers configuration of each component, and the tokenizer."""
    empty = empty_model(conversion.model.spec)
    for name, component in (("vlm", empty.vlm), ("sam", empty.sam)):
        component.config.architectures = [type(component).__name__]
        component.config.dtype = dtypes[name]
        component.config.save_pretrained(folder / name)
    tokenizer = open_tokenizer(conversion.model)
    try:
        tokenizer.save_pretrained(folder / "vlm")
    except Exception as error:  # the tokenizers library raises a bare Exception for a full disk
        reason = " ".join(str(error).split())
        raise OutputError.at(folder, f"the tokenizer cannot be written ({reason})", code="write_failed") from error


def _write_card(conversion: Conversion, folder: Path, source: str, fingerprint: str) -> None:
    step = None if conversion.training is None else conversion.training.checkpoint.step
    lineage = {"converted_from": source, "fingerprint": fingerprint}
    card = Card(
        spec=conversion.model.spec,
        step=step,
        lineage=lineage,
        training_images=None,
        adapter=conversion.training is not None and conversion.training.keeps_adapter,
        versions=versions(),
    )
    write_json(folder / CARD, card.model_dump(mode="json"))


def _parity(conversion: Conversion, folder: Path) -> dict[str, Any]:
    if conversion.training is not None:
        return {"skipped": "a training checkpoint cannot be opened without its base"}
    n_parameters = sum(math.prod(tensor.shape) for tensor in conversion.canonical.tensors.values())
    return forward_parity(conversion.model.folder, folder, n_parameters)


def _tensors_of(layout: Layout, folder: Path) -> Mapping[str, TensorType]:
    """Canonical name -> dtype and shape of each tensor in the finished folder."""
    weights = FileWeights(locate_bundle_tensors(folder)) if layout == "vesalius" else open_stored(folder).weights
    return weights.tensors


def _check_equal(
    read: Mapping[str, TensorHash], written: Mapping[str, TensorHash], held: Mapping[str, TensorType], out: Path
) -> None:
    """Raise CheckpointError unless the tensors read, those written and those of the finished folder are equal.

    An adapter is not compared, because the source stores it in another form.
    """
    names = {name for name in written if not name.startswith(f"{ADAPTER}.")} | read.keys()
    wrong = {name for name in names if read.get(name) != written.get(name)}
    types = {name: TensorType(*line[1:3]) for name, line in written.items()}
    wrong |= {name for name in types.keys() | held.keys() if types.get(name) != held.get(name)}
    if wrong:
        raise CheckpointError.at(
            out,
            f"was discarded, because {len(wrong)} tensors on disk differ from the source: "
            f"{', '.join(sorted(wrong)[:SHOWN])}; check the disk, and whether copies of one tensor differ in the source",
            code="verification_failed",
            field=min(wrong),
        )
