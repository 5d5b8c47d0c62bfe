"""From a recipe to a run folder: open, check and write down everything, then hand over to the loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from vesalius.config import read_settings
from vesalius.data.augment import AugmentSettings
from vesalius.data.dataset import DataSet, load_item, open_data_set
from vesalius.errors import SettingError, TrainingError
from vesalius.lineage import commit, fingerprint_samples, hash_look, hash_pixels, versions
from vesalius.models.checkpoint import (
    Card,
    OpenedModel,
    ThresholdOrigin,
    find_model,
    new_model,
    open_model,
)
from vesalius.models.stored import fingerprint_model
from vesalius.training.feed import Feed
from vesalius.training.learner import Learner, TextSegLearner
from vesalius.training.loop import Run, run_loop
from vesalius.training.rundir import RunDir, TrainState
from vesalius.training.settings import RunSettings
from vesalius.training.trainable import set_trainable


def train(
    settings: RunSettings,
    *,
    resume: bool = False,
    overfit: int | None = None,
    on_note: Callable[[str], None] = lambda note: None,
    on_step: Callable[[dict[str, Any]], None] = lambda line: None,
    on_validation: Callable[[dict[str, Any]], None] = lambda line: None,
) -> Path:
    """Fine-tune, and return the run folder, whose `best` and `last` are bundles.

    `resume` continues the run in `settings.out`. `overfit` trains and validates on the first that many training
    samples without augmentation: a model that cannot learn those by heart cannot learn anything.
    """
    run_dir = RunDir(settings.out)
    learner, card, origin = _open_learner(settings, resume)
    if resume:
        overfit = card.lineage.get("overfit")
        _refuse_changes(settings)
    else:
        run_dir.check_new()
    train_set, val_set = _open_data(settings, overfit)
    for data_set in (train_set, val_set) if val_set else (train_set,):
        on_note(f"{data_set.name}: {len(data_set.samples)} images, format {data_set.format}")
        for note in data_set.notes:
            on_note(note)
    images, looks = _read_all(train_set, val_set, learner)
    data = fingerprint_samples(train_set.samples)
    if not resume:
        card = card.changed(
            lineage={
                **origin,
                "data": data,
                "overfit": overfit,
                "settings": settings.model_dump(mode="json"),
            },
            # what the starting weights have seen, these have seen too
            training_images=tuple(sorted({*(card.training_images or ()), *images.values()})),
            training_looks=tuple(sorted({*card.training_looks, *looks})),
            # tuned for other weights
            threshold=0.5,
            threshold_origin=ThresholdOrigin(),
            tuning_images=(),
        )
    elif card.lineage.get("data") != data:
        raise TrainingError(
            f"{settings.data.train}: is not what the run was trained on (other images, masks or phrases); "
            "start a new run from its checkpoint instead"
        )
    run = _prepare(settings, learner, card, train_set, val_set, run_dir, overfit, on_step, on_validation)
    if resume:
        run.state = run_dir.resume(run.optimiser)
        on_note(f"resumed at step {run.state.step}")
    else:
        run_dir.create(_config_text(settings), _manifest(train_set, val_set, images))
    run_loop(run)
    return run_dir.path


MAY_CHANGE = frozenset({"out", "data", "steps", "epochs", "minutes", "workers", "validate"})
"""Settings that may differ when a run is resumed; the data are compared by content."""


def _refuse_changes(settings: RunSettings) -> None:
    """Raise TrainingError for a setting that a resumed run cannot take up: its checkpoint decides."""
    begun = read_settings(RunSettings, settings.out / "config.yaml").model_dump()
    for name, value in settings.model_dump().items():
        if name not in MAY_CHANGE and value != begun[name]:
            raise TrainingError(
                f"{settings.out}: {name} cannot change in a resumed run (it was {begun[name]}); start a new run "
                "from its checkpoint instead"
            )


def _read_all(
    train_set: DataSet, val_set: DataSet | None, learner: Learner
) -> tuple[dict[str, str], list[str]]:
    """Id -> hash of the pixels of each training image; and the perceptual hash of each.

    Reads every image and mask, and asks for every phrase, so that nothing in them can stop the run later: raises
    DataError or SettingError for the first that is wrong.
    """
    samples = (*train_set.samples, *(val_set.samples if val_set else ()))
    for phrase in {prompt for sample in samples for prompt in sample.prompts}:
        learner.check_phrase(phrase)
    for sample in val_set.samples if val_set else ():
        load_item(sample)
    images, looks = {}, []
    for sample in train_set.samples:
        pixels = load_item(sample).frames[0]
        images[sample.id] = hash_pixels(pixels)
        looks.append(hash_look(pixels))
    return images, looks


def read_run_settings(recipe: Path, changes: list[str]) -> RunSettings:
    """The settings of a recipe, or of a run folder's `config.yaml`, after `changes` such as `optim.lr=1e-4`."""
    return read_settings(RunSettings, recipe / "config.yaml" if recipe.is_dir() else recipe, changes)


def _open_data(settings: RunSettings, overfit: int | None) -> tuple[DataSet, DataSet | None]:
    prompt = settings.data.prompt
    train_set = open_data_set(
        settings.data.train, split=_split_at(settings.data.train, "train"), prompt=prompt
    ).annotated()
    if overfit is not None:
        if overfit < 1:
            raise SettingError(f"--overfit must be at least 1; got {overfit}")
        train_set = train_set.first(overfit)
        return train_set, train_set
    if settings.data.val is None:
        return train_set, None
    return train_set, open_data_set(
        settings.data.val, split=_split_at(settings.data.val, "val"), prompt=prompt
    ).annotated()


def _split_at(data: Path, name: str) -> str | None:
    """The split to ask for, where a folder has one of that name."""
    return name if (data / f"annotations.{name}.json").is_file() else None


def _open_learner(settings: RunSettings, resume: bool) -> tuple[Learner, Card, dict[str, Any]]:
    """The model to start from, ready to train; its card; and where it comes from."""
    opened, origin = _open_model(settings, resume)
    groups = set_trainable(opened.model, settings.what_trains)
    return TextSegLearner(opened, groups, settings.loss), opened.card, origin


def _open_model(settings: RunSettings, resume: bool) -> tuple[OpenedModel, dict[str, Any]]:
    """The model to start from, and where it comes from."""
    if settings.start == "random" and not resume:
        return new_model(settings.model, settings.seed), {"start": f"random weights, seed {settings.seed}"}
    if resume and not (settings.out / "last").exists():
        raise TrainingError(f"{settings.out}: has no checkpoint to resume from")
    folder = settings.out / "last" if resume else find_model(settings.model)
    opened = open_model(folder)
    if opened.has_adapter:
        raise TrainingError(
            f"{folder}: keeps a LoRA as an adapter, which this version does not train on; "
            "convert its training checkpoint again without --keep-adapter"
        )
    origin = {
        "start": settings.model,
        "start_fingerprint": fingerprint_model(folder),
        "start_lineage": opened.card.lineage,
    }
    return opened, origin


def _prepare(
    settings: RunSettings,
    learner: Learner,
    card: Card,
    train_set: DataSet,
    val_set: DataSet | None,
    run_dir: RunDir,
    overfit: int | None,
    on_step: Callable[[dict[str, Any]], None],
    on_validation: Callable[[dict[str, Any]], None],
) -> Run:
    torch.manual_seed(settings.seed)
    accelerator = Accelerator(mixed_precision="bf16" if settings.precision == "bf16" else "no")
    if accelerator.num_processes > 1:
        raise TrainingError(
            f"{accelerator.num_processes} processes were started; this version trains in one: start it with vesalius train"
        )
    learner.module.to(accelerator.device)
    factors = settings.optim.factors
    optimiser = torch.optim.AdamW(
        [{"params": group, "factor": factors.get(name, 1.0)} for name, group in learner.groups.items()],
        lr=settings.optim.lr,
        betas=settings.optim.betas,
        weight_decay=settings.optim.weight_decay,
    )
    feed = Feed(
        samples=train_set.samples,
        learner=learner,
        augment=AugmentSettings() if overfit else settings.augment,
        batch=settings.batch,
        seed=settings.seed,
        workers=settings.workers,
    )
    val = list(val_set.samples[: settings.validate_.limit]) if val_set else []
    return Run(
        settings=settings,
        learner=learner,
        card=card,
        feed=feed,
        val=val,
        run_dir=run_dir,
        accelerator=accelerator,
        optimiser=accelerator.prepare_optimizer(optimiser),
        state=TrainState(),
        on_step=on_step,
        on_validation=on_validation,
    )


def _config_text(settings: RunSettings) -> str:
    made_with = "".join(f"# {name} {version}\n" for name, version in versions().items())
    return f"# commit {commit() or 'unknown'}\n{made_with}{settings.to_yaml()}"


def _manifest(train_set: DataSet, val_set: DataSet | None, images: dict[str, str]) -> dict[str, Any]:
    val = val_set.samples if val_set else ()
    return {
        "train": {"data": str(train_set.root), "samples": images},
        "val": {"data": str(val_set.root) if val_set else None, "samples": [sample.id for sample in val]},
        "versions": versions(),
        "commit": commit(),
    }
