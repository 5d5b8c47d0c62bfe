"""The runs below a folder: how far each came, how good it became, and in which settings they differ."""

from __future__ import annotations

import json
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
from vesalius.training.early_stopping import best_line, validations_since_best

CONFIG, LOG, VALIDATION = "config.yaml", "log.jsonl", "validation.jsonl"
ABOUT_THE_PLACE = ("out",)
"""Settings in which runs always differ."""


@dataclass(frozen=True)
class Summary:
    """One run, as far as its folder says."""

    name: str
    """Its path below the folder that was asked about."""
    state: str
    """`running`, `finished`, `stopped early`, `unfinished` or `damaged`."""
    step: int = 0
    progress: float | None = None
    """Share of its length that is done; None where no step was."""
    metric: str | None = None
    best: float | None = None
    best_step: int | None = None
    start: float | None = None
    """The metric before the first step."""
    settings: dict[str, Any] = field(default_factory=dict)
    """`optim.lr` -> value."""
    problems: tuple[str, ...] = ()
    """What could not be read."""


def list_runs(folder: Path) -> list[Summary]:
    """Every run in the folder or below it, by name; SettingError where there is none.

    A damaged one is listed as such, with what is wrong.
    """
    if not folder.is_dir():
        raise SettingError(f"{folder}: is no folder; name one that holds runs")
    found = [_summarize(place, folder) for place in sorted(_find(folder))]
    if not found:
        raise SettingError(f"{folder}: no run is in it: none of its folders holds {CONFIG} and {LOG}")
    return found


def _find(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        if CONFIG in files and (LOG in files or "manifest.json" in files):
            folders.clear()
            yield Path(place)
        folders[:] = [name for name in folders if not name.startswith(".")]


def _summarize(run: Path, folder: Path) -> Summary:
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
    elif _is_held(run):
        state = "running"
    elif progress is not None and progress >= 1:
        state = "finished"
    elif patience is not None and validations_since_best(validations, metric) >= patience:
        state = "stopped early"
    else:
        state = "unfinished"
    return Summary(
        name=name,
        state=state,
        step=log[-1]["step"] if log else 0,
        progress=progress,
        metric=metric,
        best=best[metric] if best else None,
        best_step=best["step"] if best else None,
        start=next((line.get(metric) for line in validations if line["step"] == 0), None),
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
        problems.append(f"{path.name}: holds no settings")
        return {}
    return flat(values)


def _read_lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The whole lines of a log; a last one that is being written, or was cut by a crash, does not count."""
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        if not all(isinstance(line["step"], int) for line in lines):
            raise ValueError("a step is no number")
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems.append(f"{path.name}: cannot be read ({type(error).__name__}: {str(error)[:100]})")
        return []
    return lines


def _is_held(run: Path) -> bool:
    try:
        with ExitStack() as files:
            hold_folder(run, "run", files)
    except OutputError:
        return True
    return False


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """`optim.lr` -> value, for settings in settings."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            values |= flat(value, f"{before}{name}.")
        else:
            values[before + str(name)] = value
    return values


def differing(runs: Sequence[Summary]) -> list[str]:
    """Names of the settings that are not the same in all runs that have settings; missing ones count as another value."""
    known = [run.settings for run in runs if run.settings]
    names = dict.fromkeys(name for settings in known for name in settings)
    return [
        name
        for name in names
        if name not in ABOUT_THE_PLACE and len({repr(settings.get(name)) for settings in known}) > 1
    ]


def tabulate(runs: Sequence[Summary]) -> Iterator[str]:
    """Lines for a terminal: a table of the runs, then what could not be read."""
    names = differing(runs)
    head = ["run", "state", "step", "done", "best", "at step", "before", *names]
    rows = [head, *([*_cells(run), *(_word(run.settings.get(name)) for name in names)] for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for run in runs:
        for problem in run.problems:
            yield f"{run.name}: {problem}"


def _cells(run: Summary) -> list[str]:
    done = "–" if run.progress is None else f"{100 * min(1.0, run.progress):.0f} %"
    best = "–" if run.best is None else f"{run.metric} {run.best:.4g}"
    before = "–" if run.start is None else f"{run.start:.4g}"
    return [run.name, run.state, str(run.step), done, best, _word(run.best_step), before]


def _word(value: Any) -> str:
    return "–" if value is None else str(value)


def as_json(runs: Sequence[Summary]) -> dict[str, Any]:
    """What `--json` prints."""
    return {"runs": [asdict(run) for run in runs], "differ_in": differing(runs)}
