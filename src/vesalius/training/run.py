"""Training from a recipe: start a run, resume it, or search a learning rate."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from vesalius.config import make_settings, read_settings
from vesalius.errors import SettingError, TrainingError
from vesalius.files import write_json, write_text
from vesalius.lineage import commit, versions
from vesalius.models.cards import CARD, read_any_card
from vesalius.training.context import Monitoring, TrainingContext, ignore
from vesalius.training.distributed import Process, join_processes
from vesalius.training.early_stopping import best_line, compare_with_baseline, overfit_result, passes_overfit_test
from vesalius.training.loop import run_loop
from vesalius.training.lr_finder import LrSearch, draw_search, search_lr
from vesalius.training.optimizer_state import read_optimizer
from vesalius.training.preparation import prepare
from vesalius.training.restart import MANIFEST, check_start, take_folder
from vesalius.training.run_folder import MERGED, RunFolder, TrainState
from vesalius.training.runs import CONFIG, flatten
from vesalius.training.settings import RunSettings
from vesalius.training.shipped_recipes import find_recipe
from vesalius.training.trackers import check_trackers, open_trackers
from vesalius.training.validation import note_prompt_collapse

CHANGEABLE = frozenset(
    "out data steps epochs minutes batch_size num_workers validate trackers save_every_minutes trainable.save".split()
)
"""Settings that may change when a run is resumed; data must have the same content, batches the same global size."""


def train(
    settings: RunSettings,
    *,
    overfit: int | None = None,
    on_note: Callable[[str], None] = ignore,
    on_step: Callable[[dict[str, Any]], None] = ignore,
    on_validation: Callable[[dict[str, Any]], None] = ignore,
) -> Path:
    """Start a training run and return its folder; `best` and `last` in it are bundles.

    A folder in which the same run was killed before its first checkpoint is used anew.
    `overfit=n` runs an overfit test: training and validation on the first n training samples, without augmentation. A
    setup that fails this test cannot learn.
    """
    check_trackers(settings.trackers or ())
    process = join_processes(settings.precision)
    monitoring = _monitoring(process, on_note, on_step, on_validation)
    folder = RunFolder(settings.out)
    with ExitStack() as held:
        if process.is_main and check_start(settings, overfit):
            monitoring.on_note(f"{folder.path}: was begun and ended before its first checkpoint; starting it anew")
        context = prepare(settings, process, monitoring, overfit=overfit)
        if process.is_main:
            take_folder(settings, overfit, held)
            write_text(folder.path / CONFIG, _config_text(settings))
            write_json(folder.path / MANIFEST, context.manifest)
        state = TrainState(global_batch_size=settings.batch_size * process.world_size)
        _run(context, state, held)
    return folder.path


def resume(
    settings: RunSettings,
    *,
    on_note: Callable[[str], None] = ignore,
    on_step: Callable[[dict[str, Any]], None] = ignore,
    on_validation: Callable[[dict[str, Any]], None] = ignore,
) -> Path:
    """Continue the run in `settings.out` from its last checkpoint, and return its folder.

    Raises TrainingError if a setting outside `CHANGEABLE` or the content of the training data has changed.
    """
    check_trackers(settings.trackers or ())
    process = join_processes(settings.precision)
    monitoring = _monitoring(process, on_note, on_step, on_validation)
    folder = RunFolder(settings.out)
    with ExitStack() as held:
        folder.last()
        if process.is_main:
            folder.hold(held)
        changes = find_changes(settings, folder)
        with folder.reading_last():
            context = prepare(settings, process, monitoring, resume=True)
            state = _restore(context)
        monitoring.on_note(f"resumed at step {state.step}")
        if context.validation_samples and state.validated_step and not folder.lines(folder.validation):
            monitoring.on_note("no earlier validation is stored: `best` is chosen among new validations")
        for change in changes:
            monitoring.on_note(f"changed: {change}")
        _run(context, state, held)
    return folder.path


def overfit_test_passed(run: Path) -> bool | None:
    """Whether a finished run passed its overfit test; None for a run that is no overfit test."""
    folder = RunFolder(run)
    if not read_any_card(folder.last()).lineage.get("overfit"):
        return None
    return passes_overfit_test(folder.lines(folder.validation))


def find_lr(
    settings: RunSettings,
    picture: Path,
    *,
    on_note: Callable[[str], None] = ignore,
    on_progress: Callable[[float], None] = ignore,
) -> LrSearch:
    """Search a learning rate for a recipe and write the loss curve to `picture`; creates no run folder."""
    process = join_processes(settings.precision)
    monitoring = _monitoring(process, on_note)
    context = prepare(settings, process, monitoring, read_all=False)
    search = search_lr(context, on_progress if process.is_main else ignore)
    monitoring.on_note(str(search))
    if process.is_main:
        draw_search(search, picture)
    monitoring.on_note(f"picture: {picture}")
    process.close()
    return search


def _monitoring(
    process: Process,
    on_note: Callable[[str], None],
    on_step: Callable[[dict[str, Any]], None] = ignore,
    on_validation: Callable[[dict[str, Any]], None] = ignore,
) -> Monitoring:
    """Monitoring of the main process; other processes discard all messages."""
    return Monitoring(on_note, on_step, on_validation) if process.is_main else Monitoring()


def _run(context: TrainingContext, state: TrainState, held: ExitStack) -> None:
    """Run the training loop, with trackers open until `held` closes, and report the result."""
    if context.process.is_main:
        context = _with_trackers(context, state, held)
    context.process.barrier()
    run_loop(context, state)
    if context.process.is_main:
        _conclude(context, state)
    context.monitoring.on_note(f"{context.folder.path}: best and last checkpoint, log.jsonl, curves.png")
    context.process.close()


def _with_trackers(context: TrainingContext, state: TrainState, held: ExitStack) -> TrainingContext:
    settings, monitoring = context.settings, context.monitoring
    values, folder = settings.model_dump(mode="json"), context.folder.path
    trackers = open_trackers(settings.trackers, folder, values, state.step, monitoring.on_note)
    held.callback(trackers.close)
    return replace(context, monitoring=replace(monitoring, trackers=trackers))


def _conclude(context: TrainingContext, state: TrainState) -> None:
    """Merge the adapter of `best` if `trainable.save` is `merged`, and report the result of the run."""
    settings, folder = context.settings, context.folder
    metric = settings.validate_.metric
    lines = folder.lines(folder.validation)
    if settings.trainable.save == "merged":
        best = best_line(lines, metric)
        step = best["step"] if best else state.step
        folder.merge_best(lambda merged: context.write_card(merged, step, best))
    if not context.validation_samples:
        return
    note_prompt_collapse(context, lines, ended=True)
    if context.card.lineage.get("overfit"):
        context.monitoring.on_note(overfit_result(lines))
    elif result := compare_with_baseline(lines, metric):
        context.monitoring.on_note(result)


def _restore(context: TrainingContext) -> TrainState:
    """Restore training state, optimizer and EMA from the last checkpoint, and truncate the logs to its step."""
    folder, settings = context.folder, context.settings
    state = folder.read_state()
    check_batch_size(settings, state, context.process.world_size)
    read_optimizer(folder.last(), context.learner.module, context.optimizer)
    if context.average is not None:
        context.average.load(folder.last())
    if context.process.is_main:
        folder.rewind(state)
        write_text(folder.path / CONFIG, _config_text(settings))
    return state


def find_changes(settings: RunSettings, folder: RunFolder) -> list[str]:
    """One sentence per changed setting. Raises TrainingError for settings that must not change.

    The previous settings are read from the last checkpoint, because users may edit `config.yaml`.
    """
    last = folder.last()
    with folder.reading_last():
        before = make_settings(RunSettings, read_any_card(last).lineage["settings"], str(last))
    old, new = flatten(before.model_dump()), flatten(settings.model_dump())
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name) and name != "out"]
    if refused := [name for name in changed if not {name, name.partition(".")[0]} & CHANGEABLE]:
        listed = ", ".join(f"{name} (it was {old.get(name)})" for name in refused)
        message = f"{listed} cannot change in a resumed run; start a new run from its checkpoint instead"
        raise TrainingError.at(settings.out, message, code="changed_setting", field=refused[0])
    best = (settings.out / "best").resolve().name
    if new.get("trainable.save") == "adapter" and best.endswith(MERGED):
        message = (
            f"trainable.save: adapter is not possible any more, because best ({best}) is merged; the adapter of the last "
            f"step is still in {settings.out / 'last'}"
        )
        raise TrainingError.at(settings.out, message, code="changed_setting", field="trainable.save")
    return [f"{name}: {new.get(name)}; it was {old.get(name)}" for name in changed]


def check_batch_size(settings: RunSettings, state: TrainState, world_size: int) -> None:
    """Raise TrainingError if the global batch size would differ from that of the run."""
    images = settings.batch_size * world_size
    if images != state.global_batch_size:
        message = (
            f"a batch had {state.global_batch_size} images over all processes and would now have {images} ({world_size} "
            f"with batch_size {settings.batch_size}): start as many processes as before, or change batch_size"
        )
        raise TrainingError.at(settings.out, message, code="changed_setting", field="batch_size")


def read_run_settings(recipe: Path, changes: list[str]) -> RunSettings:
    """Settings from a recipe, or from a run folder's `config.yaml`, after `changes` such as `optim.lr=1e-4`.

    `recipe` is a file, a run folder, or the name of a shipped recipe (`find_recipe`). Raises SettingError as `read_settings` does, for a checkpoint in the place of its run, and for `out` of an existing run.
    """
    recipe = find_recipe(recipe)
    if recipe.is_dir() and (recipe / CARD).is_file():
        raise SettingError.at(
            recipe, "is a checkpoint; name its run folder instead, which links it as last or best", code="no_run"
        )
    if recipe.is_dir() and any(change.startswith("out=") for change in changes):
        message = "a resumed run stays in its folder; remove out="
        raise SettingError.at(recipe, message, code="conflicting_settings", field="out")
    return read_settings(RunSettings, recipe / "config.yaml" if recipe.is_dir() else recipe, changes)


def _config_text(settings: RunSettings) -> str:
    made_with = "".join(f"# {name} {version}\n" for name, version in versions().items())
    return f"# commit {commit() or 'unknown'}\n{made_with}{settings.to_yaml()}"
