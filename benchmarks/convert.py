"""Time and memory of a conversion, compared with a plain copy of the same bytes.

    .venv/bin/python benchmarks/convert.py [--gigabytes 16] [--folder DIR] [--json FILE]

The benchmark writes an official folder with the tensors of Sa2VA-8B in bfloat16, with as many layers as the size needs, in
shards of 4 GB; copies it and converts it to a bundle; copies the bundle and converts it back. Each step starts with a cold
page cache if the system permits it, ends with fsync, and runs in a process of its own; another process samples its
anonymous memory. The time includes importing torch. Three times the size is needed on disk. Limits: twice the time of the
copy; 1.5 GB plus the largest tensor; 2 s to open a small model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

BLOCK_BYTES = 8 << 20
SHARD_BYTES = 4 * 10**9
MOST_TIMES_THE_COPY = 2.0
MOST_BYTES = 1.5e9
"""Limit of anonymous memory in bytes, excluding the largest tensor."""
MOST_OPENING_S = 2.0


def make(folder: Path, gigabytes: float) -> None:
    """Write an official folder of at least this size (and at least one layer: about 3 GB)."""
    from vesalius.models.families.base import pick
    from vesalius.models.families.internvl import TEXT_FIELDS
    from vesalius.models.families.tokenizers import byte_tokenizer
    from vesalius.models.layout_mapping import to_official
    from vesalius.models.presets import find_spec
    from vesalius.models.stored_model import expected_shapes
    from vesalius.tensorfiles import TensorType, write_shards

    def shapes(layers: int) -> dict[str, TensorType]:
        spec.vlm["text_config"]["num_hidden_layers"] = layers
        official = to_official(spec, expected_shapes(spec))
        return {name: TensorType("BF16", assembly.shape) for name, assembly in official.items()}

    spec = find_spec("Sa2VA-8B")
    one, two = (sum(tensor.n_bytes for tensor in shapes(layers).values()) for layers in (1, 2))
    tensors = shapes(max(1, 1 + math.ceil((gigabytes * 1e9 - one) / (two - one))))
    # with the highest exponent bit cleared there is neither NaN nor infinity
    noise = (np.random.default_rng(0).integers(0, 1 << 16, BLOCK_BYTES // 2, np.uint16) & 0xBFFF).tobytes()

    def read(name: str) -> Iterator[bytes]:
        left = tensors[name].n_bytes
        while left:
            yield noise[: min(left, BLOCK_BYTES)]
            left -= min(left, BLOCK_BYTES)

    folder.mkdir()
    write_shards(folder, tensors, read, shard_bytes=SHARD_BYTES)
    text = spec.text
    config = {
        "model_type": "sa2va_chat",
        "template": spec.prompt.chat,
        "vision_config": {
            **spec.vlm["vision_config"],
            "image_size": 448,
            "patch_size": 14,
            "qkv_bias": True,
            "qk_normalization": False,
        },
        "llm_config": {
            "architectures": ["InternLM2ForCausalLM"],
            **pick(text, TEXT_FIELDS),
            "rope_theta": text["rope_parameters"]["rope_theta"],
            "rope_scaling": {"type": "dynamic", "factor": text["rope_parameters"]["factor"]},
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(folder)


def copy(source: Path, target: Path) -> None:
    """Copy all files in blocks, with fsync."""
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        copied = target / path.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb", buffering=0) as file, copied.open("xb") as out:
            while block := file.read(BLOCK_BYTES):
                out.write(block)
            out.flush()
            os.fsync(out.fileno())


def convert(source: Path, target: Path, to: str) -> None:
    """Convert as the command line does, and exit."""
    from vesalius.cli import main

    sys.exit(main(["convert", str(source), str(target), "--to", to, "--json"]))


def forget(folder: Path) -> None:
    """Drop the folder's files from the page cache, or the whole page cache if the system permits it."""
    for path in folder.rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("1")


def measure(step: str, source: Path, target: Path) -> dict[str, Any]:
    """Seconds and peak anonymous memory of a step, run in its own process."""
    forget(source)
    started = time.perf_counter()
    command = [sys.executable, __file__, "--step", step, str(source), str(target)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while child.poll() is None:
        peak = max(peak, anonymous_bytes(child.pid))
        time.sleep(0.01)
    took_s = time.perf_counter() - started
    if child.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return {"step": step, "took_s": took_s, "peak_anonymous_bytes": peak}


def anonymous_bytes(process: int) -> int:
    """RssAnon, without memory-mapped file pages; 0 if the process has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    return 0


def opening_s(model: str) -> float:
    """Seconds to open a model in this process, with all imports done."""
    from vesalius.models.checkpoint import open_model

    started = time.perf_counter()
    open_model(model)
    return time.perf_counter() - started


def measure_all(folder: Path, gigabytes: float) -> dict[str, Any]:
    """Measure all steps on one model, a copy before each conversion, and compare with the limits."""
    from vesalius.models.weights import open_weights

    official, bundle, back = folder / "official", folder / "bundle", folder / "back"
    make(official, gigabytes)
    sizes = [tensor.n_bytes for tensor in open_weights(official).tensors.values()]
    most_bytes = MOST_BYTES + max(sizes)
    rows = []
    for to, source, target in (("vesalius", official, bundle), ("sa2va", bundle, back)):
        rows += [measure("copy", source, folder / "copy")]
        shutil.rmtree(folder / "copy")
        rows += [measure(to, source, target)]
    for row, plain in zip(rows, (rows[0], rows[0], rows[2], rows[2]), strict=True):
        row["times_the_copy"] = row["took_s"] / plain["took_s"]
        row["gb_per_s"] = sum(sizes) / 1e9 / row["took_s"]
        quick, small = row["times_the_copy"] <= MOST_TIMES_THE_COPY, row["peak_anonymous_bytes"] <= most_bytes
        row["within_limits"] = quick and small
    return {"bytes": sum(sizes), "tensors": len(sizes), "largest_tensor_bytes": max(sizes), "rows": rows}


def main() -> None:
    """Make the model, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=16)
    parser.add_argument("--folder", type=Path, help="folder for the models (default: the temporary folder)")
    parser.add_argument("--open", nargs="*", default=["tiny"], metavar="MODEL", help="small models to open")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", nargs=3, metavar=("WHAT", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        what, source, target = args.step
        if what == "copy":
            copy(Path(source), Path(target))
        else:
            convert(Path(source), Path(target), what)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        free, needed = shutil.disk_usage(folder).free, 3.2e9 * max(args.gigabytes, 3)
        if free < needed:
            sys.exit(f"{folder}: {needed / 1e9:.0f} GB are needed and {free / 1e9:.0f} GB are free")
        found = measure_all(Path(folder), args.gigabytes)
    print(f"{found['bytes'] / 1e9:.1f} GB, largest tensor {found['largest_tensor_bytes'] / 1e6:.0f} MB")
    print(f"{'to':>10}{'s':>10}{'GB/s':>8}{'x copy':>8}{'peak MB':>10}  within limits")
    for row in found["rows"]:
        print(
            f"{row['step']:>10}{row['took_s']:10.1f}{row['gb_per_s']:8.2f}{row['times_the_copy']:8.2f}"
            f"{row['peak_anonymous_bytes'] / 1e6:10.0f}  {'yes' if row['within_limits'] else 'NO'}"
        )
    found["opening_s"] = {Path(model).name: opening_s(model) for model in args.open}
    for name, took_s in found["opening_s"].items():
        print(f"opening {name}: {took_s:.2f} s{'' if took_s < MOST_OPENING_S else ', over the limit'}")
    if args.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        args.json.write_text(json.dumps({"machine": machine, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
