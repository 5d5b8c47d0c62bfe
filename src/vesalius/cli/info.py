"""Show architecture, size, threshold and provenance of a model."""

from __future__ import annotations

import argparse

from vesalius.cli.arguments import MODEL, Result


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help=MODEL)


def run(args: argparse.Namespace) -> Result:
    """Print the facts of the model and return them."""
    from vesalius.models.info import describe, summarize

    facts = describe(args.model)
    for line in summarize(facts):
        print(line)
    return facts
