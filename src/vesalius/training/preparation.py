"""Preparation of a run: open model and data, and check everything before the run folder is created."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vesalius.data.augment import AugmentSettings
from vesalius.data.dataset import Dataset, load_item
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.data.perceptual_hash import encode_texture, hash_image
from vesalius.errors import SettingError, TrainingError
from vesalius.lineage import commit, hash_pixels, versions
from vesalius.models.cards import RANDOM_START, ModelCard, ThresholdOrigin, near_fields
from vesalius.models.checkpoint import OpenedModel, merged, new_model, open_model
from vesalius.models.reference import resolve_model
from vesalius.models.stored_model import fingerprint_model
from vesalius.models.token_rows import new_tokens
from vesalius.models.trainable import set_trainable
from vesalius.phrases import list_phrases, unknown_prompts
from vesalius.training.context import Monitoring, TrainingContext, ignore
from vesalius.training.datasets import open_data
from vesalius.training.distributed import Process
from vesalius.training.ema import WeightAverage
from vesalius.training.learner import Learner, TextSegLearner
from vesalius.training.loader import Loader
from vesalius.training.mixture import Mixture, TaskSettings, open_mixture
from vesalius.training.projector import fit_projector
from vesalius.training.run_folder import RunFolder
from vesalius.training.settings import OptimSettings, RunSettings, conflict, paths_of
from vesalius.training.sharding import is_sharded
from vesalius.training.unet_learner import open_unet_learner, trains_unet
from vesalius.types import Item
from vesalius.window import AUTO, ShownRanges, Window, describe_ranges

NearHashes = tuple[str, str]
"""Perceptual and texture hash of an image, by which near copies are found."""

UNTUNED: dict[str, Any] = {"threshold": 0.5, "threshold_origin": ThresholdOrigin(), "tuning_images": (), "tta": None}
"""Defaults of card fields that are tuned per model; training invalidates their values."""


def prepare(
    settings: RunSettings,
    process: Process,
    monitoring: Monitoring,
    *,
    resume: bool = False,
    overfit: int | None = None,
    read_all: bool = True,
) -> TrainingContext:
    """Open model and data, check everything, and wrap the model for training.

    Reads every image, mask and conversation, so that damaged files are found before training. `resume`: opens the run's
    last checkpoint and takes `overfit` from it. `read_all=False` skips reading, for example for a learning rate search,
    and keeps the initial model's card. Raises DataError, SettingError, CheckpointError or TrainingError for the first
    problem found.
    """
    learner, card, origin = _open_learner(settings, resume, overfit, monitoring.on_note)
    if resume:
        overfit = card.lineage.get("overfit")
    window = settings.data.window or card.window or AUTO
    if resume:
        _check_window(settings, card, window)
    train_set, val_set = open_data(settings, overfit, window)
    conversations = settings.data.conversations
    mixture = open_mixture(train_set.samples, settings.tasks, conversations, overfit is not None, window)
    for note in _describe(train_set, val_set, mixture):
        monitoring.on_note(note)
    images: dict[str, str] = {}
    if read_all:
        on_overlap = monitoring.on_note if overfit is None else ignore
        images, hashes = _read_all(mixture, val_set, learner, on_overlap)
        about = {"data": mixture.fingerprint(), "overfit": overfit, "settings": settings.model_dump(mode="json")}
        if resume:
            card = _next_card(card, about)
        else:
            card = _first_card(card, {**origin, **about}, images.values(), hashes, mixture.phrases)
    card = card.changed(window=window)
    if not resume and settings.projector == "fitted" and isinstance(learner, TextSegLearner):
        device = torch.device("cpu") if process.shards else process.device
        fit_projector(learner.opened, train_set.samples, device, settings.seed, monitoring.on_note)
    model, optimizer = process.prepare(learner, partial(_make_optimizer, settings.optim, learner))
    return TrainingContext(
        settings=settings,
        folder=RunFolder(settings.out),
        process=process,
        learner=learner,
        card=card,
        manifest=_manifest(settings, val_set, images, overfit),
        model=model,
        optimizer=optimizer,
        average=_make_average(learner.module, settings.optim.ema_decay),
        loader=_make_loader(settings, process, learner, mixture, overfit),
        validation_samples=val_set.samples[: settings.validate_.limit] if val_set else (),
        monitoring=monitoring,
    )


def _check_window(settings: RunSettings, card: ModelCard, window: Window) -> None:
    """Raise TrainingError if a resumed run would read its images under another window than before."""
    before = card.window or AUTO
    if window != before:
        message = f"data.window (it was {before}) cannot change in a resumed run; start a new run from its checkpoint"
        raise TrainingError.at(settings.out, message, code="changed_setting", field="data.window")


def _first_card(
    card: ModelCard,
    lineage: dict[str, Any],
    images: Iterable[str],
    hashes: Iterable[NearHashes],
    phrases: Iterable[str],
) -> ModelCard:
    """Model card of a new run: the initial model's card plus the hashes of the training images.

    The training phrases replace the list of the initial model; without a list (open vocabulary) there is none.
    """
    return card.changed(
        lineage=lineage,
        phrases=None if card.phrases is None else tuple(phrases),
        # the weights have also seen the training images of the initial model
        training_images=tuple(sorted({*(card.training_images or ()), *images})),
        trained_on_unknown=card.saw_unknown_images,
        **near_fields([*card.near_hashes, *hashes]),
        **UNTUNED,
    )


def _next_card(card: ModelCard, about: dict[str, Any]) -> ModelCard:
    """Model card of a resumed run: its last checkpoint's card. Raises TrainingError if the training data have changed."""
    if card.lineage.get("data") != about["data"]:
        train = about["settings"]["data"]["train"]
        train = train if isinstance(train, str) else ", ".join(train)
        message = (
            "differs from the data of this run (other images, masks, phrases or conversations); start a new run from its "
            "checkpoint instead"
        )
        raise TrainingError.at(train, message, code="changed_data", field="data.train")
    return card.changed(lineage={**card.lineage, "settings": about["settings"]}, **UNTUNED)


def _manifest(
    settings: RunSettings, val_set: Dataset | None, images: dict[str, str], overfit: int | None
) -> dict[str, Any]:
    train, val = (list(map(str, paths_of(each))) for each in (settings.data.train, settings.data.val))
    return {
        "train": {"data": train, "samples": images},
        "val": {"data": val, "samples": [sample.id for sample in val_set.samples] if val_set else []},
        "overfit": overfit,
        "versions": versions(),
        "commit": commit(),
    }


def _make_optimizer(optim: OptimSettings, learner: Learner) -> torch.optim.Optimizer:
    groups = [
        {"params": parameters, "multiplier": optim.lr_multipliers.get(name, 1.0)}
        for name, parameters in learner.groups.items()
    ]
    betas, decay = optim.betas, optim.weight_decay
    return torch.optim.AdamW(groups, lr=optim.lr, betas=betas, weight_decay=decay, fused=True)


def _make_loader(
    settings: RunSettings, process: Process, learner: Learner, mixture: Mixture, overfit: int | None
) -> Loader:
    return Loader(
        mixture=mixture,
        learner=learner,
        augment=AugmentSettings() if overfit else settings.augment,
        batch_size=settings.batch_size,
        seed=settings.seed,
        accumulation=settings.optim.gradient_accumulation_steps,
        num_workers=settings.num_workers,
        rank=process.rank,
        world_size=process.world_size,
    )


def _make_average(module: torch.nn.Module, decay: float | None) -> WeightAverage | None:
    if decay is None:
        return None
    if is_sharded(module):
        raise conflict("optim.ema_decay", "needs whole weights, but this model is sharded (FSDP2); use DDP")
    return WeightAverage([each for each in module.parameters() if each.requires_grad], decay)


def _describe(train_set: Dataset, val_set: Dataset | None, mixture: Mixture) -> Iterator[str]:
    """Notes on training and validation data, one line each."""
    for dataset in (train_set, val_set) if val_set not in (None, train_set) else (train_set,):
        yield f"{dataset.name}: {len(dataset.samples)} images, format {dataset.format}"
        yield from dataset.notes
    yield from mixture.notes()
    validated = [prompt for sample in (val_set.samples if val_set else ()) for prompt in sample.prompts]
    if untrained := unknown_prompts(validated, mixture.phrases):
        yield (
            f"validation phrases that the training data lack: {list_phrases(untrained)}; their scores do not show what "
            "the run learns"
        )
    if val_set is None or val_set is train_set or val_set.root != train_set.root:
        return  # group names are comparable only within one dataset
    trained, tested = ({sample.group for sample in each.samples} - {None} for each in (train_set, val_set))
    if shared := len(trained & tested):
        yield f"{shared} groups (patients, sequences) are in both training and validation data: scores will be too high"


def _read_all(
    mixture: Mixture, val_set: Dataset | None, learner: Learner, on_note: Callable[[str], None]
) -> tuple[dict[str, str], list[NearHashes]]:
    """Check all data; returns id -> pixel hash of each training image, and hashes to find near copies. Notes data leaks."""
    samples = (*mixture.samples, *(val_set.samples if val_set else ()))
    for phrase in {prompt for sample in samples for prompt in sample.prompts}:
        learner.check_phrase(phrase)
    images, hashes, sizes, shown = {}, [], {}, ShownRanges()
    with FrameReader() as reader:
        validated = [
            hash_pixels(load_item(sample, reader).frames[0]) for sample in (val_set.samples if val_set else ())
        ]
        for sample in mixture.samples:
            item = load_item(sample, reader)
            images[item.id], near = _hashes(item)
            sizes[item.id] = item.size
            hashes.append(near)
            if item.window is not None:
                shown.add(item.window)
    if shown.n:
        on_note(describe_ranges(shown.as_json(), mixture.samples[0].window))
    if shared := len(set(images.values()).intersection(validated)):
        on_note(f"{shared} validation images are also training images: scores will be too high")
    mixture.check_sizes(sizes)
    for conversation in mixture.conversations:
        item = conversation.load()
        try:
            learner.check_turns(item.turns, item.size)
        except SettingError as error:
            message = f"{conversation.sample.source}: {error}"
            raise SettingError(message, code=error.code, path=error.path, field=error.field) from error
        images[item.id], near = _hashes(item)
        hashes.append(near)
    return images, hashes


def _hashes(item: Item) -> tuple[str, NearHashes]:
    """The pixel hash of the first frame, and its hashes to find near copies."""
    hashes = hash_image(item.frames[0])
    return hashes.pixel_hash, (hashes.perceptual_hash, encode_texture(hashes.texture_hash))


def _open_learner(
    settings: RunSettings, resume: bool, overfit: int | None, on_note: Callable[[str], None]
) -> tuple[Learner, ModelCard, dict[str, Any]]:
    """The learner, the initial model's card, and provenance entries for the lineage."""
    if trains_unet(settings, resume):
        if settings.tasks != TaskSettings():
            raise conflict("tasks", "needs a text-prompted model; a U-Net learns only masks")
        samples = () if resume else open_data(settings, overfit)[0].samples
        phrases = list(dict.fromkeys(prompt for sample in samples for prompt in sample.prompts))
        unet, origin, notes = open_unet_learner(settings, resume, phrases)
        for note in notes:
            on_note(note)
        return unet, unet.opened.card, origin
    if settings.unet is not None:
        raise conflict("unet", "applies to U-Nets only; remove it, or start a new U-Net with model=unet")
    opened, origin = _open_model(settings, resume)
    tokens = new_tokens(opened.processor.tokenizer)
    groups = set_trainable(opened.model, settings.trainable, tokens, settings.seed)
    if frozen := [name for name in settings.optim.lr_multipliers if name not in groups]:
        on_note(f"optim.lr_multipliers: {', '.join(frozen)} does not train, so its multiplier has no effect")
    return TextSegLearner(opened, groups, settings.loss), opened.card, origin


def _open_model(settings: RunSettings, resume: bool) -> tuple[OpenedModel, dict[str, Any]]:
    """The model to start or resume from, and provenance entries for the lineage."""
    if settings.init == "random" and not resume:
        if Path(settings.model).is_dir():
            raise conflict("init", f"random is supported for tiny only; {settings.model} has its own weights")
        return new_model(settings.model, settings.seed), {"start": f"{RANDOM_START}, seed {settings.seed}"}
    folder = RunFolder(settings.out).last() if resume else resolve_model(settings.model).folder
    opened = open_model(folder)
    if opened.has_adapter and not resume:
        opened = merged(opened)
    origin = {
        "start": settings.model,
        "start_fingerprint": fingerprint_model(folder),
        "start_lineage": opened.card.lineage,
    }
    return opened, origin
