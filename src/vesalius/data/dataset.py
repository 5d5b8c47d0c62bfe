"""Load datasets: samples from any supported format, and the pixels and masks of a sample.

The format is detected from file contents. In every format, objects with the same phrase on one image are one target:
the prompts of a sample are distinct, in order of first appearance, and their masks are unions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from vesalius.calls import check_kind, checked
from vesalius.data.decoders.decoded import Decoded
from vesalius.data.decoders.exif import SIDES_SWAPPED, UPRIGHT
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.data.decoders.picture import decode
from vesalius.data.formats import FORMATS, detect
from vesalius.data.grouping import note_on_groups, regroup
from vesalius.data.images import decode_image, read_mask, with_window
from vesalius.data.source import Problems
from vesalius.errors import AnnotationError, ImageError, SettingError
from vesalius.language import note
from vesalius.masks import Size, decode_rle, polygon_error, rasterize
from vesalius.names import count_of
from vesalius.types import Absent, Item, MaskFile, MaskReference, Polygons, RleMask, Sample
from vesalius.window import AUTO, Window

LOSSY = (".jpg", ".jpeg")


@dataclass(frozen=True)
class Dataset:
    """Samples with distinct ids, and notes on how they were read."""

    name: str
    format: str
    """Name of the format, a key of `FORMATS`."""
    root: Path
    """Base folder of the sample ids."""
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    """One line for each kind of content that was merged, mapped, ignored or kept as metadata."""
    merged: tuple[str, ...] = ()
    """Ids of samples with several objects of the same phrase in the source."""

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Dataset:
        """A dataset of samples built in Python."""
        return cls("samples", "python", Path(), tuple(samples))

    def annotated(self) -> Dataset:
        """The dataset itself; AnnotationError, naming the first unannotated sample, if there is one."""
        bare = [sample.id for sample in self.samples if not sample.masks]
        if bare:
            raise AnnotationError(
                f"{self.name}: {len(bare)} of {len(self.samples)} samples have no masks (first: {bare[0]})",
                code="unlabeled_image",
                remedy="annotate them, or use null for a phrase that is not in the image",
            )
        return self

    def first(self, n: int) -> Dataset:
        """A dataset of the first `n` samples, with a note; the same dataset if there are not more."""
        if n >= len(self.samples):
            return self
        only = note("only the first {n} of {total} samples", n=n, total=len(self.samples))
        kept = {sample.id for sample in self.samples[:n]}
        merged = tuple(name for name in self.merged if name in kept)
        return replace(self, samples=self.samples[:n], notes=(*self.notes, only), merged=merged)


def open_dataset(
    data: str | Path,
    *,
    split: str | None = None,
    prompt: str | None = None,
    group: str | None = None,
    window: Any = AUTO,
    problems: Problems = None,
) -> Dataset:
    """The dataset in a folder or annotation file.

    `split` picks `annotations.NAME.json` in a folder with several. `prompt` replaces every phrase, and is the phrase of
    an image/mask folder. `group` assigns a patient or sequence to each image (`regroup`). `window`,
    as `Window.parse` reads it, maps pixel values of more than 8 bits to gray levels. Raises DataError for invalid
    data, except for errors of single entries if `problems` collects them; SettingError for an argument that does not
    match the data.
    """
    path = Path(data)
    if prompt is not None and not prompt.strip():
        raise SettingError(
            "the prompt is empty; name what to segment, for example 'blood vessel'", code="bad_value", field="prompt"
        )
    shown = Window.of(window)
    kind, source, notes = detect(path, split)
    found = FORMATS[kind].read(source, prompt or "", problems)
    if problems is None:
        for sample in found:
            check_polygons(sample)
    samples = [merge_phrases(sample) for sample in found]
    merged = tuple(before.id for before, after in zip(found, samples, strict=True) if before.prompts != after.prompts)
    notes += _notes(samples, merged)
    if prompt is not None and any(each.prompts != (prompt,) for each in samples if each.masks is not None):
        notes.append(
            note("every phrase mapped to {prompt}: all objects of an image are one target", prompt=repr(prompt))
        )
        samples = [merge_phrases(replace(each, prompts=(prompt,) * len(each.prompts))) for each in samples]
    if group is not None:
        samples = regroup(samples, group)
    samples = with_window(samples, shown)
    notes.append(note_on_groups(samples))
    return Dataset(_name(source.path), kind, source.root, tuple(samples), tuple(notes), merged)


@checked
def load_samples(
    data: str | Path,
    *,
    split: str | None = None,
    prompt: str | None = None,
    group: str | None = None,
    window: Any = AUTO,
) -> list[Sample]:
    """The samples that `open_dataset` reads with the same arguments.

    >>> from vesalius.synth import write_dataset
    >>> _ = write_dataset("angiograms", 2, size=64, num_workers=0)
    >>> [sample.id for sample in load_samples("angiograms")]
    ['synth_00000', 'synth_00001']
    """
    check_kind(data, str | Path, "data", "the path of a dataset")
    check_kind(split, str | None, "split", "the name of a split, such as train")
    check_kind(prompt, str | None, "prompt", 'a phrase such as "blood vessel"')
    check_kind(group, str | None, "group", "the name of a field, or a regular expression")
    return list(open_dataset(data, split=split, prompt=prompt, group=group, window=window).samples)


@checked
def load_item(sample: Sample, reader: FrameReader | None = None) -> Item:
    """Pixels uint8 (1, h, w, 3) and, if annotated, masks bool (n, 1, h, w), one for each prompt.

    A `reader` keeps videos and volumes open from one frame to the next. Raises ImageError if the image cannot be read;
    AnnotationError, naming the entry, if masks do not match it: a different stated size, coordinates more than a pixel
    outside the image, an invalid RLE, or a mask file of another size.

    >>> from vesalius.synth import write_dataset
    >>> _ = write_dataset("angiograms", 2, size=64, num_workers=0)
    >>> item = load_item(load_samples("angiograms")[0])
    >>> item.frames.shape, item.masks.shape
    ((1, 64, 64, 3), (2, 1, 64, 64))
    """
    check_kind(sample, Sample, "sample", "a Sample, from load_samples")
    check_kind(reader, FrameReader | None, "reader", "a FrameReader")
    decoded = decode_sample(sample, reader)
    image = decoded.pixels
    size = image.shape[0], image.shape[1]
    check_size(sample, size)
    if sample.masks is None:
        return Item(sample.id, image[None], sample.prompts, window=decoded.window)
    masks = np.zeros((len(sample.prompts), 1, *size), dtype=bool)
    for index, objects in enumerate(sample.masks):
        for reference in objects:
            masks[index, 0] |= load_mask(reference, size, str(sample.source or sample.id))
    return Item(sample.id, image[None], sample.prompts, masks, window=decoded.window)


def load_items(samples: Iterable[Sample]) -> Iterator[Item]:
    """The item of each sample, loaded with one shared reader; errors as for `load_item`."""
    with FrameReader() as reader:
        for sample in samples:
            yield load_item(sample, reader)


def load_image(sample: Sample, reader: FrameReader | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of a sample; raises ImageError as `read_image` does."""
    return decode_sample(sample, reader).pixels


def decode_sample(sample: Sample, reader: FrameReader | None = None) -> Decoded:
    """The image of a sample as displayed, with window, depth and orientation; raises ImageError as `read_image` does.

    A photo is upright, unless its annotation states the size at which the file stores it: then it stays as stored,
    because its masks were drawn so.
    """
    decoded = decode_image(sample.image, sample.frame, reader, sample.window)
    if decoded.orientation in SIDES_SWAPPED:
        upright = decoded.pixels.shape[0], decoded.pixels.shape[1]
        if upright != upright[::-1] == stated_size(sample):
            return replace(decoded, pixels=decoded.stored, orientation=UPRIGHT)
    return decoded


def stated_size(sample: Sample) -> Size | None:
    """(h, w) of the image according to its annotation: stated there, or the size of the first mask; None if unknown."""
    for objects in () if sample.size else sample.masks or ():
        for each in objects:
            if isinstance(each, RleMask):
                return each.rle["size"][0], each.rle["size"][1]
            if isinstance(each, MaskFile):
                with suppress(ImageError):
                    mask = decode(each.path)
                    return mask.height, mask.width
    return sample.size


def check_polygons(sample: Sample) -> None:
    """Raise AnnotationError if a polygon has fewer than 3 points or a coordinate that is not finite."""
    for index, objects in enumerate(sample.masks or ()):
        for reference in objects:
            for number, part in enumerate(reference.parts if isinstance(reference, Polygons) else ()):
                if found := polygon_error(part):
                    code, message = found
                    within = f"mask {index}, polygon {number}"
                    raise AnnotationError(
                        f"{sample.source}: {within} {message}",
                        code=code,
                        field=within,
                        remedy="draw it again or remove it",
                    )


def check_size(sample: Sample, size: Size) -> None:
    """Raise AnnotationError if the size stated in the annotation differs from the image size."""
    if sample.size is not None and sample.size != size:
        raise AnnotationError(
            f"{sample.source}: was annotated at {_compare(sample.size, size)}",
            code="size_mismatch",
            remedy="rescale the coordinates",
        )


def load_mask(reference: MaskReference, size: Size, where: str) -> Bool[np.ndarray, "h w"]:
    """Mask of one object on an image of `size`; AnnotationError, starting with `where`, if they do not match."""
    match reference:
        case Absent():
            return np.zeros(size, dtype=bool)
        case MaskFile(path, values, known):
            return read_mask(path, size, values, known)
        case Polygons(parts):
            for part in parts:
                if found := polygon_error(part, size):
                    code, message = found
                    hint = "; was it drawn on a copy of another size?" * (code == "outside_image")
                    raise AnnotationError(f"{where}: a polygon {message}{hint}", code=code)
            return rasterize(parts, size)
        case RleMask(rle):
            stated = rle["size"][0], rle["size"][1]
            if stated != size:
                raise AnnotationError(
                    f"{where}: the RLE has the size {_compare(stated, size)}",
                    code="size_mismatch",
                    remedy="encode it again at the size of this image",
                )
            try:
                return decode_rle(rle)
            except ValueError as error:
                raise AnnotationError(f"{where}: {error}", code="invalid_rle") from error


def merge_phrases(sample: Sample) -> Sample:
    """The sample with each phrase once, in order of first appearance, and all objects of a phrase in one target.

    A phrase that is both marked as absent and annotated with a mask counts as annotated.
    """
    if sample.masks is None:
        return replace(sample, prompts=tuple(dict.fromkeys(sample.prompts)))
    targets: dict[str, list[MaskReference]] = {}
    for prompt, objects in zip(sample.prompts, sample.masks, strict=True):
        targets.setdefault(prompt, []).extend(objects)
    masks = tuple(tuple(_drop_absent(objects)) for objects in targets.values())
    return replace(sample, prompts=tuple(targets), masks=masks)


def epoch_order(n: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """Order of `n` samples in an epoch: a permutation determined by seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(n).astype(np.int64)


def _name(path: Path) -> str:
    """Dataset name: `arcade` for a folder or its `annotations.json`, `arcade/test` for its `annotations.test.json`."""
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    if path.is_dir() or path.name == "annotations.json":
        return folder.name
    return f"{folder.name}/{path.stem.removeprefix('annotations.')}"


def _notes(samples: list[Sample], merged: tuple[str, ...]) -> list[str]:
    notes = []
    lossy = sum(each.path.suffix.lower() in LOSSY for sample in samples for each in _mask_files(sample))
    if lossy:
        notes.append(note("masks stored as JPEG, where every gray level above 0 counts as foreground: {n}", n=lossy))
    unknown = Counter(key for sample in samples for key in sample.metadata)
    if unknown:
        counted = ", ".join(f"{key} ({n} {'entry' if n == 1 else 'entries'})" for key, n in unknown.items())
        notes.append(note("further keys kept as metadata: {keys}", keys=counted))
    if merged:
        notes.append(note("merged objects of the same phrase: {images}", images=count_of(len(merged), "image")))
    return notes


def _mask_files(sample: Sample) -> list[MaskFile]:
    return [each for objects in sample.masks or () for each in objects if isinstance(each, MaskFile)]


def _compare(stated: Size, real: Size) -> str:
    """End of a message: `800 x 800 (h x w) but the image is 512 x 512, ratio 1.562 x 1.562`."""
    ratio = f"{stated[0] / real[0]:.4g} x {stated[1] / real[1]:.4g}"
    return f"{stated[0]} x {stated[1]} (h x w) but the image is {real[0]} x {real[1]}, ratio {ratio}"


def _drop_absent(objects: Iterable[MaskReference]) -> list[MaskReference]:
    drawn: list[MaskReference] = [each for each in objects if not isinstance(each, Absent)]
    return drawn or [Absent()]
