"""List the runs below a folder: progress, best score, and settings that differ between runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vesalius.errors import OutputError, SettingError
from vesalius.evaluation.metrics import METRICS
from vesalius.files import hold_folder
from vesalius.journal import Entry, read_journal
from vesalius.training.early_stopping import best_line, validations_since_best

CONFIG, LOG, VALIDATION = "config.yaml", "log.jsonl", "validation.jsonl"
IGNORED_SETTINGS = ("out",)
"""Settings that differ between any two runs, so that their comparison is useless."""


@dataclass(frozen=True)
class RunSummary:
    """State, progress and best score of one run."""

    name: str
    """Path of the run folder, relative to the listed folder."""
    state: str
    """`running`, `finished`, `stopped early`, `unfinished` or `damaged`."""
    step: int = 0
    progress: float | None = None
    """Completed fraction of the run; None before the first step."""
    metric: str | None = None
    best: float | None = None
    best_step: int | None = None
    baseline: float | None = None
    """Value of `metric` before the first step; None if it was not measured."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Flattened settings: dotted name, such as `optim.lr`, -> value."""
    problems: tuple[str, ...] = ()
    """Files that could not be read, with the reason."""


def list_runs(folder: Path) -> list[RunSummary]:
    """Summaries of all runs in or below `folder`, sorted by path; a damaged run is listed with its problems.

    Raises SettingError if there is no run.
    """
    if not folder.is_dir():
        raise SettingError.at(folder, "is not a folder; name a folder of runs", code="not_found")
    found = [_summarize(run, folder) for run in sorted(_find(folder))]
    if not found:
        raise SettingError.at(folder, f"contains no run, that is, no folder with {CONFIG} and {LOG}", code="no_run")
    return found


def _find(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        if CONFIG in files and (LOG in files or "manifest.json" in files):
            folders.clear()
            yield Path(path)
        folders[:] = [name for name in folders if not name.startswith(".")]


def _summarize(run: Path, folder: Path) -> RunSummary:
    name = run.relative_to(folder).as_posix() if run != folder else run.resolve().name
    problems: list[str] = []
    settings = _read_settings(run / CONFIG, problems)
    log, validations = (_read_lines(run / file, problems) for file in (LOG, VALIDATION))
    metric = str(settings.get("validate.metric", "dice"))
    if metric not in METRICS:
        problems.append(f"{CONFIG}: validate.metric {metric} is unknown")
        metric = "dice"
    best = best_line(validations, metric)
    progress = log[-1].get("progress") if log else None
    patience = settings.get("validate.patience")
    if problems:
        state = "damaged"
    elif _is_locked(run):
        state = "running"
    elif progress is not None and progress >= 1:
        state = "finished"
    elif patience is not None and validations_since_best(validations, metric) >= patience:
        state = "stopped early"
    else:
        state = "unfinished"
    return RunSummary(
        name=name,
        state=state,
        step=log[-1]["step"] if log else 0,
        progress=progress,
        metric=metric,
        best=best[metric] if best else None,
        best_step=best["step"] if best else None,
        baseline=next((line.get(metric) for line in validations if line["step"] == 0), None),
        settings=settings,
        problems=tuple(problems),
    )


def _read_settings(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.append(f"{path.name}: cannot be read ({' '.join(str(error).split())[:100]})")
        return {}
    if not isinstance(values, dict):
        problems.append(f"{path.name}: has no settings")
        return {}
    return flatten(values)


def _read_lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    try:
        return [entry.value for entry in read_log(path)]
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: cannot be read ({str(error)[:100]})")
        return []


def read_log(path: Path) -> list[Entry]:
    """The complete lines of `log.jsonl` or `validation.jsonl`; [] if the file is missing.

    An incomplete last line is ignored. Raises ValueError for a line without a step, OSError if the file cannot be read.
    """
    entries = list(read_journal(path))
    if not all(isinstance(entry.value.get("step"), int) for entry in entries):
        raise ValueError("a line has no step")
    return entries


def _is_locked(run: Path) -> bool:
    try:
        with ExitStack() as files:
            hold_folder(run, "run", files)
    except OutputError:
        return True
    return False


def flatten(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names, such as `optim.lr` -> value."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            values |= flatten(value, f"{before}{name}.")
        else:
            values[before + str(name)] = value
    return values


def differing(runs: Sequence[RunSummary]) -> list[str]:
    """Dotted names of settings that differ between runs; a missing setting counts as a different value."""
    known = [run.settings for run in runs if run.settings]
    names = dict.fromkeys(name for settings in known for name in settings)
    return [
        name
        for name in names
        if name not in IGNORED_SETTINGS and len({repr(settings.get(name)) for settings in known}) > 1
    ]


def tabulate(runs: Sequence[RunSummary]) -> Iterator[str]:
    """Yield the lines of a table of the runs, then one line per problem."""
    names = differing(runs)
    head = ["run", "state", "step", "done", "best", "at step", "before", *names]
    rows = [head, *([*_cells(run), *(_text(run.settings.get(name)) for name in names)] for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for run in runs:
        for problem in run.problems:
            yield f"{run.name}: {problem}"


def _cells(run: RunSummary) -> list[str]:
    done = "–" if run.progress is None else f"{100 * min(1.0, run.progress):.0f} %"
    best = "–" if run.best is None else f"{run.metric} {run.best:.4g}"
    before = "–" if run.baseline is None else f"{run.baseline:.4g}"
    return [run.name, run.state, str(run.step), done, best, _text(run.best_step), before]


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


def as_json(runs: Sequence[RunSummary]) -> dict[str, Any]:
    """The result of `vesalius runs --json`."""
    return {"runs": [asdict(run) for run in runs], "differ_in": differing(runs)}
