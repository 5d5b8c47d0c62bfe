"""`vesalius.train` and `vesalius.resume`: training from Python by the path of a recipe, or by its values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vesalius.calls import check_kind, checked, describe
from vesalius.config import apply_changes, make_settings
from vesalius.errors import SettingError
from vesalius.training import run
from vesalius.training.settings import RunSettings
from vesalius.training.terminal import shown


@checked
def train(recipe: str | Path | Mapping[str, Any] | RunSettings, *, overfit: int | None = None, **changes: Any) -> Path:
    """Fine-tune a model, and return its run folder; `load_predictor` opens the best checkpoint of a run folder.

    `recipe` is a recipe file, the name of an included recipe such as `"tiny"`, or a mapping with the keys of a recipe
    (docs/settings.md). `changes` replace its settings: `steps=100`, `data={"train": "parts/train"}`, which leaves the
    other keys of `data` unchanged, or `**{"optim.lr": 1e-4}`. `overfit=n` trains and validates on the first n samples
    without augmentation; a setup that fails this test cannot learn. Messages are printed, and progress is shown on
    stderr. SettingError for an unknown setting or a wrong value, DataError for data that cannot be used, TrainingError
    for a run that cannot start or learn, OutputError for a folder `out` that has another run.

    >>> recipe = {"model": "tiny", "trainable": "projector"}
    >>> run = train(recipe, data={"train": "demo/train"}, steps=100, out="runs/mine")  # doctest: +SKIP
    """
    check_kind(overfit, int | None, "overfit", "a number of samples")
    settings = _settings(recipe, changes)
    with shown(settings) as reports:
        return run.train(settings, overfit=overfit, **reports)


@checked
def resume(folder: str | Path, **changes: Any) -> Path:
    """Continue the run in `folder` from its last checkpoint, and return the folder.

    `changes` are as for `train`: `steps=200` trains longer. TrainingError if there is no checkpoint, or if a setting
    that must not change, or the content of the training data, differs from before.

    >>> run = resume("runs/mine", steps=200)  # doctest: +SKIP
    """
    check_kind(folder, str | Path, "folder", "the path of a run")
    if not Path(folder).is_dir():
        raise SettingError.at(folder, "is no run folder; name one that `train` wrote", code="no_run")
    settings = _settings(folder, changes).changed(out=Path(folder))
    with shown(settings) as reports:
        return run.resume(settings, **reports)


def _settings(recipe: str | Path | Mapping[str, Any] | RunSettings, changes: Mapping[str, Any]) -> RunSettings:
    written = [f"{name}={json.dumps(value, ensure_ascii=False, default=str)}" for name, value in _flat(changes)]
    if isinstance(recipe, str | Path):
        return run.read_run_settings(Path(recipe), written)
    if isinstance(recipe, RunSettings):
        recipe = recipe.model_dump()
    if not isinstance(recipe, Mapping):
        raise SettingError(
            f"a recipe is a path, the name of an included recipe, or a mapping; got {describe(recipe)}",
            code="bad_value",
            field="recipe",
        )
    return make_settings(RunSettings, apply_changes(recipe, written), "the recipe")


def _flat(changes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of each setting, without mappings as values."""
    for name, value in changes.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
