"""Generation of synthetic images, clips and datasets.

An image depends only on its settings, seed, index and frame: its bytes are the same in any order and in any process.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from vesalius.config import Settings, make_settings
from vesalius.data.writers import vesalius_json
from vesalius.files import check_new, check_replaceable, replacing, write_json
from vesalius.masks import encode_rle
from vesalius.parallel import map_in_processes
from vesalius.synth import angiogram, fundus
from vesalius.synth.phrases import masks_for
from vesalius.synth.picture import Picture
from vesalius.synth.tubes import REFERENCE_SIZE
from vesalius.types import Absent, Item, MaskReference, RleMask, Sample

PROMPTS = angiogram.PHRASES
SMALLEST_SIZE, LARGEST_SIZE = 64, 8192
ANNOTATIONS, MARKER = "annotations.json", "synth.json"
NAMES = ("images", ANNOTATIONS, MARKER)
"""Everything in the folder of a synthetic dataset; a folder with other content is never replaced."""
FRAMES_PER_JOB = 8
"""Maximum number of frames per job; each job generates the anatomy of its clip again."""
MIN_PARALLEL = 32
"""Minimum number of images for which worker processes save time."""

Kind = Literal["coronary", "retina", "mixed"]
Phrases = Literal["default", "all"]


@dataclass(frozen=True)
class Written:
    """Counts of images, masks and absent objects in a written dataset."""

    images: int
    masks: int
    absent: int
    """Number of (image, phrase) pairs with an absent object."""
    already_done: bool = False
    """True if the folder already had this dataset, and nothing was written."""


class Series(Settings):
    """Settings of a series of images; each image is determined by the seed and its index."""

    seed: NonNegativeInt = 0
    size: int = Field(REFERENCE_SIZE, ge=SMALLEST_SIZE, le=LARGEST_SIZE)
    """Height and width in pixels."""
    frames: PositiveInt = 1
    """Frames per clip; 1 gives still images with all vessels filled."""
    kind: Kind = "coronary"
    """`mixed` alternates between both kinds, starting with coronary."""
    phrases: Phrases = "default"
    """`all` adds phrases that need language understanding, and randomizes which devices are present."""

    @model_validator(mode="after")
    def _check_clip(self) -> Self:
        if self.frames > 1 and self.kind != "coronary":
            raise ValueError(f"kind {self.kind} has no clips, because fundus photographs are stills; use frames 1")
        return self


class DatasetSettings(Series):
    """Settings of a dataset: a series of `n` images or clips."""

    n: PositiveInt
    num_workers: NonNegativeInt | None = None


def draw(
    seed: int, index: int, size: int = REFERENCE_SIZE, *, kind: Kind = "coronary", phrases: Phrases = "default"
) -> Item:
    """Still image number `index` of a series, with a mask for each of its phrases.

    The same arguments give the same bytes. Masks exclude objects behind the collimator and, as in real annotations, twigs
    and background vessels. `phrases.py` defines the phrases and when one is omitted. Raises SettingError for a size
    outside 64 to 8192, a negative seed or an unknown kind.
    """
    return next(_draw(_series(seed=seed, size=size, kind=kind, phrases=phrases), index))[0]


def draw_clip(
    seed: int, index: int, frames: int, size: int = REFERENCE_SIZE, *, phrases: Phrases = "default"
) -> Iterator[Item]:
    """The frames of coronary clip number `index`, at 15 frames per second, with heartbeat and contrast inflow.

    Frames may differ in their phrases. Vessel tree and chest equal those of `draw` with the same index.
    """
    return (item for item, _ in _draw(_series(seed=seed, size=size, frames=frames, phrases=phrases), index))


def write_dataset(
    out: str | Path,
    n: int,
    seed: int = 0,
    size: int = REFERENCE_SIZE,
    on_progress: Callable[[int], None] | None = None,
    *,
    frames: int = 1,
    kind: Kind = "coronary",
    phrases: Phrases = "default",
    num_workers: int | None = None,
    overwrite: bool = False,
) -> Written:
    """Write a dataset of `n` images, or `n` clips of `frames` frames, with masks, atomically.

    The files are `out/images/synth_00000.png ...` (`synth_00000_000.png ...` for clips), `out/annotations.json`, where
    the frames of a clip share `sequence`, and `out/synth.json` with settings and counts. A folder with the same settings
    is left as it is; `overwrite` replaces a synthetic dataset when the new one is complete. `num_workers` is the number of processes (0: this process; None: one per core, or
    this process for fewer than `MIN_PARALLEL` images); it does not change the bytes. `on_progress` receives the number of
    images written. Raises SettingError for values outside the bounds of `DatasetSettings`, and OutputError if `out` exists
    and is not an empty folder.
    """
    out = Path(out)
    values = {"seed": seed, "size": size, "frames": frames, "kind": kind, "phrases": phrases}
    series = make_settings(DatasetSettings, values | {"n": n, "num_workers": num_workers}, "synth")
    record = {"settings": values | {"n": n}, "vesalius": version("vesalius")}
    if overwrite:
        check_replaceable(out, "synthetic dataset", NAMES, MARKER)
    elif written := _find_written(out, record):
        return written
    else:
        check_new(out)
    jobs = (
        _Job(series, index, first, min(first + FRAMES_PER_JOB, frames))
        for index in range(n)
        for first in range(0, frames, FRAMES_PER_JOB)
    )
    if num_workers is None:
        num_workers = (os.cpu_count() or 1) if n * frames >= MIN_PARALLEL else 0
    with replacing(out) as folder:
        (folder / "images").mkdir(parents=True)
        samples: list[Sample] = []
        for drawn in map_in_processes(_run, jobs, num_workers):
            for png, sample in drawn:
                path = folder / sample.image
                path.write_bytes(png)
                samples.append(replace(sample, image=path))
                if on_progress is not None:
                    on_progress(len(samples))
        vesalius_json.write(folder / ANNOTATIONS, samples)
        absent = sum(objects == (Absent(),) for sample in samples for objects in sample.masks or ())
        asked = sum(len(sample.prompts) for sample in samples)
        written = Written(len(samples), asked - absent, absent)
        counts = {"images": written.images, "masks": written.masks, "absent": written.absent}
        write_json(folder / MARKER, {**record, "counts": counts})
    return written


def _find_written(out: Path, record: dict[str, Any]) -> Written | None:
    """The counts of the dataset in `out`, if it has these settings and all its images."""
    try:
        found = json.loads((out / MARKER).read_text(encoding="utf-8"))
        written = Written(**found.pop("counts"), already_done=True)
        n_images = sum(1 for _ in (out / "images").iterdir())
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None
    whole = n_images == written.images and (out / ANNOTATIONS).is_file()
    return written if whole and found == record else None


def _series(**values: Any) -> Series:
    return make_settings(Series, values, "synth")


@dataclass(frozen=True)
class _Job:
    series: Series
    index: int
    first: int
    end: int


def _run(job: _Job) -> list[tuple[bytes, Sample]]:
    """The job's images as PNG bytes, each with its annotation."""
    drawn = _draw(job.series, job.index, job.first, job.end)
    return [(_png(item), _annotate(item, spacing_mm, job)) for item, spacing_mm in drawn]


def _png(item: Item) -> bytes:
    pixels = item.frames[0]
    gray = (pixels == pixels[..., :1]).all()
    file = BytesIO()
    image = Image.fromarray(pixels[..., 0] if gray else pixels)
    # Z_RLE: images with noise have no repeated strings, so run-length matching is faster and gives smaller files
    image.save(file, "png", compress_level=1, compress_type=zlib.Z_RLE)
    return file.getvalue()


def _annotate(item: Item, spacing_mm: float, job: _Job) -> Sample:
    assert item.masks is not None
    masks: tuple[tuple[MaskReference, ...], ...] = tuple(
        (RleMask(encode_rle(mask[0])) if mask.any() else Absent(),) for mask in item.masks
    )
    return Sample(
        item.id,
        Path("images", f"{item.id}.png"),
        item.prompts,
        masks,
        group=f"tree_{job.index:05d}",
        sequence=f"synth_{job.index:05d}" if job.series.frames > 1 else None,
        size=item.size,
        spacing_mm=(spacing_mm, spacing_mm),
    )


def _draw(series: Series, index: int, first: int = 0, end: int | None = None) -> Iterator[tuple[Item, float]]:
    """Frames `first` to `end` (exclusive; default: all) of an image or clip, each with its pixel spacing in mm."""
    name, rng = f"synth_{index:05d}", np.random.default_rng([series.seed, index])
    every = series.phrases == "all"
    if series.kind == "retina" or (series.kind == "mixed" and index % 2):
        picture, eye = fundus.photograph(rng, series.size)
        yield _item(name, picture, fundus.ALL_PHRASES if every else fundus.PHRASES), eye.spacing_mm
        return
    # separate generators: neither devices nor earlier frames change the noise or anatomy of a frame
    devices = np.random.default_rng([series.seed, index, 0, 1]) if every else None
    scene = angiogram.compose(rng, series.size, series.frames, devices)
    for frame in range(first, series.frames if end is None else end):
        picture = angiogram.take(scene, np.random.default_rng([series.seed, index, 1, frame]), frame)
        label = name if series.frames == 1 else f"{name}_{frame:03d}"
        yield (
            _item(label, picture, angiogram.ALL_PHRASES if every else angiogram.PHRASES),
            scene.tree.projection.spacing_mm,
        )


def _item(name: str, picture: Picture, phrases: Sequence[str]) -> Item:
    masks = masks_for(picture, phrases)
    return Item(name, picture.pixels[None], tuple(masks), np.stack(list(masks.values()))[:, None])
