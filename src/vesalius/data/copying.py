"""Copy the images of samples to the `images/` folder of a new dataset."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from vesalius.data.dataset import check_size, load_image
from vesalius.data.decoders.frame_files import FrameReader, kind_of
from vesalius.data.decoders.picture import SUFFIXES, is_turned, read_stored
from vesalius.data.images import read_mask
from vesalius.errors import ImageError, OutputError
from vesalius.masks import Size, encode_rle
from vesalius.types import Absent, MaskFile, MaskReference, RleMask, Sample
from vesalius.window import AUTO


def copy_images(
    samples: Sequence[Sample],
    folder: Path,
    names: Mapping[str, str] | None = None,
    *,
    decode: bool = False,
    copy: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> list[Sample]:
    """Copy each image to `folder/images/`, named by its id; returns the samples with their new paths.

    Images are hard-linked, or copied if `copy` is set or linking fails. A frame of a multi-frame file, and an image with
    a suffix not in `SUFFIXES`, is decoded and written as PNG, gray if its channels are equal, and so is an image turned by EXIF, or with a window other
    than `auto`. Such a copy has 8 bits, or 16 if it is a single gray 16-bit image under `auto`. `decode` rewrites every
    image in this way, which removes all file metadata. `names` maps old to new ids. Mask files become RLE. One image is
    in memory at a time; `on_progress` is called with the number of finished images. Raises ImageError for an unreadable
    or missing image, AnnotationError for a mask that does not match its image, OutputError for two images with the same
    name or a failed write.
    """
    images = folder / "images"
    copied = []
    try:
        images.mkdir(parents=True, exist_ok=True)
        with FrameReader() as reader:
            for sample in samples:
                name = sample.id if names is None else names[sample.id]
                copied.append(_copy_image(sample, images, name, decode, copy, reader))
                if on_progress is not None:
                    on_progress(len(copied))
    except OSError as error:
        raise OutputError.at(images, f"cannot be written ({error.strerror or error})", code="write_failed") from error
    return copied


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 (h, w, 3), or uint16 (h, w), as PNG, gray if the channels are equal; FileExistsError if it exists."""
    gray = pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all()
    with path.open("xb") as file:
        Image.fromarray(pixels[:, :, 0] if gray else pixels).save(file, format="PNG")


def _deep_gray(sample: Sample) -> np.ndarray | None:
    """The values of a gray 16-bit picture, upright, uint16 (h, w), for a copy that keeps them; None for other images."""
    if sample.frame is not None or sample.window != AUTO or sample.image.suffix.lower() not in SUFFIXES:
        return None
    stored = read_stored(sample.image)
    if stored.values.dtype != np.uint16 or stored.values.ndim != 2:
        return None
    return 65535 - stored.values if stored.white_is_zero else stored.values


def _copy_image(sample: Sample, images: Path, name: str, decode: bool, copy: bool, reader: FrameReader) -> Sample:
    if name in ("", "..") or Path(name).name != name or "\0" in name:
        raise OutputError(
            f"{sample.source or sample.id}: the id {name!r} is not a valid file name; rename the image",
            code="invalid_file_name",
        )
    decode = decode or _must_decode(sample)
    pixels = load_image(sample, reader) if decode or _has_mask_files(sample) else None
    target = images / (name + (".png" if decode else sample.image.suffix))
    if pixels is not None:
        check_size(sample, (pixels.shape[0], pixels.shape[1]))
        sample = replace(sample, masks=_read_mask_files(sample, (pixels.shape[0], pixels.shape[1])))
    try:
        if decode and pixels is not None:
            values = _deep_gray(sample)
            same_way_up = values is not None and values.shape == pixels.shape[:2]
            write_png(target, values if values is not None and same_way_up else pixels)
        else:
            _link(sample.image, target, copy)
    except FileExistsError:
        raise OutputError.at(
            target,
            "two images have this name; give them names that differ in more than letter case",
            code="duplicate_id",
        ) from None
    return replace(sample, id=name, image=target, frame=None, window=AUTO if decode else sample.window)


def _must_decode(sample: Sample) -> bool:
    """True unless the file itself is what is displayed: one upright image, without a window that was asked for."""
    if sample.image.suffix.lower() not in SUFFIXES or sample.frame is not None or sample.window != AUTO:
        return True
    return kind_of(sample.image) is not None or is_turned(sample.image)


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
    # a class without pixels in a class map is absent; an empty mask file of one object is ambiguous and stays a mask
    return RleMask(encode_rle(mask)) if reference.values is None or mask.any() else Absent()


def _link(image: Path, target: Path, copy: bool) -> None:
    """Hard-link the file, or copy it if `copy` is set or linking fails (another disk, another owner)."""
    source = image.resolve()
    if not source.is_file():
        raise ImageError.at(image, "there is no such file; give an image file", code="missing_image")
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
