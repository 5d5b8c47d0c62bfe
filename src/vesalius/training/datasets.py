"""Training and validation data of a run: one dataset, or several joined into one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vesalius.data.dataset import Dataset, open_dataset
from vesalius.errors import AnnotationError, SettingError
from vesalius.files import check_outside
from vesalius.training.settings import RunSettings, TrainingData, paths_of
from vesalius.types import Sample
from vesalius.window import AUTO, Window


def open_data(settings: RunSettings, overfit: int | None, window: Window = AUTO) -> tuple[Dataset, Dataset | None]:
    """Training and validation data; an overfit test uses the first `overfit` training samples for both.

    `window` is that of all images.
    """
    data = settings.data
    for path in (*paths_of(data.train), *paths_of(data.val)):
        if path.is_dir():  # figures of a run inside would become images of the dataset
            check_outside(settings.out, path)
    train_sets, val_sets = _open_all(data, "train", window), _open_all(data, "val", window) if overfit is None else []
    roots = list(dict.fromkeys(each.root.resolve() for each in (*train_sets, *val_sets)))
    several = len(train_sets) > 1 or len(val_sets) > 1
    names = _distinct_names(roots) if several else {}
    train_set = _join(train_sets, names)
    if overfit is None:
        return train_set, _join(val_sets, names) if val_sets else None
    if not 1 <= overfit <= len(train_set.samples):
        raise SettingError(
            f"--overfit {overfit}: must be between 1 and {len(train_set.samples)}, the number of training images",
            code="bad_value",
            field="overfit",
        )
    train_set = train_set.first(overfit)
    return train_set, train_set


def _open_all(data: TrainingData, split: str, window: Window) -> list[Dataset]:
    """The annotated samples of each dataset: its split `split`, or all if it has no such split."""
    found = []
    for path in paths_of(data.train if split == "train" else data.val):
        name = split if (path / f"annotations.{split}.json").is_file() else None
        found.append(open_dataset(path, split=name, prompt=data.prompt, window=window).annotated())
    return found


def _distinct_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Folder -> its last path components, as many as distinguish all folders, joined by `__`."""
    most = max(len(folder.parts) for folder in folders)
    for length in range(1, most + 1):
        names = {folder: "__".join(folder.parts[-length:]).replace("/", "") for folder in folders}
        if len(set(names.values())) == len(folders):
            break
    return names


def _join(datasets: Sequence[Dataset], names: dict[Path, str]) -> Dataset:
    """All samples, in order; with `names`, ids, groups and sequences begin with the name of their dataset's folder.

    Raises AnnotationError for an id that occurs twice, that is, for an image that is listed twice.
    """
    if not names:
        return datasets[0]
    samples: list[Sample] = []
    notes: list[str] = []
    for dataset in datasets:
        name = names[dataset.root.resolve()]
        samples += [_renamed(sample, name) for sample in dataset.samples]
        notes += [f"{dataset.name}: {len(dataset.samples)} images, format {dataset.format}"] * (len(datasets) > 1)
        notes += [f"{dataset.name}: {note}" for note in dataset.notes]
    twice = [sample_id for sample_id, count in Counter(sample.id for sample in samples).items() if count > 1]
    if twice:
        sources = " and ".join(str(sample.source) for sample in samples if sample.id == twice[0])
        message = f"{twice[0]}: is in two datasets ({sources}); remove one of them"
        raise AnnotationError(message, code="duplicate_id", path=datasets[0].root, field=twice[0])
    merged = tuple(f"{names[each.root.resolve()]}__{sample_id}" for each in datasets for sample_id in each.merged)
    name, formats = (" + ".join(dict.fromkeys(getattr(each, of) for each in datasets)) for of in ("name", "format"))
    return Dataset(name, formats, Path(), tuple(samples), tuple(notes), merged)


def _renamed(sample: Sample, name: str) -> Sample:
    group, sequence = (each and f"{name}__{each}" for each in (sample.group, sample.sequence))
    return replace(sample, id=f"{name}__{sample.id}", group=group, sequence=sequence)
