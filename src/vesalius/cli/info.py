"""Show architecture, size, threshold and provenance of a model."""

from __future__ import annotations

import argparse

from vesalius.cli.arguments import MODEL, Result


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument(
        "--all", action="store_true", help="show the settings of all trainings of the model's ancestry"
    )


def run(args: argparse.Namespace) -> Result:
    """Print the description of the model and return it."""
    from vesalius.models.info import describe, summarize

    facts = describe(args.model)
    for line in summarize(facts, vars(args).get("all", False)):
        print(line)
    return facts
