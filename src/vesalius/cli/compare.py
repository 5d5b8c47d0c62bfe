"""Compare evaluations of the same samples with paired statistical tests."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vesalius.cli.arguments import OUT, Result


def add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "evaluations",
        type=Path,
        metavar="EVALUATION",
        nargs="+",
        help="folders written by `evaluate`; the first one is the reference",
    )
    add("--out", type=Path, required=True, help=OUT)
    add("--metric", action="append", metavar="NAME", help="metric to compare; may be repeated; default: all")


def run(args: argparse.Namespace) -> Result:
    """Write the comparison; `failed` is the number of samples without a score in at least one evaluation."""
    from vesalius.scoring.compare import compare, summarize

    result = compare(args.evaluations, args.out, only=vars(args).get("metric", ()))
    for line in summarize(result):
        print(line)
    for row in result["failed_rows"]:
        print(f"failed: {row['id']} ({row['prompt']}) in {', '.join(row['errors'])}", file=sys.stderr)
    print(f"report: {args.out / 'report.html'}")
    return {**result, "failed": result["coverage"]["failed"]}
