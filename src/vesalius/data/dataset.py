"""Datasets: any supported format to samples, and a sample to pixels and masks.

The format is told by content. Whatever the format, objects of the same phrase on one image are one target:
the prompts of a sample are distinct, in order of first appearance, and their masks are unions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from vesalius.data.formats import FORMATS, detect
from vesalius.data.grouping import note_on_groups, regroup
from vesalius.data.images import read_image, read_mask
from vesalius.data.source import Problems
from vesalius.errors import AnnotationError, SettingError
from vesalius.masks import Size, check_polygon, decode_rle, rasterize
from vesalius.types import Absent, Item, MaskFile, MaskReference, Polygons, Sample

LOSSY = (".jpg", ".jpeg")


@dataclass(frozen=True)
class Dataset:
    """Samples with distinct ids, and what there is to say about how they were read."""

    name: str
    format: str
    """A key of `FORMATS`."""
    root: Path
    """The folder that sample ids are relative to."""
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    """One line each for what was merged, mapped, ignored or kept aside."""
    merged: tuple[str, ...] = ()
    """Ids of samples in which one phrase had several objects, before any mapping of phrases."""

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Dataset:
        """Samples that somebody chose in Python."""
        return cls("samples", "python", Path(), tuple(samples))

    def annotated(self) -> Dataset:
        """The dataset itself; AnnotationError, naming the first, where a sample has no masks."""
        bare = [sample.id for sample in self.samples if not sample.masks]
        if bare:
            raise AnnotationError(
                f"{self.name}: {len(bare)} of {len(self.samples)} samples have no masks (first: {bare[0]}); "
                "draw them, or use null for a phrase that is not in the image",
                code="unlabeled_image",
            )
        return self

    def first(self, n: int) -> Dataset:
        """The first `n` samples (all where there are fewer), which a note says."""
        if n >= len(self.samples):
            return self
        note = f"only the first {n} of {len(self.samples)} samples"
        kept = {sample.id for sample in self.samples[:n]}
        merged = tuple(name for name in self.merged if name in kept)
        return replace(self, samples=self.samples[:n], notes=(*self.notes, note), merged=merged)


def open_dataset(
    data: str | Path,
    *,
    split: str | None = None,
    prompt: str | None = None,
    group: str | None = None,
    problems: Problems = None,
) -> Dataset:
    """The dataset in a folder or annotation file.

    `split` picks `annotations.NAME.json` where a folder has several. `prompt` replaces every phrase, and says
    what the masks of an image/mask folder show. `group` says which patient or sequence
    an image is of (`regroup`). Raises DataError for what is wrong in
    the data, unless it is one entry's and `problems` takes it; SettingError where an argument does not fit.
    """
    path = Path(data)
    if prompt is not None and not prompt.strip():
        raise SettingError("the prompt is empty; name what to segment, for example 'blood vessel'")
    kind, source, notes = detect(path, split)
    found = FORMATS[kind].read(source, prompt or "", problems)
    if problems is None:
        for sample in found:
            check_polygons(sample)
    samples = [merge_phrases(sample) for sample in found]
    merged = tuple(
        before.id for before, after in zip(found, samples, strict=True) if before.prompts != after.prompts
    )
    notes += _notes(samples, merged)
    if prompt is not None and any(each.prompts != (prompt,) for each in samples if each.masks is not None):
        notes.append(f"every phrase mapped to {prompt!r}: all objects of an image are one target")
        samples = [merge_phrases(replace(each, prompts=(prompt,) * len(each.prompts))) for each in samples]
    if group is not None:
        samples = regroup(samples, group)
    notes.append(note_on_groups(samples))
    return Dataset(_name(source.path), kind, source.root, tuple(samples), tuple(notes), merged)


def load_samples(
    data: str | Path, *, split: str | None = None, prompt: str | None = None, group: str | None = None
) -> list[Sample]:
    """The samples of `open_dataset` with the same arguments."""
    return list(open_dataset(data, split=split, prompt=prompt, group=group).samples)


def load_item(sample: Sample) -> Item:
    """Pixels uint8 (1, h, w, 3) and, where annotated, masks bool (n, 1, h, w), one for each prompt.

    Raises ImageError for the image; AnnotationError, naming the entry, for masks that do not fit it: another
    stated size, coordinates outside by more than a pixel, a broken RLE, a mask file of another size.
    """
    image = load_image(sample)
    size = image.shape[0], image.shape[1]
    check_size(sample, size)
    if sample.masks is None:
        return Item(sample.id, image[None], sample.prompts)
    masks = np.zeros((len(sample.prompts), 1, *size), dtype=bool)
    for index, objects in enumerate(sample.masks):
        for reference in objects:
            masks[index, 0] |= load_mask(reference, size, sample.source or sample.id)
    return Item(sample.id, image[None], sample.prompts, masks)


def load_image(sample: Sample) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a sample; ImageError as for `read_image`."""
    return read_image(sample.image, sample.frame)


def check_polygons(sample: Sample) -> None:
    """Raise AnnotationError where a polygon has fewer than 3 points or a coordinate that is not finite."""
    for index, objects in enumerate(sample.masks or ()):
        for reference in objects:
            parts = reference.parts if isinstance(reference, Polygons) else ()
            for number, part in enumerate(parts):
                try:
                    check_polygon(part, f"{sample.source}: mask {index}, polygon {number}")
                except ValueError as error:
                    raise AnnotationError(f"{error}; draw it again or remove it") from error


def check_size(sample: Sample, size: Size) -> None:
    """Raise AnnotationError unless the size that the annotation states, if any, is that of its image."""
    if sample.size is not None and sample.size != size:
        raise AnnotationError(
            f"{sample.source}: was annotated at {_compare(sample.size, size)}; rescale the coordinates",
            code="size_mismatch",
        )


def load_mask(reference: MaskReference, size: Size, place: str) -> Bool[np.ndarray, "h w"]:
    """One object on an image of `size`; AnnotationError, beginning with `place`, where it does not fit."""
    if isinstance(reference, Absent):
        return np.zeros(size, dtype=bool)
    if isinstance(reference, MaskFile):
        return read_mask(reference.path, size, reference.values, reference.known)
    try:
        if isinstance(reference, Polygons):
            _check_inside(reference, size)
            return rasterize(reference.parts, size)
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


def _name(place: Path) -> str:
    """`arcade` for a folder or its `annotations.json`, `arcade/test` for its `annotations.test.json`."""
    folder = place.resolve() if place.is_dir() else place.resolve().parent
    if place.is_dir() or place.name == "annotations.json":
        return folder.name
    return f"{folder.name}/{place.stem.removeprefix('annotations.')}"


def _notes(samples: list[Sample], merged: tuple[str, ...]) -> list[str]:
    notes = []
    lossy = sum(each.path.suffix.lower() in LOSSY for sample in samples for each in _mask_files(sample))
    if lossy:
        notes.append(f"masks stored as JPEG, where every gray level above 0 counts as the object: {lossy}")
    unknown = Counter(key for sample in samples for key in sample.metadata)
    if unknown:
        counted = ", ".join(f"{key} ({_count(n, 'entry', 'entries')})" for key, n in unknown.items())
        notes.append(f"further keys kept as metadata: {counted}")
    if merged:
        notes.append(f"merged objects of the same phrase: {_count(len(merged), 'image')}")
    return notes


def _mask_files(sample: Sample) -> list[MaskFile]:
    return [each for objects in sample.masks or () for each in objects if isinstance(each, MaskFile)]


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
