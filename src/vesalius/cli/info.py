"""Show architecture, size, threshold and provenance of a model."""

from __future__ import annotations

import argparse

from vesalius.cli.arguments import Result, add_model


def add_arguments(verb: argparse.ArgumentParser) -> None:
    add_model(verb)


def run(args: argparse.Namespace) -> Result:
    """Print the facts of the model and return them."""
    from vesalius.models.info import describe, summarize

    facts = describe(args.model)
    for line in summarize(facts):
        print(line)
    return facts
