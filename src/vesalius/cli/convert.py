"""Convert a model between the official Sa2VA layout and a bundle, and verify that all tensors are identical."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from vesalius.cli.arguments import OUT, Result, given
from vesalius.progress import Progress


def add_arguments(command: argparse.ArgumentParser) -> None:
    from vesalius.models.reference import Layout

    add = command.add_argument
    add("source", metavar="SOURCE", help="official Sa2VA folder, bundle, or training checkpoint (.pth)")
    add("out", type=Path, metavar="OUT", help=OUT)
    add("--to", choices=get_args(Layout), default="vesalius", help="layout to write: a bundle, or the official layout")
    add(
        "--base", metavar="MODEL", help="base model of a .pth; for any other source, a model whose weights are compared"
    )
    add("--keep-adapter", action="store_true", help="keep the LoRA adapter separate, unmerged")
    add("--lora-alpha", type=float, metavar="A", help="LoRA alpha, if the .pth does not contain it")


def run(args: argparse.Namespace) -> Result:
    """Write the converted model and conversion.json; returns the proof in it."""
    from vesalius.conversion.convert import convert
    from vesalius.conversion.proof import summarize
    from vesalius.models.cpu_allocator import keep_freed_memory

    keep_freed_memory()
    with Progress(1.0, "convert", unit=None) as progress:
        proof = convert(
            args.source,
            args.out,
            **given(args, "to base keep_adapter lora_alpha"),
            on_bytes=lambda done, total: progress.reach(done / total, f"{done / 1e9:.1f} of {total / 1e9:.1f} GB"),
        )
    for line in summarize(proof):
        print(line)
    return proof
