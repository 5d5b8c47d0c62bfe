"""Fine-tune a model with the settings of a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vesalius.cli.arguments import Result, given
from vesalius.cli.parser import change
from vesalius.errors import UsageError
from vesalius.progress import Progress


def add_arguments(command: argparse.ArgumentParser) -> None:
    # default=None: Python 3.11 would pass argparse.SUPPRESS to Path
    add = command.add_argument
    add(
        "recipe",
        type=Path,
        metavar="RECIPE",
        nargs="?",
        default=None,
        help="recipe file, or the name of an included recipe, such as `arcade`",
    )
    add("--set", type=change, metavar="a.b=c", nargs="+", action="extend", help="override settings of the recipe")
    add = command.add_mutually_exclusive_group().add_argument
    add("--resume", type=Path, metavar="RUN", help="continue the run in this folder")
    add(
        "--folds",
        type=Path,
        metavar="DIR",
        help="cross-validation: train on each fold of this output of `split --folds`, one after the other; finished folds "
        "are skipped, and the folder `out` then opens as an ensemble",
    )
    add("--overfit", type=int, metavar="N", help="overfit test: train and validate on the same N samples")
    add(
        "--find-lr",
        type=Path,
        metavar="PNG",
        help="learning rate finder: train briefly with an increasing learning rate, suggest a value and plot the loss; "
        "writes no run folder",
    )


def run(args: argparse.Namespace) -> Result:
    """Start or resume a run, or run the learning rate finder; returns the paths of the run and its best checkpoint.

    A failed overfit test counts as `failed`.
    """
    from vesalius.models.cpu_allocator import keep_freed_memory
    from vesalius.training import run as training
    from vesalius.training.terminal import shown

    folder = vars(args).get("resume")
    if (args.recipe is None) == (folder is None):
        message = "train: expected RECIPE, or --resume RUN to continue a run"
        raise UsageError(message, code="wrong_usage", field="RECIPE")
    keep_freed_memory()
    settings = training.read_run_settings(folder or args.recipe, vars(args).get("set", []))
    if "find_lr" in args:
        return _find_lr(args, settings)
    if "folds" in args:
        return _train_folds(args, settings)
    with shown(settings) as reports:
        if folder is None:
            folder = training.train(settings, **given(args, "overfit"), **reports)
        else:  # the run folder may have been moved since it was written
            training.resume(settings.changed(out=folder), **reports)
    result = {"run": str(folder), "best": str((folder / "best").resolve())}
    passed = training.overfit_test_passed(folder)
    return result if passed is None else {**result, "overfit_test_passed": passed, "failed": int(not passed)}


def _train_folds(args: argparse.Namespace, settings: Any) -> Result:
    from vesalius.training.folds import summarize, train_folds
    from vesalius.training.terminal import shown

    result = train_folds(settings, args.folds, shown)
    print(summarize(result))
    return {"run": str(settings.out), **result}


def _find_lr(args: argparse.Namespace, settings: Any) -> Result:
    from vesalius.training.run import find_lr

    with Progress(1.0, "find-lr", unit=None) as progress:
        found = find_lr(settings, args.find_lr, on_note=print, on_progress=progress.reach)
    return {"picture": str(args.find_lr), **found.as_json()}
