"""From a recipe to a run folder: open, check and write down everything, then hand over to the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch

from vesalius.config import read_settings
from vesalius.data.augment import AugmentSettings
from vesalius.data.dataset import Dataset, load_item, open_dataset
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.errors import SettingError, TrainingError
from vesalius.files import check_outside, write_text
from vesalius.lineage import commit, fingerprint_samples, hash_pixels, perceptual_hash, versions
from vesalius.models.cards import CARD, ModelCard, ThresholdOrigin
from vesalius.models.checkpoint import OpenedModel, merged, new_model, open_model
from vesalius.models.reference import resolve_model
from vesalius.models.stored_model import fingerprint_model
from vesalius.models.token_rows import new_tokens
from vesalius.models.trainable import set_trainable
from vesalius.training.distributed import Engine, start_engine
from vesalius.training.learner import Learner, TextSegLearner
from vesalius.training.loader import Feed
from vesalius.training.loop import Run, run_loop
from vesalius.training.lr_finder import Search, draw_search, find_rate
from vesalius.training.mixture import Mixture, TaskSettings, open_mixture
from vesalius.training.monitoring import Watch, finish, make_average, read_beside
from vesalius.training.optimizer_state import read_optimizer
from vesalius.training.projector import fit_projector
from vesalius.training.resumption import check_batches, find_changes
from vesalius.training.run_folder import RunFolder, TrainState
from vesalius.training.settings import RunSettings
from vesalius.training.trackers import check_trackers, open_trackers
from vesalius.training.unet_learner import open_unet_learner, trains_unet


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
    check_trackers(settings.trackers or ())
    engine = start_engine(settings.precision)
    if not engine.is_main:
        on_note = on_step = on_validation = _say_nothing
    run_folder = RunFolder(settings.out)
    with ExitStack() as held:
        if resume:
            run_folder.last()
        if engine.is_main:
            run_folder.hold(held) if resume else run_folder.check_new()
        changes = find_changes(settings, run_folder) if resume else []
        with run_folder.reading_last() if resume else nullcontext():
            learner, card, origin = _open_learner(settings, resume, overfit, on_note)
        if resume:
            overfit = card.lineage.get("overfit")
        train_set, val_set = _open_data(settings, overfit)
        mixture = open_mixture(
            train_set.samples, settings.tasks, settings.data.questions, overfit is not None
        )
        for note in _describe(train_set, val_set, mixture):
            on_note(note)
        images, hashes = _read_all(mixture, val_set, learner, on_note if overfit is None else _say_nothing)
        data = mixture.fingerprint()
        if resume:
            card = _continue_card(settings, card, data)
        else:
            _fit_projector(settings, engine, learner, train_set, on_note)
            begun = {"data": data, "overfit": overfit, "settings": settings.model_dump(mode="json")}
            card = _begin_card(card, {**origin, **begun}, images, hashes)
        run = _prepare(
            settings, engine, learner, card, mixture, val_set, run_folder, overfit, on_step, on_validation
        )
        run.watch.on_note = on_note
        if resume:
            with run_folder.reading_last():
                _continue(run, changes, on_note)
        elif engine.is_main:
            run_folder.create(_config_text(settings), _manifest(train_set, val_set, images), held)
        _open_trackers(run, held)
        engine.wait()
        run_loop(run)
        finish(run)
        on_note(f"{run_folder.path}: best and last checkpoint, log.jsonl, curves.png")
        engine.close()
    return run_folder.path


def search_rate(
    settings: RunSettings,
    picture: Path,
    *,
    on_note: Callable[[str], None] = lambda note: None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Search:
    """Look for a learning rate for a recipe (`finder.py`), and draw what was tried; no run folder is made."""
    engine = start_engine(settings.precision)
    if not engine.is_main:
        on_note = on_progress = _say_nothing
    learner, card, _ = _open_learner(settings, False, None, on_note)
    train_set, _ = _open_data(settings, None)
    _fit_projector(settings, engine, learner, train_set, on_note)
    mixture = open_mixture(train_set.samples, settings.tasks, settings.data.questions, False)
    ignored = RunFolder(settings.out), None, _say_nothing, _say_nothing
    found = find_rate(_prepare(settings, engine, learner, card, mixture, None, *ignored), on_progress)
    on_note(str(found))
    if engine.is_main:
        draw_search(found, picture)
    on_note(f"picture: {picture}")
    engine.close()
    return found


def _describe(train_set: Dataset, val_set: Dataset | None, mixture: Mixture) -> Iterator[str]:
    """What is trained and validated on, a line each."""
    for dataset in (train_set, val_set) if val_set not in (None, train_set) else (train_set,):
        yield f"{dataset.name}: {len(dataset.samples)} images, format {dataset.format}"
        yield from dataset.notes
    yield from mixture.notes()
    if val_set is None or val_set is train_set or val_set.root != train_set.root:
        return  # names of groups mean the same within one dataset only
    trained, validated = ({sample.group for sample in each.samples} - {None} for each in (train_set, val_set))
    if shared := len(trained & validated):
        yield f"{shared} groups (patients, sequences) are both trained and validated on: the scores will be too good"


def _say_nothing(_: object) -> None:
    """What the processes beside the main one have to tell."""


def _begin_card(
    card: ModelCard, lineage: dict[str, Any], images: dict[str, str], hashes: list[str]
) -> ModelCard:
    """The card of a run that begins, from that of its start."""
    return card.changed(
        lineage=lineage,
        # what the starting weights have seen, these have seen too
        training_images=tuple(sorted({*(card.training_images or ()), *images.values()})),
        trained_on_unknown=card.saw_unknown_images,
        training_perceptual_hashes=tuple(sorted({*card.training_perceptual_hashes, *hashes})),
        **UNTUNED,
    )


UNTUNED: dict[str, Any] = {
    "threshold": 0.5,
    "threshold_origin": ThresholdOrigin(),
    "tuning_images": (),
    "tta": None,
}
"""Of a card: what was found for other weights does not hold for those that train."""


def _continue_card(settings: RunSettings, card: ModelCard, data: str) -> ModelCard:
    """The card of a run that goes on, from that of its last checkpoint; TrainingError for other data."""
    if card.lineage.get("data") != data:
        raise TrainingError(
            f"{settings.data.train}: is not what the run was trained on (other images, masks, phrases or "
            "questions); "
            "start a new run from its checkpoint instead"
        )
    lineage = {**card.lineage, "settings": settings.model_dump(mode="json")}
    return card.changed(lineage=lineage, **UNTUNED)


def _continue(run: Run, changes: list[str], on_note: Callable[[str], None]) -> None:
    """Bring a run to where its last checkpoint stands."""
    state = run.run_folder.read_state()
    check_batches(run.settings, state, run.engine)
    read_optimizer(run.run_folder.last(), run.learner.module, run.optimizer)
    read_beside(run, run.run_folder.last())
    run.state, run.saved_step = state, state.step
    if run.engine.is_main:
        run.run_folder.rewind(state)
        write_text(run.run_folder.path / "config.yaml", _config_text(run.settings))
    on_note(f"resumed at step {state.step}")
    if run.val and state.validated and not run.run_folder.lines(run.run_folder.validation):
        on_note("no validation is kept: `best` is chosen among those that come now")
    for change in changes:
        on_note(f"changed: {change}")


def _read_all(
    mixture: Mixture, val_set: Dataset | None, learner: Learner, on_note: Callable[[str], None]
) -> tuple[dict[str, str], list[str]]:
    """Id -> hash of the pixels of each training image; and the perceptual hash of each. Notes what is validated on too.

    Reads every image, mask and conversation, and asks for every phrase, so that nothing in them can stop the run later: raises
    DataError or SettingError for the first that is wrong.
    """
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
    shared = len(set(images.values()).intersection(validated))
    if shared:
        on_note(f"{shared} validation images are trained on too: the scores will be too good")
    mixture.check_sizes(sizes)
    for conversation in mixture.conversations:
        item = conversation.load()
        try:
            learner.check_turns(item.turns, item.size)
        except SettingError as error:
            raise SettingError(f"{conversation.sample.source}: {error}") from error
        images[item.id] = hash_pixels(item.frames[0])
        hashes.append(perceptual_hash(item.frames[0]))
    return images, hashes


def read_run_settings(recipe: Path, changes: list[str]) -> RunSettings:
    """The settings of a recipe, or of a run folder's `config.yaml`, after `changes` such as `optim.lr=1e-4`.

    SettingError as for `read_settings`, for a checkpoint in the place of its run, and for another `out` of a run.
    """
    if recipe.is_dir() and (recipe / CARD).is_file():
        raise SettingError(f"{recipe}: is a checkpoint; name its run, in which it is last or best")
    if recipe.is_dir() and any(change.startswith("out=") for change in changes):
        raise SettingError(f"{recipe}: a run goes on in its own folder; leave out out=")
    return read_settings(RunSettings, recipe / "config.yaml" if recipe.is_dir() else recipe, changes)


def _open_data(settings: RunSettings, overfit: int | None) -> tuple[Dataset, Dataset | None]:
    prompt = settings.data.prompt
    for place in (settings.data.train, settings.data.val):
        if place is not None and place.is_dir():  # its reader would meet the run's pictures
            check_outside(settings.out, place)
    train_set = open_dataset(
        settings.data.train, split=_split_at(settings.data.train, "train"), prompt=prompt
    ).annotated()
    if overfit is not None:
        if overfit < 1:
            raise SettingError(f"--overfit must be at least 1; got {overfit}")
        if overfit > len(train_set.samples):
            raise SettingError(
                f"--overfit {overfit}: there are only {len(train_set.samples)} training images"
            )
        train_set = train_set.first(overfit)
        return train_set, train_set
    if settings.data.val is None:
        return train_set, None
    return train_set, open_dataset(
        settings.data.val, split=_split_at(settings.data.val, "val"), prompt=prompt
    ).annotated()


def _split_at(data: Path, name: str) -> str | None:
    """The split to ask for, where a folder has one of that name."""
    return name if (data / f"annotations.{name}.json").is_file() else None


def _open_learner(
    settings: RunSettings, resume: bool, overfit: int | None, on_note: Callable[[str], None]
) -> tuple[Learner, ModelCard, dict[str, Any]]:
    """The model to start from, ready to train; its card; and where it comes from."""
    if trains_unet(settings, resume):
        if settings.tasks != TaskSettings():
            raise SettingError("tasks: are for a model that reads text; a U-Net learns masks alone")
        samples = () if resume else _open_data(settings, overfit)[0].samples
        phrases = list(dict.fromkeys(prompt for sample in samples for prompt in sample.prompts))
        unet, origin, notes = open_unet_learner(settings, resume, phrases)
        for note in notes:
            on_note(note)
        return unet, unet.opened.card, origin
    if settings.unet is not None:
        raise SettingError("unet: is for a U-Net; leave it out, or begin one with model=unet")
    opened, origin = _open_model(settings, resume)
    tokens = new_tokens(opened.processor.tokenizer)
    groups = set_trainable(opened.model, settings.trainable, tokens, settings.seed)
    if idle := [name for name in settings.optim.lr_multipliers if name not in groups]:
        on_note(
            f"optim.lr_multipliers: {', '.join(idle)} does not train, so that its multiplier takes no part"
        )
    return TextSegLearner(opened, groups, settings.loss), opened.card, origin


def _fit_projector(
    settings: RunSettings, engine: Engine, learner: Learner, data: Dataset, on_note: Callable[[str], None]
) -> None:
    """Where the settings say so; a U-Net has none."""
    if settings.projector == "fitted" and isinstance(learner, TextSegLearner):
        device = torch.device("cpu") if engine.shards else engine.device
        fit_projector(learner.opened, data.samples, device, settings.seed, on_note)


def _open_model(settings: RunSettings, resume: bool) -> tuple[OpenedModel, dict[str, Any]]:
    """The model to start from, and where it comes from."""
    if settings.init == "random" and not resume:
        if Path(settings.model).is_dir():
            raise SettingError(
                f"init: random makes new weights of tiny alone; {settings.model} has its own: leave it out"
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


def _prepare(
    settings: RunSettings,
    engine: Engine,
    learner: Learner,
    card: ModelCard,
    mixture: Mixture,
    val_set: Dataset | None,
    run_folder: RunFolder,
    overfit: int | None,
    on_step: Callable[[dict[str, Any]], None],
    on_validation: Callable[[dict[str, Any]], None],
) -> Run:
    multipliers, optim = settings.optim.lr_multipliers, settings.optim

    def make_optimizer() -> torch.optim.Optimizer:
        groups = [
            {"params": group, "multiplier": multipliers.get(name, 1.0)}
            for name, group in learner.groups.items()
        ]
        betas, decay = optim.betas, optim.weight_decay
        return torch.optim.AdamW(groups, lr=optim.lr, betas=betas, weight_decay=decay, fused=True)

    model, optimizer = engine.prepare(learner, make_optimizer)
    feed = Feed(
        mixture=mixture,
        learner=learner,
        augment=AugmentSettings() if overfit else settings.augment,
        batch=settings.batch_size,
        seed=settings.seed,
        workers=settings.num_workers,
        rank=engine.rank,
        ranks=engine.ranks,
    )
    val = list(val_set.samples[: settings.validate_.limit]) if val_set else []
    return Run(
        settings=settings,
        learner=learner,
        card=card,
        feed=feed,
        val=val,
        val_fingerprint=fingerprint_samples(val) if val else "",
        run_folder=run_folder,
        engine=engine,
        model=model,
        optimizer=optimizer,
        state=TrainState(images_a_batch=settings.batch_size * engine.ranks),
        on_step=on_step,
        on_validation=on_validation,
        watch=Watch(average=make_average(learner.module, optim.ema_decay)),
    )


def _open_trackers(run: Run, held: ExitStack) -> None:
    """Open them until `held` is closed, in the main process, and say where there are none."""
    if not run.engine.is_main:
        return
    settings = run.settings.model_dump(mode="json")
    trackers, note = open_trackers(
        run.settings.trackers, run.run_folder.path, settings, run.state.step, run.watch.on_note
    )
    held.callback(trackers.close)
    run.watch.trackers = trackers
    if note is not None:
        run.watch.on_note(note)


def _config_text(settings: RunSettings) -> str:
    made_with = "".join(f"# {name} {version}\n" for name, version in versions().items())
    return f"# commit {commit() or 'unknown'}\n{made_with}{settings.to_yaml()}"


def _manifest(train_set: Dataset, val_set: Dataset | None, images: dict[str, str]) -> dict[str, Any]:
    val = val_set.samples if val_set else ()
    return {
        "train": {"data": str(train_set.root), "samples": images},
        "val": {"data": str(val_set.root) if val_set else None, "samples": [sample.id for sample in val]},
        "versions": versions(),
        "commit": commit(),
    }
