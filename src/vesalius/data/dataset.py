"""Data sets: any supported format to samples, and a sample to pixels and masks.

The format is told by content. Whatever the format, objects of the same phrase on one image are one target:
the prompts of a sample are distinct, in order of first appearance, and their masks are unions.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from vesalius.data.images import ignored_files, list_images, read_image, read_mask, sample_id
from vesalius.data.readers import maskfolder, sa2va_json
from vesalius.errors import AnnotationError, DataError, ImageError, SettingError
from vesalius.masks import Size, decode_rle, rasterise
from vesalius.types import Absent, Item, MaskFile, MaskReference, Polygons, Sample

Problems = list[DataError] | None
"""Where readers put what is wrong with single entries; with None the first one is raised."""

log = logging.getLogger(__name__)

LOSSY = (".jpg", ".jpeg")

READERS: dict[str, Callable[[Path, str, Problems], list[Sample]]] = {
    "sa2va_json": lambda path, phrase, problems: sa2va_json.read(path, problems),
    "maskfolder": maskfolder.read,
}


@dataclass(frozen=True)
class DataSet:
    """Samples with distinct ids, and what there is to say about how they were read."""

    name: str
    format: str
    """A key of `READERS`."""
    root: Path
    """The folder that sample ids are relative to."""
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    """One line each for what was merged, mapped, ignored or kept aside."""
    merged: tuple[str, ...] = ()
    """Ids of samples in which one phrase had several objects, before any mapping of phrases."""

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> DataSet:
        """Samples that somebody chose in Python."""
        return cls("samples", "python", Path(), tuple(samples))

    def first(self, n: int) -> DataSet:
        """The first `n` samples (all where there are fewer), which a note says."""
        if n >= len(self.samples):
            return self
        note = f"only the first {n} of {len(self.samples)} samples"
        kept = {sample.id for sample in self.samples[:n]}
        merged = tuple(name for name in self.merged if name in kept)
        return replace(self, samples=self.samples[:n], notes=(*self.notes, note), merged=merged)


def open_data_set(
    data: str | Path,
    *,
    split: str | None = None,
    prompt: str | None = None,
    group: str | None = None,
    problems: Problems = None,
) -> DataSet:
    """The data set in a folder or annotation file.

    `split` picks `annotations.NAME.json` where a folder has several. `prompt` replaces every phrase, and says
    what the masks of an image/mask folder show. `group` is a field of the annotations, or a regular
    expression on the id whose first group is the patient or sequence. Raises DataError for what is wrong in
    the data, unless it is one entry's and `problems` takes it; SettingError where an argument does not fit.
    """
    path = Path(data)
    if prompt is not None and not prompt.strip():
        raise SettingError("the prompt is empty; name what to segment, for example 'blood vessel'")
    kind, place, notes = _detect(path, split)
    if kind == "maskfolder" and prompt is None:
        raise SettingError(
            f'{path}: nothing says what the masks show; name it, for example --prompt "blood vessel"'
        )
    found = READERS[kind](place, prompt or "", problems)
    samples = [merge_phrases(sample) for sample in found]
    merged = tuple(
        before.id for before, after in zip(found, samples, strict=True) if before.prompts != after.prompts
    )
    notes += _notes(kind, place, samples, merged)
    if prompt is not None and kind != "maskfolder":
        notes.append(f"every phrase mapped to {prompt!r}: all objects of an image are one target")
        samples = [merge_phrases(replace(each, prompts=(prompt,) * len(each.prompts))) for each in samples]
    if group is not None:
        samples = _regroup(samples, group)
    notes.append(_note_on_groups(samples))
    root = place if place.is_dir() else place.parent
    return DataSet(_name(place), kind, root, tuple(samples), tuple(notes), merged)


def load_samples(
    data: str | Path, *, split: str | None = None, prompt: str | None = None, group: str | None = None
) -> list[Sample]:
    """The samples of `open_data_set` with the same arguments."""
    return list(open_data_set(data, split=split, prompt=prompt, group=group).samples)


def find_images(paths: Sequence[Path]) -> list[Sample]:
    """Samples without annotation for image files, and for the images at any depth in folders.

    They come in the order given. Ids are paths under the given folder, or the stem of a given file. Raises
    ImageError where a path does not exist, a folder holds no image, or two ids are equal.
    """
    samples: dict[str, Sample] = {}
    for path in paths:
        files = list_images(path) if path.is_dir() else [path]
        others = len(ignored_files(path)) if path.is_dir() else 0
        if others:
            log.warning("%s: %s not read: no png, jpg, bmp or tif", path, _count(others, "file"))
        if not files:
            raise ImageError(f"{path}: holds no image; png, jpg, bmp and tif are looked for")
        for file in files:
            if not file.exists():
                raise ImageError(f"{file}: there is no such file; give images or folders of images")
            if str(file) != str(file).encode(errors="replace").decode():
                raise ImageError(f"{str(file)!r}: the name is not UTF-8; rename the file")
            name = sample_id(file.relative_to(path) if path.is_dir() else Path(file.name))
            if name in samples:
                raise ImageError(
                    f"{file}: has the same id {name} as {samples[name].image}; "
                    "give the folder above both, or rename one"
                )
            samples[name] = Sample(name, file, prompts=(), masks=None, source=str(file))
    if not samples:
        raise ImageError("no image was given; name image files, or folders that hold images")
    return list(samples.values())


def load_item(sample: Sample) -> Item:
    """Pixels uint8 (1, h, w, 3) and, where annotated, masks bool (n, 1, h, w), one for each prompt.

    Raises ImageError for the image; AnnotationError, naming the entry, for masks that do not fit it: another
    stated size, coordinates outside by more than a pixel, a broken RLE, a mask file of another size.
    """
    image = read_image(sample.image)
    size = image.shape[0], image.shape[1]
    check_size(sample, size)
    if sample.masks is None:
        return Item(sample.id, image[None], sample.prompts)
    masks = np.zeros((len(sample.prompts), 1, *size), dtype=bool)
    for index, objects in enumerate(sample.masks):
        for reference in objects:
            masks[index, 0] |= load_mask(reference, size, sample.source or sample.id)
    return Item(sample.id, image[None], sample.prompts, masks)


def check_size(sample: Sample, size: Size) -> None:
    """Raise AnnotationError unless the size that the annotation states, if any, is that of its image."""
    if sample.size is not None and sample.size != size:
        raise AnnotationError(
            f"{sample.source}: was annotated at {_compare(sample.size, size)}; rescale the coordinates"
        )


def load_mask(reference: MaskReference, size: Size, place: str) -> Bool[np.ndarray, "h w"]:
    """One object on an image of `size`; AnnotationError, beginning with `place`, where it does not fit."""
    if isinstance(reference, Absent):
        return np.zeros(size, dtype=bool)
    if isinstance(reference, MaskFile):
        return read_mask(reference.path, size)
    try:
        if isinstance(reference, Polygons):
            _check_inside(reference, size)
            return rasterise(reference.parts, size)
        stated = reference.rle["size"][0], reference.rle["size"][1]
        if stated != size:
            raise ValueError(f"the RLE was made at {_compare(stated, size)}; make it again on this image")
        return decode_rle(reference.rle)
    except ValueError as error:
        raise AnnotationError(f"{place}: {error}") from error


def merge_phrases(sample: Sample) -> Sample:
    """The sample with each phrase once, in order of first appearance, and all its objects in one target.

    A phrase that is absent in one row and drawn in another is drawn.
    """
    if sample.masks is None:
        return replace(sample, prompts=tuple(dict.fromkeys(sample.prompts)))
    targets: dict[str, list[MaskReference]] = {}
    for prompt, objects in zip(sample.prompts, sample.masks, strict=True):
        targets.setdefault(prompt, []).extend(objects)
    masks = tuple(tuple(_drop_absent(objects)) for objects in targets.values())
    return replace(sample, prompts=tuple(targets), masks=masks)


def epoch_order(n: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """The order in which an epoch visits `n` samples: a permutation that seed and epoch alone decide."""
    return np.random.default_rng([seed, epoch]).permutation(n).astype(np.int64)


def _detect(path: Path, split: str | None) -> tuple[str, Path, list[str]]:
    """(key of READERS, path for it, notes)."""
    if path.is_file() and path.suffix.lower() == ".json":
        return "sa2va_json", path, _note_on_split(path, split)
    if not path.is_dir():
        reason = "is neither a folder nor a .json file" if path.exists() else "does not exist"
        raise AnnotationError(f"{path}: {reason}; give a data set folder or an annotation file")
    files = sorted(path.glob("annotations*.json"))
    if len(files) == 1:
        return "sa2va_json", files[0], _note_on_split(files[0], split)
    if files:
        return "sa2va_json", _pick(path, files, split), []
    if maskfolder.recognise(path):
        return "maskfolder", path, _note_on_split(path, split)
    others = ", ".join(sorted(file.name for file in path.glob("*.json"))[:5])
    raise AnnotationError(
        f"{path}: is no data set: neither annotations*.json nor images/ with masks/ was found"
        + (f"; if {others} is the annotation file, name it" if others else "")
    )


def _pick(path: Path, files: list[Path], split: str | None) -> Path:
    chosen = path / f"annotations.{split}.json"
    if split is not None and chosen in files:
        return chosen
    names = ", ".join(file.name for file in files)
    asked = f"has no {chosen.name}" if split is not None else "has several annotation files"
    raise SettingError(
        f"{path}: {asked}; pick one with --split NAME (annotations.NAME.json), or name the file: {names}"
    )


def _note_on_split(path: Path, split: str | None) -> list[str]:
    if split is None or path.name == f"annotations.{split}.json":
        return []
    return [f"split {split!r} picks nothing here: {path.name} is the only choice"]


def _name(place: Path) -> str:
    """`arcade` for a folder or its `annotations.json`, `arcade/test` for its `annotations.test.json`."""
    folder = place.resolve() if place.is_dir() else place.resolve().parent
    if place.is_dir() or place.name == "annotations.json":
        return folder.name
    return f"{folder.name}/{place.stem.removeprefix('annotations.')}"


def _notes(kind: str, place: Path, samples: list[Sample], merged: tuple[str, ...]) -> list[str]:
    notes = []
    if kind == "maskfolder":
        others = maskfolder.ignored(place)
        if others:
            notes.append(f"ignored beside images/ and masks/: {', '.join(others)}")
        lossy = sum(each.path.suffix.lower() in LOSSY for sample in samples for each in _mask_files(sample))
        if lossy:
            notes.append(
                f"masks stored as JPEG, where every grey level above 0 counts as the object: {lossy}"
            )
    unknown = Counter(key for sample in samples for key in sample.metadata)
    if unknown:
        counted = ", ".join(f"{key} ({_count(n, 'entry', 'entries')})" for key, n in unknown.items())
        notes.append(f"unknown keys kept as metadata: {counted}")
    if merged:
        notes.append(f"merged objects of the same phrase: {_count(len(merged), 'image')}")
    return notes


def _mask_files(sample: Sample) -> list[MaskFile]:
    return [each for objects in sample.masks or () for each in objects if isinstance(each, MaskFile)]


def _note_on_groups(samples: list[Sample]) -> str:
    groups = {sample.group for sample in samples if sample.group is not None}
    alone = sum(sample.group is None for sample in samples)
    if not groups:
        return "no groups are stated: each image is its own group"
    rest = f"; {_count(alone, 'image')} without one, each its own group" if alone else ""
    return f"{_count(len(groups), 'group')}{rest}"


def _regroup(samples: list[Sample], group: str) -> list[Sample]:
    """Samples with the group that a field names or, without such a field, an expression finds in the id."""
    if any(_field(sample, group) is not None for sample in samples):
        return [replace(sample, group=_group_of_field(sample, group)) for sample in samples]
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise SettingError(
            f"group {group!r} is neither a field of the annotations nor a regular expression ({error})"
        ) from error
    if not pattern.groups:
        fields = ", ".join(dict.fromkeys(key for sample in samples for key in sample.metadata)) or "none"
        raise SettingError(
            f"group {group!r} is no field of the annotations (fields: {fields}), and as a regular expression "
            "it needs parentheses around the patient or sequence"
        )
    return [replace(sample, group=_group_of_id(sample, pattern)) for sample in samples]


def _field(sample: Sample, name: str) -> object:
    return sample.group if name == "group" else sample.metadata.get(name)


def _group_of_field(sample: Sample, name: str) -> str:
    value = _field(sample, name)
    if type(value) not in (str, int) or value == "":
        raise SettingError(
            f"{sample.source}: field {name!r} gives no group (it is {value!r}); write a name or number there"
        )
    return str(value)


def _group_of_id(sample: Sample, pattern: re.Pattern[str]) -> str:
    match = pattern.search(sample.id)
    if match is None or not match[1]:
        raise SettingError(
            f"group {pattern.pattern!r} finds nothing in the id {sample.id!r}; widen the expression"
        )
    return match[1]


def _check_inside(reference: Polygons, size: Size) -> None:
    """Raise ValueError where a point lies outside by more than a pixel."""
    points = np.concatenate([np.reshape(part, (-1, 2)) for part in reference.parts])
    low, high = points.min(axis=0), points.max(axis=0)
    height, width = size
    if min(low) < -1 or high[0] > width + 1 or high[1] > height + 1:
        raise ValueError(
            f"a polygon spans x {low[0]:g} to {high[0]:g} and y {low[1]:g} to {high[1]:g}, but the image is "
            f"{height} x {width} (h x w); was it drawn on a copy of another size?"
        )


def _compare(stated: Size, real: Size) -> str:
    """`800 x 800 (h x w) but the image is 512 x 512, ratio 1.562 x 1.562`."""
    ratio = f"{stated[0] / real[0]:.4g} x {stated[1] / real[1]:.4g}"
    return f"{stated[0]} x {stated[1]} (h x w) but the image is {real[0]} x {real[1]}, ratio {ratio}"


def _drop_absent(objects: Iterable[MaskReference]) -> list[MaskReference]:
    drawn: list[MaskReference] = [each for each in objects if not isinstance(each, Absent)]
    return drawn or [Absent()]


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"
