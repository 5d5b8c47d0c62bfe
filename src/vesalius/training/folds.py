"""Cross-validation: one run for each fold, one after the other, into one folder that opens as an ensemble."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.errors import OutputError, SettingError
from vesalius.evaluation.metrics import METRICS
from vesalius.files import check_new, prepare_folder, write_json
from vesalius.models.reference import FOLDS
from vesalius.training.early_stopping import best_line
from vesalius.training.run import find_changes, resume, train
from vesalius.training.run_folder import RunFolder
from vesalius.training.runs import list_runs
from vesalius.training.settings import RunSettings

TRAINING_PART = re.compile(r"annotations\.(fold(\d+))\.train\.json")

Display = Callable[[RunSettings, str], AbstractContextManager[dict[str, Any]]]
"""Opens the display of one fold, given its settings and name: `on_note`, `on_step` and `on_validation` of `train`."""


def train_folds(settings: RunSettings, parts: Path, display: Display) -> dict[str, Any]:
    """Train a run on each fold of `vesalius split --folds`; returns the validation scores and their mean and spread.

    The runs are `settings.out`/fold1 and so on, with the data of the fold in place of `data.train` and `data.val`.
    A finished run is skipped, an unfinished one is continued, so the same call continues a stopped series. The result
    is also written to `folds.json`. Raises SettingError if `parts` has no folds, OutputError if `settings.out` has
    other content, and errors as `train` and `resume` do.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingError(
            "--folds trains in one process; start one run per fold to train in several", code="not_supported"
        )
    names = find_folds(parts)
    _take(settings.out, names)
    runs = {name: _of_fold(settings, parts, name) for name in names}
    try:
        for name, fold in runs.items():
            with display(fold, name) as reports:
                _train_one(fold, name, reports)
    finally:
        if not any(fold.out.exists() for fold in runs.values()):  # refused before anything was trained
            (settings.out / FOLDS).unlink(missing_ok=True)
    metric = settings.validate_.metric
    values = {name: _best(fold, metric) for name, fold in runs.items()}
    known = [value for value in values.values() if value is not None]
    result = {
        "folds": names,
        "data": str(parts),
        "metric": metric,
        "values": values,
        "mean": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }
    write_json(settings.out / FOLDS, result)
    return result


def summarize(result: Mapping[str, Any]) -> str:
    """The result of `train_folds` in one line."""
    each = ", ".join(f"{name} {_text(value)}" for name, value in result["values"].items())
    title = METRICS[result["metric"]].title
    return f"{title} on the validation parts: mean {_text(result['mean'])}, standard deviation {_text(result['sd'])} ({each})"


def find_folds(parts: Path) -> list[str]:
    """Names of the folds in a folder of `vesalius split --folds`, such as fold1; SettingError if it has none."""
    numbers = {
        int(match[2]): match[1]
        for path in (parts.iterdir() if parts.is_dir() else ())
        if (match := TRAINING_PART.fullmatch(path.name)) and _part(parts, match[1], "val").is_file()
    }
    if len(numbers) < 2:
        raise SettingError.at(
            parts,
            "has no folds, that is, annotations.fold1.train.json, annotations.fold1.val.json and so on; make them with "
            "vesalius split DATA OUT --folds 5",
            code="no_folds",
            field="folds",
        )
    return [numbers[number] for number in sorted(numbers)]


def _part(parts: Path, fold: str, part: str) -> Path:
    return parts / f"annotations.{fold}.{part}.json"


def _of_fold(settings: RunSettings, parts: Path, name: str) -> RunSettings:
    data = settings.data.changed(train=_part(parts, name, "train"), val=_part(parts, name, "val"))
    return settings.changed(data=data, out=settings.out / name)


def _take(out: Path, names: list[str]) -> None:
    """Create the folder of all runs; OutputError if it has anything but the runs of the same folds."""
    record = out / FOLDS
    if not record.exists():
        check_new(out, "choose another `out`")
        write_json(prepare_folder(out) / FOLDS, {"folds": names})
    elif json.loads(record.read_text(encoding="utf-8"))["folds"] != names:
        raise OutputError.at(out, "has the runs of other folds; choose another `out`", code="output_exists")


def _train_one(fold: RunSettings, name: str, reports: dict[str, Any]) -> None:
    if not (fold.out / "last").exists():
        train(fold, **reports)
    elif not find_changes(fold, RunFolder(fold.out)) and _is_finished(fold.out):
        reports["on_note"](f"{name}: is finished")
    else:
        resume(fold, **reports)


def _is_finished(run: Path) -> bool:
    """Whether the run has reached its end, and its last step is saved and validated."""
    (listed,), state = list_runs(run), RunFolder(run).read_state()
    return listed.state in ("finished", "stopped early") and state.step == state.validated_step == listed.step


def _best(fold: RunSettings, metric: str) -> float | None:
    folder = RunFolder(fold.out)
    best = best_line(folder.lines(folder.validation), metric)
    return None if best is None else best[metric]


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"
