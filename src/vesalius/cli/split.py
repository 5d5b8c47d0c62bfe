"""Split a dataset by patient or sequence into training, validation and test sets, or into folds."""

from __future__ import annotations

import argparse
from pathlib import Path

from vesalius.cli.arguments import DATA, OUT, Result, add_dataset_options, given
from vesalius.progress import Progress


def add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("data", type=Path, metavar="DATA", help=DATA)
    add("out", type=Path, metavar="OUT", help=OUT)
    parts = command.add_mutually_exclusive_group(required=True)
    parts.add_argument(
        "--fractions",
        type=float,
        nargs="+",
        metavar="F",
        help="fractions of the images that sum to 1: TRAIN VAL TEST, or TRAIN VAL",
    )
    parts.add_argument(
        "--folds", type=int, metavar="K", help="K folds for cross-validation: fold1.train, fold1.val, ..."
    )
    add("--seed", type=int, default=0, help="random seed, used to break ties")
    add_dataset_options(command)


def run(args: argparse.Namespace) -> Result:
    """Write the splits; returns their sizes and groups."""
    from vesalius.curation.splits import split_dataset, summarize
    from vesalius.data.dataset import open_dataset

    dataset = open_dataset(args.data, **given(args, "split prompt group"))
    with Progress(len(dataset.samples), "split") as progress:
        options = given(args, "fractions folds seed group")
        result = split_dataset(dataset, args.out, **options, on_progress=progress.reach)
    for line in summarize(result):
        print(line)
    print(f"written: {args.out}; open a part with --split NAME")
    print(f"next: vesalius init {args.out} --out recipe.yaml")
    return result
