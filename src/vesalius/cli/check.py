"""Find errors in a dataset before training on it."""

from __future__ import annotations

import argparse
from pathlib import Path

from vesalius.cli.arguments import DATA, Result, add_dataset_options, add_num_workers, add_window, given
from vesalius.progress import Progress


def add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("data", type=Path, metavar="DATA", help=DATA)
    add_dataset_options(command)
    add_window(command, "default: auto")
    add_num_workers(command, "read images")
    add(
        "--report",
        type=Path,
        metavar="DIR",
        help="write check.html with pictures of the findings, findings.json and augmented.png to DIR",
    )
    add(
        "--fix",
        type=Path,
        metavar="OUT",
        help="write a corrected copy to OUT: masks of another size are rescaled, objects with the same phrase merged, "
        "coordinates outside the image clipped, and all other faulty annotations dropped; fixes.json lists all "
        "changes. Exit code 1 then means that the copy still has errors",
    )


def run(args: argparse.Namespace) -> Result:
    """Inspect the dataset; `failed` is the number of errors in it, or in the corrected copy with --fix."""
    from vesalius.checks import fixes, report_page
    from vesalius.checks.inspection import inspect
    from vesalius.checks.terminal_report import as_json, summarize

    if "report" in args:
        report_page.check_folder(args.report, args.data)
    if "fix" in args:
        fixes.check_folder(args.fix, args.data)
    with Progress(None, "check") as progress:
        options = given(args, "split prompt group window num_workers")
        report = inspect(args.data, **options, on_progress=progress.reach_of)
    for line in summarize(report, every=args.verbose):
        print(line)
    result = as_json(report)
    workers = given(args, "num_workers")
    if "report" in args:
        with Progress(1.0, "report", unit=None) as progress:
            page = report_page.write_page(report, args.report, **workers, on_progress=progress.reach)
        print(f"report: {page}")
    if "fix" not in args:
        return result
    with Progress(1.0, "fix", unit=None) as progress:
        fixed = fixes.write_fixed(report, args.fix, **workers, on_progress=progress.reach)
    done = ", ".join(f"{n} {action}" for action, n in fixed.counts.items())
    print(f"{args.fix}: {done}; listed in fixes.json")
    print(f"errors: {result['failed']} in {args.data}, {fixed.errors} in {args.fix}")
    return result | {"out": str(args.fix), "fixes": fixed.counts, "failed": fixed.errors}
