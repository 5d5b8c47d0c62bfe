"""Images of samples, gathered in the `images/` of a new dataset."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from vesalius.data.dataset import check_size
from vesalius.data.decoders.frame_files import kind_of
from vesalius.data.decoders.picture import SUFFIXES
from vesalius.data.images import read_image, read_mask
from vesalius.errors import ImageError, OutputError
from vesalius.masks import Size, encode_rle
from vesalius.types import Absent, MaskFile, MaskReference, RleMask, Sample


def place_images(
    samples: Sequence[Sample],
    folder: Path,
    names: Mapping[str, str] | None = None,
    *,
    decode: bool = False,
    copy: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> list[Sample]:
    """The samples as they stand when their images lie in `folder/images/`, each under its id.

    An image is linked where the file system can, and copied where it cannot or with `copy`; a frame of a file of several, and an
    image whose suffix is none of `SUFFIXES`, is decoded and written as PNG, gray where its channels are equal. With
    `decode` every image is: the same pixels, and nothing else that its file held. `names` gives new ids. Masks in
    files of their own become RLE. One image is in memory at a time; `on_progress` hears how many are done.
    Raises ImageError where one cannot be read or found, AnnotationError for a mask that does not fit its image,
    OutputError where two would have the same name or the disk says no.
    """
    images = folder / "images"
    placed = []
    try:
        images.mkdir(parents=True, exist_ok=True)
        for sample in samples:
            name = sample.id if names is None else names[sample.id]
            placed.append(_place(sample, images, name, decode, copy))
            if on_progress is not None:
                on_progress(len(placed))
    except OSError as error:
        raise OutputError(f"{images}: cannot be written ({error.strerror or error})") from error
    return placed


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 (h, w, 3) losslessly, in one channel where the three are equal; FileExistsError if it is there."""
    gray = (pixels == pixels[:, :, :1]).all()
    with path.open("xb") as file:
        Image.fromarray(pixels[:, :, 0] if gray else pixels).save(file, format="PNG")


def _place(sample: Sample, images: Path, name: str, decode: bool, copy: bool) -> Sample:
    if name in ("", "..") or Path(name).name != name or "\0" in name:
        raise OutputError(f"{sample.source or sample.id}: the id {name!r} cannot be a file name")
    anew = decode or _has_to_be_decoded(sample)
    pixels = read_image(sample.image, sample.frame) if anew or _has_mask_files(sample) else None
    target = images / (name + (".png" if anew else sample.image.suffix))
    if pixels is not None:
        check_size(sample, (pixels.shape[0], pixels.shape[1]))
        sample = replace(sample, masks=_read_mask_files(sample, (pixels.shape[0], pixels.shape[1])))
    try:
        if anew and pixels is not None:
            write_png(target, pixels)
        else:
            _link(sample.image, target, copy)
    except FileExistsError:
        raise OutputError(
            f"{target}: there are two images of this name; give each a name of its own, in small letters too"
        ) from None
    return replace(sample, id=name, image=target, frame=None)


def _has_to_be_decoded(sample: Sample) -> bool:
    if sample.image.suffix.lower() not in SUFFIXES:
        return True
    return sample.frame is not None or kind_of(sample.image) is not None


def _has_mask_files(sample: Sample) -> bool:
    return any(isinstance(each, MaskFile) for objects in sample.masks or () for each in objects)


def _read_mask_files(sample: Sample, size: Size) -> tuple[tuple[MaskReference, ...], ...] | None:
    if sample.masks is None:
        return None
    return tuple(tuple(_as_rle(each, size) for each in objects) for objects in sample.masks)


def _as_rle(reference: MaskReference, size: Size) -> MaskReference:
    if not isinstance(reference, MaskFile):
        return reference
    mask = read_mask(reference.path, size, reference.values, reference.known)
    # a class that a map of classes does not show is not there; a mask of its own without a pixel says nothing
    return RleMask(encode_rle(mask)) if reference.values is None or mask.any() else Absent()


def _link(image: Path, target: Path, copy: bool) -> None:
    """A second name for the file; a copy where it is asked for or there can be none: another disk, another owner."""
    source = image.resolve()
    if not source.is_file():
        raise ImageError(f"{image}: there is no such file; give an image file", code="missing_image")
    try:
        if not copy:
            target.hardlink_to(source)
            return
    except FileExistsError:
        raise
    except OSError:
        pass
    try:
        before = source.open("rb")
    except OSError as error:
        raise ImageError(f"{image}: cannot be read ({error.strerror})", code="unreadable_file") from error
    with before, target.open("xb") as after:
        shutil.copyfileobj(before, after)
