"""Preparation of a run: open model and data, and check everything before a run folder is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vesalius.data.augment import AugmentSettings
from vesalius.data.dataset import Dataset, load_item, open_dataset
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.errors import SettingError
from vesalius.files import check_outside
from vesalius.lineage import hash_pixels, perceptual_hash
from vesalius.models.cards import ModelCard
from vesalius.models.checkpoint import OpenedModel, merged, new_model, open_model
from vesalius.models.reference import resolve_model
from vesalius.models.stored_model import fingerprint_model
from vesalius.models.token_rows import new_tokens
from vesalius.models.trainable import set_trainable
from vesalius.training.context import Monitoring, TrainingContext, ignore
from vesalius.training.distributed import Process
from vesalius.training.ema import WeightAverage
from vesalius.training.learner import Learner, TextSegLearner
from vesalius.training.loader import Loader
from vesalius.training.mixture import Mixture, TaskSettings, open_mixture
from vesalius.training.projector import fit_projector
from vesalius.training.run_folder import RunFolder
from vesalius.training.settings import RunSettings
from vesalius.training.sharding import is_sharded
from vesalius.training.unet_learner import open_unet_learner, trains_unet


@dataclass(frozen=True)
class Prepared:
    """Model and data of a run, opened and checked."""

    settings: RunSettings
    process: Process
    folder: RunFolder
    learner: Learner
    card: ModelCard
    """Card of the starting model, or of the checkpoint that is resumed."""
    origin: dict[str, Any]
    """Lineage entries about the starting model."""
    train_set: Dataset
    val_set: Dataset | None
    mixture: Mixture
    image_hashes: dict[str, str]
    """Id of each training image -> SHA-256 of its pixels."""
    perceptual_hashes: list[str]
    overfit: int | None
    monitoring: Monitoring

    def fit_projector(self) -> None:
        """Reinitialize the projector for the phrases of the data if the settings ask for it; a U-Net has none."""
        if self.settings.projector == "fitted" and isinstance(self.learner, TextSegLearner):
            device = torch.device("cpu") if self.process.shards else self.process.device
            fit_projector(
                self.learner.opened,
                self.train_set.samples,
                device,
                self.settings.seed,
                self.monitoring.on_note,
            )

    def context(self, card: ModelCard) -> TrainingContext:
        """The training context with this card: the model wrapped for training, optimizer and loader."""
        settings, process = self.settings, self.process
        model, optimizer = process.prepare(self.learner, self._make_optimizer)
        loader = Loader(
            mixture=self.mixture,
            learner=self.learner,
            augment=AugmentSettings() if self.overfit else settings.augment,
            batch_size=settings.batch_size,
            seed=settings.seed,
            accumulation=settings.optim.gradient_accumulation_steps,
            num_workers=settings.num_workers,
            rank=process.rank,
            world_size=process.world_size,
        )
        return TrainingContext(
            settings=settings,
            folder=self.folder,
            process=process,
            learner=self.learner,
            card=card,
            model=model,
            optimizer=optimizer,
            average=_make_average(self.learner.module, settings.optim.ema_decay),
            loader=loader,
            validation_samples=self.val_set.samples[: settings.validate_.limit] if self.val_set else (),
            monitoring=self.monitoring,
        )

    def _make_optimizer(self) -> torch.optim.Optimizer:
        optim = self.settings.optim
        groups = [
            {"params": parameters, "multiplier": optim.lr_multipliers.get(name, 1.0)}
            for name, parameters in self.learner.groups.items()
        ]
        betas, decay = optim.betas, optim.weight_decay
        return torch.optim.AdamW(groups, lr=optim.lr, betas=betas, weight_decay=decay, fused=True)


def _make_average(module: torch.nn.Module, decay: float | None) -> WeightAverage | None:
    if decay is None:
        return None
    if is_sharded(module):
        raise SettingError(
            "optim.ema_decay needs whole weights, and this model is sharded (FSDP2); leave it out, or use DDP",
            code="conflicting_settings",
            field="optim.ema_decay",
        )
    return WeightAverage([each for each in module.parameters() if each.requires_grad], decay)


def prepare(
    settings: RunSettings,
    process: Process,
    monitoring: Monitoring,
    *,
    resume: bool = False,
    overfit: int | None = None,
    read_all: bool = True,
) -> Prepared:
    """Open model and data, and read every image, mask and conversation, so that none of them can stop the run later.

    A resumed run opens its last checkpoint and takes `overfit` from it. Without `read_all` the hashes are empty. Raises
    DataError, SettingError or CheckpointError for the first fault found.
    """
    folder = RunFolder(settings.out)
    learner, card, origin = _open_learner(settings, resume, overfit, monitoring.on_note)
    if resume:
        overfit = card.lineage.get("overfit")
    train_set, val_set = open_data(settings, overfit)
    mixture = open_mixture(
        train_set.samples, settings.tasks, settings.data.conversations, overfit is not None
    )
    for note in _describe(train_set, val_set, mixture):
        monitoring.on_note(note)
    on_overlap = monitoring.on_note if overfit is None else ignore
    images, hashes = _read_all(mixture, val_set, learner, on_overlap) if read_all else ({}, [])
    return Prepared(
        settings=settings,
        process=process,
        folder=folder,
        learner=learner,
        card=card,
        origin=origin,
        train_set=train_set,
        val_set=val_set,
        mixture=mixture,
        image_hashes=images,
        perceptual_hashes=hashes,
        overfit=overfit,
        monitoring=monitoring,
    )


def _describe(train_set: Dataset, val_set: Dataset | None, mixture: Mixture) -> Iterator[str]:
    """Notes on training and validation data, one line each."""
    for dataset in (train_set, val_set) if val_set not in (None, train_set) else (train_set,):
        yield f"{dataset.name}: {len(dataset.samples)} images, format {dataset.format}"
        yield from dataset.notes
    yield from mixture.notes()
    if val_set is None or val_set is train_set or val_set.root != train_set.root:
        return  # group names are comparable within one dataset only
    trained, validated = ({sample.group for sample in each.samples} - {None} for each in (train_set, val_set))
    if shared := len(trained & validated):
        yield f"{shared} groups (patients, sequences) are in both training and validation data: scores will be too high"


def _read_all(
    mixture: Mixture, val_set: Dataset | None, learner: Learner, on_note: Callable[[str], None]
) -> tuple[dict[str, str], list[str]]:
    """Id -> pixel hash of each training image, and perceptual hashes; notes validation images among them."""
    samples = (*mixture.samples, *(val_set.samples if val_set else ()))
    for phrase in {prompt for sample in samples for prompt in sample.prompts}:
        learner.check_phrase(phrase)
    images, hashes, sizes = {}, [], {}
    with FrameReader() as reader:
        validated = [
            hash_pixels(load_item(sample, reader).frames[0])
            for sample in (val_set.samples if val_set else ())
        ]
        for sample in mixture.samples:
            item = load_item(sample, reader)
            images[item.id], sizes[item.id] = hash_pixels(item.frames[0]), item.size
            hashes.append(perceptual_hash(item.frames[0]))
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
        images[item.id] = hash_pixels(item.frames[0])
        hashes.append(perceptual_hash(item.frames[0]))
    return images, hashes


def open_data(settings: RunSettings, overfit: int | None) -> tuple[Dataset, Dataset | None]:
    """Training and validation data; an overfit test uses the first `overfit` training samples for both."""
    data = settings.data
    for path in (data.train, data.val):
        if path is not None and path.is_dir():  # a run inside would add its figures to the dataset
            check_outside(settings.out, path)
    train_set = _open_annotated(data.train, "train", data.prompt)
    if overfit is None:
        return train_set, _open_annotated(data.val, "val", data.prompt) if data.val else None
    if not 1 <= overfit <= len(train_set.samples):
        raise SettingError(
            f"--overfit {overfit}: must be between 1 and {len(train_set.samples)}, the number of training images",
            code="bad_value",
            field="overfit",
        )
    train_set = train_set.first(overfit)
    return train_set, train_set


def _open_annotated(path: Path, split: str, prompt: str | None) -> Dataset:
    """The annotated samples of a dataset, of its split of that name if there is one."""
    name = split if (path / f"annotations.{split}.json").is_file() else None
    return open_dataset(path, split=name, prompt=prompt).annotated()


def _open_learner(
    settings: RunSettings, resume: bool, overfit: int | None, on_note: Callable[[str], None]
) -> tuple[Learner, ModelCard, dict[str, Any]]:
    """The model, ready to train; its card; and lineage entries about its origin."""
    if trains_unet(settings, resume):
        if settings.tasks != TaskSettings():
            raise SettingError(
                "tasks: needs a model that reads text; a U-Net learns only masks",
                code="conflicting_settings",
                field="tasks",
            )
        samples = () if resume else open_data(settings, overfit)[0].samples
        phrases = list(dict.fromkeys(prompt for sample in samples for prompt in sample.prompts))
        unet, origin, notes = open_unet_learner(settings, resume, phrases)
        for note in notes:
            on_note(note)
        return unet, unet.opened.card, origin
    if settings.unet is not None:
        raise SettingError(
            "unet: describes a U-Net; remove it, or start a new U-Net with model=unet",
            code="conflicting_settings",
            field="unet",
        )
    opened, origin = _open_model(settings, resume)
    tokens = new_tokens(opened.processor.tokenizer)
    groups = set_trainable(opened.model, settings.trainable, tokens, settings.seed)
    if frozen := [name for name in settings.optim.lr_multipliers if name not in groups]:
        on_note(f"optim.lr_multipliers: {', '.join(frozen)} does not train, so its multiplier has no effect")
    return TextSegLearner(opened, groups, settings.loss), opened.card, origin


def _open_model(settings: RunSettings, resume: bool) -> tuple[OpenedModel, dict[str, Any]]:
    """The model to start or resume from, and lineage entries about its origin."""
    if settings.init == "random" and not resume:
        if Path(settings.model).is_dir():
            raise SettingError(
                f"init: random works with tiny only; {settings.model} has its own weights: remove init",
                code="conflicting_settings",
                field="init",
            )
        return new_model(settings.model, settings.seed), {"start": f"random weights, seed {settings.seed}"}
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
