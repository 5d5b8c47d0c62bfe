"""List training runs with progress, scores and the settings that differ between them."""

from __future__ import annotations

import argparse
from pathlib import Path

from vesalius.cli.arguments import Result


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, metavar="DIR", help="run folder, or a folder of runs")


def run(args: argparse.Namespace) -> Result:
    """Print a table of the runs and return it."""
    from vesalius.training.runs import as_json, list_runs, tabulate

    found = list_runs(args.folder)
    for line in tabulate(found):
        print(line)
    return as_json(found)
