"""Convert annotation exports, DICOM files and videos into one dataset, optionally pseudonymized."""

from __future__ import annotations

import argparse
from pathlib import Path

from vesalius.cli.arguments import DATA, OUT, Result, add_dataset_options, add_overwrite, add_window, defaults_of, given
from vesalius.progress import Progress


def add_arguments(command: argparse.ArgumentParser) -> None:
    from vesalius.curation.importing import import_dataset
    from vesalius.data.writers.formats import WRITERS

    add = command.add_argument
    default = defaults_of(import_dataset)
    add("source", type=Path, metavar="SOURCE", help=f"{DATA}, or images without annotations")
    add("out", type=Path, metavar="OUT", help=OUT)
    add("--to", choices=tuple(WRITERS), default=default["to"], help="annotation format to write")
    add(
        "--pseudonymize",
        action="store_true",
        help="remove names and metadata; the mapping from pseudonyms to originals is written to OUT.key.json, "
        "outside the dataset and readable only by you",
    )
    add(
        "--key",
        type=Path,
        metavar="FILE",
        help="the .key.json of an earlier import: the same patients get the same pseudonyms",
    )
    add_overwrite(command)
    add_dataset_options(command)
    add_window(command, "default: files of more than 8 bits stay as they are")


def run(args: argparse.Namespace) -> Result:
    """Write the dataset; returns its counts and notes."""
    from vesalius.curation.importing import import_dataset

    options = given(args, "to pseudonymize key prompt split group window overwrite")
    with Progress(1.0, "import", unit=None) as progress:
        result = import_dataset(args.source, args.out, **options, on_progress=progress.reach)
    for note in result["notes"]:
        print(note)
    print(f"{args.out}: {result['counts']['images']} images, format {args.to}")
    return result
