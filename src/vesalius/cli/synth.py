"""Generate a synthetic dataset of angiograms or fundus photographs with exact masks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from vesalius.cli.arguments import OUT, Result, add_num_workers, add_overwrite, defaults_of, given
from vesalius.progress import Progress


def add_arguments(command: argparse.ArgumentParser) -> None:
    from vesalius.synth.series import Kind, Phrases, write_dataset

    add = command.add_argument
    default = defaults_of(write_dataset)
    add("out", type=Path, metavar="OUT", help=OUT)
    add("--n", type=int, default=48, help="number of images or clips")
    add("--frames", type=int, default=default["frames"], help="frames per clip; 1: still images")
    add("--seed", type=int, default=default["seed"], help="random seed")
    add("--size", type=int, default=default["size"], help="height and width in pixels")
    add("--kind", choices=get_args(Kind), default=default["kind"], help="image type; mixed: alternating")
    add(
        "--phrases",
        choices=get_args(Phrases),
        default=default["phrases"],
        help="all: adds phrases that need language understanding, such as 'the widest vessel' or 'stenosis'",
    )
    add_overwrite(command)
    add_num_workers(command, "generate images")


def run(args: argparse.Namespace) -> Result:
    """Write the dataset; returns the counts of images, masks and absent phrases."""
    from vesalius.synth import write_dataset

    settings = given(args, "seed size frames kind phrases")
    with Progress(args.n * args.frames, "synth") as progress:
        written = write_dataset(
            args.out, args.n, **settings, **given(args, "num_workers overwrite"), on_progress=progress.reach
        )
    if written.already_done:
        print(f"already done: {args.out} has the dataset of this command; --overwrite makes it again")
    absent = f", {written.absent} absent phrases" if written.absent else ""
    print(f"{args.out}: {written.images} images, {written.masks} masks{absent}")
    return {"out": str(args.out), "n": args.n, **settings, **vars(written)}
