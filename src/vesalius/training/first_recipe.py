"""The first recipe for a dataset: settings chosen from the checked data, the model and the memory, each with a reason."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from vesalius.checks.findings import count_errors, is_summary
from vesalius.checks.inspection import Report, find_parts, inspect
from vesalius.config import read_settings
from vesalius.errors import DataError, OutputError, SettingError
from vesalius.files import check_outside, replacing
from vesalius.inference.fitting import MAX_PROMPTS
from vesalius.inference.plan import Plan, make_plan
from vesalius.inference.tta import SIDE_WORDS
from vesalius.masks import Size
from vesalius.models.reference import resolve_model
from vesalius.names import count_of, list_names
from vesalius.phrases import list_phrases, unknown_prompts
from vesalius.training.settings import RunSettings
from vesalius.types import Absent

UNET = "unet"
"""MODEL for a new U-Net, the value of `model` in a recipe."""
TRAIN_NAMES, VAL_NAMES = ("train", "training"), ("val", "valid", "validation")
"""Names of the training and of the validation split in a folder with several annotation files."""
MAX_BATCH = 4
"""Largest batch size that is chosen: with few images more steps help more than larger batches."""
STEPS = 400
"""Optimizer steps of a small model, for a first run that takes minutes on a CPU."""
MAX_EPOCHS = 50
"""Most epochs that are chosen, for a dataset with few images."""
OPEN_EPOCHS = 10
"""Epochs of a model with an open vocabulary, as in `recipes/sa2va-26b.yaml`."""
VALIDATIONS = 8
"""Validations in a run."""


@dataclass(frozen=True)
class Setting:
    """One line of a recipe: key, value and the reason, which is written above it as a comment."""

    key: str
    value: Any
    reason: str = ""


@dataclass(frozen=True)
class Basis:
    """What the settings are chosen from: data, model and memory plan."""

    model: str
    train: Path
    val: Path | None
    prompt: str | None
    images: int
    """Number of training images."""
    phrases: dict[str, int]
    """Phrase -> number of training images that name it."""
    most_phrases: int
    """Largest number of phrases of one image."""
    new: tuple[str, ...]
    """Phrases that the model was not trained on; empty for a model with an open vocabulary."""
    is_open: bool
    """Whether the model has an open vocabulary, as official Sa2VA models."""
    size: Size | None
    """(h, w) of the largest training image."""
    thin: str
    """The message about masks thinner than the model's mask grid; "" if there are none."""
    lacking: int
    """Number of training images that do not name every phrase."""
    plan: Plan | None = None
    """None for a U-Net, for which memory is not estimated."""

    @property
    def separates(self) -> bool:
        """Whether the projector has to learn to separate phrases that are new to the model."""
        return len(self.new) > 1 and self.model != UNET

    @property
    def preset(self) -> str:
        """The preset of `trainable`."""
        return "lora" if self.is_open else "decoder" if self.separates else "full"

    @property
    def batch_size(self) -> int:
        """At most `MAX_BATCH` images, as many as fit in memory, and no more than there are."""
        fits = MAX_BATCH if self.plan is None else self.plan.batch_size
        return max(1, min(MAX_BATCH, fits, self.images))

    @property
    def epochs(self) -> int:
        """Passes over the training images."""
        if self.is_open:
            return OPEN_EPOCHS
        return min(MAX_EPOCHS, math.ceil(STEPS * self.batch_size / self.images))


@dataclass(frozen=True)
class FirstRecipe:
    """A written recipe and the notes for the user."""

    path: Path
    basis: Basis
    notes: tuple[str, ...]


def write_first_recipe(
    data: Path,
    out: Path,
    *,
    val: Path | None = None,
    model: str = "tiny",
    prompt: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> FirstRecipe:
    """Check a dataset and write a commented recipe for it to the file `out`, which must not exist.

    In a folder with several annotation files, `train` and `val` name the parts; `val` names the validation data of any
    other dataset. `prompt` replaces all phrases. Raises DataError, with code `dataset_errors`, if the check finds errors;
    SettingError for an unknown model or parts without the name `train`; OutputError if `out` exists.
    """
    if out.exists():
        raise OutputError(f"{out}: exists; name another file, or remove this one", code="output_exists", path=out)
    if data.is_dir():
        check_outside(out, data)
    train_file, val = _find_data(data, val)
    known, is_open = _vocabulary(model)
    report = _check(data, prompt, on_progress)
    if val is not None and len(report.parts) == 1:
        _check(val, prompt, on_progress)
    basis = _with_plan(_basis(model, train_file, val, prompt, report, known, is_open))
    text = "\n".join(_lines(basis, out.stem)) + "\n"
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
        read_settings(RunSettings, temporary)
    return FirstRecipe(out, basis, tuple(_notes(basis, data)))


def _find_data(data: Path, val: Path | None) -> tuple[Path, Path | None]:
    """Training and validation data in `data`; SettingError if its parts have no `train`, or if `val` is given twice."""
    files = find_parts(data, None)
    if len(files) < 2:
        return data, val
    train = next((files[name] for name in TRAIN_NAMES if name in files), None)
    own = next((files[name] for name in VAL_NAMES if name in files), None)
    if train is None:
        message = (
            f"has the parts {', '.join(files)} and none is called train; name one annotation file, and another as --val"
        )
        raise SettingError.at(data, message, code="ambiguous_split", field="data")
    if own is not None and val is not None:
        message = f"has its own validation data, {own.name}; leave out --val, or name the annotation file {train.name}"
        raise SettingError.at(data, message, code="conflicting_settings", field="val")
    return train, own or val


def _vocabulary(model: str) -> tuple[tuple[str, ...] | None, bool]:
    """The phrases that the model knows (none for a new U-Net), and whether its vocabulary is open."""
    if model == UNET:
        return (), False
    ref = resolve_model(model, weights=False)
    if ref.origin == "published":
        return None, True
    ref.folder  # noqa: B018  frangi cannot be trained
    card = ref.card
    return (None, True) if card is None or card.phrases is None else (card.phrases, False)


def _check(data: Path, prompt: str | None, on_progress: Callable[[int, int], None]) -> Report:
    report = inspect(data, prompt=prompt, on_progress=on_progress)
    if n := count_errors(report.findings):
        codes = Counter(each.code for each in report.findings if each.severity == "error" and not is_summary(each))
        named = list_names(f"{code} {count}" for code, count in codes.most_common())
        message = f"has {count_of(n, 'error')} ({named}); `vesalius check` lists them, and `--fix` corrects many"
        raise DataError.at(data, message, code="dataset_errors")
    return report


def _basis(
    model: str,
    file: Path,
    val: Path | None,
    prompt: str | None,
    report: Report,
    known: tuple[str, ...] | None,
    is_open: bool,
) -> Basis:
    name = next((name for name in TRAIN_NAMES if name in report.parts), next(iter(report.parts)))
    train = report.parts[name]
    sizes = [each.size for each in report.measurements if each.size is not None and each.split == name]
    drawn = [objects for sample in train.samples for objects in sample.masks or ()]
    if all(isinstance(each, Absent) for objects in drawn for each in objects):
        raise DataError.at(file, "has no mask to learn from; annotate some", code="nothing_to_learn")
    phrases = Counter(phrase for sample in train.samples for phrase in dict.fromkeys(sample.prompts))
    return Basis(
        model=model,
        train=file,
        val=val,
        prompt=prompt,
        images=len(train.samples),
        phrases=dict(phrases.most_common()),
        most_phrases=max(len(sample.prompts) for sample in train.samples),
        new=tuple(unknown_prompts(phrases, known)),
        is_open=is_open,
        size=max(sizes, key=lambda size: size[0] * size[1], default=None),
        thin=next((each.message for each in report.findings if each.code == "thin_structures"), ""),
        lacking=sum(len(set(sample.prompts)) < len(phrases) for sample in train.samples),
    )


def _with_plan(basis: Basis) -> Basis:
    """The basis with the memory plan of a training step on this machine."""
    if basis.model == UNET or resolve_model(basis.model, weights=False).is_baseline:
        return basis
    prompts = min(basis.most_phrases, MAX_PROMPTS // MAX_BATCH)
    changes = [f"trainable={basis.preset}", f"prompts={prompts}"]
    if basis.size is not None and max(basis.size) <= 20_000:
        changes.append(f"image=[{basis.size[0]},{basis.size[1]}]")
    plan = make_plan(basis.model, purpose="train", changes=changes)
    return replace(basis, plan=plan)


def _lines(basis: Basis, name: str) -> Iterator[str]:
    """The lines of the recipe: a header, then each setting below its reason."""
    sizes = f", up to {basis.size[0]} x {basis.size[1]} pixels (h x w)" if basis.size else ""
    counts = list_names((f'"{phrase}" in {n}' for phrase, n in basis.phrases.items()), 10)
    yield f"# Written by `vesalius init` from {_one_line(basis.train)}: {count_of(basis.images, 'training image')}{sizes}."
    yield f"# Phrases, and their numbers of images: {_one_line(counts)}."
    yield "# Each choice is a start, with its reason above it; docs/settings.md explains all settings."
    for each in _settings(basis, name):
        if each.reason:
            yield f"# {_one_line(each.reason)}"
        if each.key:
            value = yaml.safe_dump(
                each.value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6
            )
            yield f"{each.key}: {value.removesuffix('...' + chr(10)).strip()}"


def _settings(basis: Basis, name: str) -> Iterator[Setting]:
    yield Setting("model", basis.model)
    yield _data(basis)
    if basis.model != UNET:
        yield from _components(basis)
    yield _loss(basis)
    if basis.lacking and len(basis.phrases) > 1:
        reason = (
            f"{count_of(basis.lacking, 'image')} do not name every phrase. Only if what they do not name is truly absent, "
            "add: tasks: {negatives: 1.0}"
        )
        yield Setting("", None, reason)
    steps = math.ceil(basis.images / basis.batch_size) * basis.epochs
    yield Setting(
        "epochs", basis.epochs, f"{basis.epochs} passes over {count_of(basis.images, 'image')}, {steps} steps"
    )
    yield Setting("batch_size", basis.batch_size, _memory(basis))
    yield _optim(basis)
    yield _augment(basis)
    every = max(1, basis.epochs // VALIDATIONS)
    yield Setting(
        "validate", {"every_epochs": every, "metric": "dice"}, "`best` is the checkpoint with the best mean Dice"
    )
    yield Setting("seed", 0)
    yield Setting("out", f"runs/{name}")


def _data(basis: Basis) -> Setting:
    values = {"train": str(basis.train)}
    reason = "the best checkpoint is chosen on `val`; keep a test part apart for the final score"
    if basis.val is None:
        reason = "no validation data: `best` is then the last checkpoint; `vesalius split` makes a validation part"
    else:
        values["val"] = str(basis.val)
    if basis.prompt is not None:
        values["prompt"] = basis.prompt
    return Setting("data", values, reason)


def _components(basis: Basis) -> Iterator[Setting]:
    """The settings `projector` and `trainable`."""
    if basis.separates:
        new = list_phrases(basis.new)
        reason = f"{len(basis.new)} phrases are new to the model ({new}): the projector is fitted to separate them"
        yield Setting("projector", "fitted", reason)
    reasons = {
        "decoder": "the language model stays frozen: training it would undo the fit, and all phrases would get one mask",
        "full": "the model is small, so that all its weights can be trained",
        "lora": "LoRA on the language model, the projector and the mask decoder, as in the published fine-tuning",
    }
    yield Setting("trainable", basis.preset, reasons[basis.preset])


def _loss(basis: Basis) -> Setting:
    if basis.model == UNET:
        values = {"bce": 1.0, "dice": 1.0}
    elif basis.is_open:
        values = {"text": 1.0, "bce": 2.0, "dice": 0.5, "iou": 0.05}
    else:
        values = {"text": 0.1, "bce": 1.0, "dice": 1.0, "iou": 0.05}
    if not basis.thin:
        return Setting("loss", values, "no thin structures: overlap decides")
    return Setting("loss", {**values, "cldice": 0.5}, f"thin structures, so clDice counts gaps: {basis.thin}")


def _memory(basis: Basis) -> str:
    """The reason for the batch size."""
    plan = basis.plan
    if plan is None:
        return "images per step; memory is not estimated for a U-Net"
    need = f"{plan.need / 2**30:.1f} GiB"
    if plan.device_map is None or plan.offloaded:
        remedies = "; or ".join(plan.remedies) or "none of the known remedies"
        return f"DOES NOT FIT on this machine: training needs {need} on one device; would fit: {remedies}"
    device = f"{plan.loads[0].device.name} with {plan.loads[0].device.size / 2**30:.1f} GiB"
    return f"up to {plan.batch_size} images fit on {device}; that many need {need} (vesalius plan, estimated)"


def _optim(basis: Basis) -> Setting:
    if basis.model == UNET:
        return Setting("optim", {"lr": 2e-3, "warmup_ratio": 0.05}, "learning rate of the included recipe `unet`")
    if basis.is_open:
        return Setting("optim", {"lr": 4e-5, "warmup_ratio": 0.05}, "learning rate of the published fine-tuning")
    values: dict[str, Any] = {"lr": 1e-3 if basis.separates else 5e-4, "betas": [0.9, 0.98], "warmup_ratio": 0.05}
    if basis.preset == "full":
        values["lr_multipliers"] = {"language model": 0.05}
    name = "segments" if basis.separates else "arcade"
    return Setting(
        "optim", values, f"learning rate of the included recipe `{name}`; --find-lr suggests one for your data"
    )


def _augment(basis: Basis) -> Setting:
    values = {"rotate_degrees": 15, "scale": 0.15, "shift": 0.05, "gamma": 0.3, "contrast": 0.2}
    if sides := [phrase for phrase in basis.phrases if SIDE_WORDS.search(phrase)]:
        reason = f"no flips, because a phrase names a side ({list_phrases(sides[:1])})"
    else:
        values = {"flip": 0.5, **values}
        reason = "left-right flips, because no phrase names a side; set flip: 0 if an abbreviation does"
    return Setting(
        "augment", values, f"{reason}; add flip_vertical: 0.5 for images without top and bottom, as in microscopy"
    )


def _notes(basis: Basis, data: Path) -> Iterator[str]:
    """Sentences for the user about the choices that matter most."""
    yield f"{count_of(basis.images, 'training image')}, {count_of(len(basis.phrases), 'phrase')}: {list_phrases(basis.phrases)}"
    if basis.separates:
        yield f"{len(basis.new)} phrases are new to {basis.model}: projector: fitted separates them"
    elif basis.new:
        yield f"{basis.model} does not know {list_phrases(basis.new)}; it learns the phrase in training"
    if basis.thin:
        yield f"thin structures: {basis.thin}"
    if basis.plan is not None and (basis.plan.device_map is None or basis.plan.offloaded):
        yield _memory(basis)
    if basis.val is None:
        yield (
            "no validation data, so the last checkpoint counts as the best; make parts by patient with `vesalius split "
            f"{_one_line(data)} parts`, then `vesalius init parts`"
        )


def _one_line(text: str | Path) -> str:
    return " ".join(str(text).split())
