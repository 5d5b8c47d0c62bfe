"""Synthetic pictures one by one, and whole datasets of them.

A picture is a function of (seed, index, frame, size, kind) alone: the same bytes in any order and any process.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from vesalius.data.writers import vesalius_json
from vesalius.errors import SettingError
from vesalius.files import check_new, replacing
from vesalius.masks import encode_rle
from vesalius.parallel import map_in_processes
from vesalius.synth import angiogram, fundus
from vesalius.synth.phrases import answer
from vesalius.synth.picture import Picture
from vesalius.synth.tubes import REFERENCE_SIZE
from vesalius.types import Absent, Item, MaskReference, RleMask, Sample

PROMPTS = angiogram.PHRASES
SMALLEST_SIZE, LARGEST_SIZE = 64, 8192
FRAMES_PER_JOB = 8
"""What a process draws of a clip at once; the clip's anatomy is made anew for each job."""
WORTH_PROCESSES = 32
"""Pictures from which on processes are worth their start."""

Kind = Literal["coronary", "retina", "mixed"]
Phrases = Literal["default", "all"]


@dataclass(frozen=True)
class Written:
    """What a dataset holds."""

    images: int
    masks: int
    absent: int
    """Phrases asked about an image in which there is no such thing."""


@dataclass(frozen=True)
class Series:
    """Which pictures: numbers, sizes, and what is asked about them."""

    seed: int = 0
    size: int = REFERENCE_SIZE
    """Side in pixels."""
    frames: int = 1
    """Of each clip; 1 gives still pictures, full of contrast medium."""
    kind: Kind = "coronary"
    """`mixed` alternates: coronary first."""
    phrases: Phrases = "default"
    """`all` asks those too that need reading, and varies which devices there are."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise SettingError(f"seed {self.seed} is negative; give 0 or more")
        if self.size < SMALLEST_SIZE:
            raise SettingError(f"size {self.size} is too small; at least {SMALLEST_SIZE} pixels are needed")
        if self.size > LARGEST_SIZE:
            raise SettingError(f"size {self.size} is too large; at most {LARGEST_SIZE} pixels are drawn")
        if self.frames < 1:
            raise SettingError(f"frames {self.frames} is too small; at least 1 is needed")
        for name, value, known in (("kind", self.kind, Kind), ("phrases", self.phrases, Phrases)):
            if value not in get_args(known):
                raise SettingError(f"{name} {value!r} is unknown; give one of {', '.join(get_args(known))}")
        if self.frames > 1 and self.kind != "coronary":
            raise SettingError(f"kind {self.kind} has no clips, as a retina is one picture; give frames 1")


def draw(
    seed: int,
    index: int,
    size: int = REFERENCE_SIZE,
    *,
    kind: Kind = "coronary",
    phrases: Phrases = "default",
) -> Item:
    """Still picture number `index` of a series, with a mask for each phrase that it asks.

    The same arguments give the same bytes. Twigs and vessels elsewhere are drawn but, as in real annotations, are
    not in the masks; nor is what the collimator hides. What phrases mean, and when one is left out, stands in
    `phrases.py`. Raises SettingError for a size outside of 64 to 8192, a negative seed or an unknown kind.
    """
    return next(_draw(Series(seed, size, 1, kind, phrases), index))[0]


def draw_clip(
    seed: int, index: int, frames: int, size: int = REFERENCE_SIZE, *, phrases: Phrases = "default"
) -> Iterator[Item]:
    """The frames of coronary clip number `index`, 15 a second: the heart beats, and contrast medium comes and goes.

    Each is asked about by itself, so the phrases may differ. Tree and chest are those of `draw` with the same number.
    """
    return (item for item, _ in _draw(Series(seed, size, frames, phrases=phrases), index))


def write_dataset(
    out: Path,
    n: int,
    seed: int = 0,
    size: int = REFERENCE_SIZE,
    on_progress: Callable[[int], None] | None = None,
    *,
    frames: int = 1,
    kind: Kind = "coronary",
    phrases: Phrases = "default",
    num_workers: int | None = None,
) -> Written:
    """Write `n` pictures, or clips of `frames`, and their masks; the folder appears as a whole.

    `out/images/synth_00000.png ...`, or `synth_00000_000.png ...` of clips, and `out/annotations.json`, in which the
    frames of a clip share `sequence`. `num_workers` processes draw, and do not change a byte; 0 is this
    one, and None one a core, unless there are so few pictures that the start of processes would take longer.
    `on_progress` gets the number of pictures written so far. Raises SettingError for settings that `Series` refuses, for
    n < 1 or num_workers < 0; OutputError where `out` exists and is not an empty folder.
    """
    series = Series(seed, size, frames, kind, phrases)
    if n < 1:
        raise SettingError(f"n {n} is too small; at least 1 picture is needed", code="bad_value")
    if num_workers is not None and num_workers < 0:
        raise SettingError(f"num_workers must be 0 or more; got {num_workers}", code="bad_value")
    check_new(out)
    jobs = (
        _Job(series, index, first, min(first + FRAMES_PER_JOB, frames))
        for index in range(n)
        for first in range(0, frames, FRAMES_PER_JOB)
    )
    if num_workers is None:
        num_workers = (os.cpu_count() or 1) if n * frames >= WORTH_PROCESSES else 0
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
        vesalius_json.write(folder / "annotations.json", samples)
    absent = sum(objects == (Absent(),) for sample in samples for objects in sample.masks or ())
    asked = sum(len(sample.prompts) for sample in samples)
    return Written(len(samples), asked - absent, absent)


@dataclass(frozen=True)
class _Job:
    series: Series
    index: int
    first: int
    end: int


def _run(job: _Job) -> list[tuple[bytes, Sample]]:
    """The pictures of a job as PNG, each with its annotation."""
    drawn = _draw(job.series, job.index, job.first, job.end)
    return [(_png(item), _annotate(item, spacing_mm, job)) for item, spacing_mm in drawn]


def _png(item: Item) -> bytes:
    pixels = item.frames[0]
    gray = (pixels == pixels[..., :1]).all()
    file = BytesIO()
    image = Image.fromarray(pixels[..., 0] if gray else pixels)
    # noise repeats nothing, so runs are all that is worth a search: smaller files in less time
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
    """Frames `first` to `end` (all) of a picture or clip, each with the side of its pixels in mm."""
    name, rng = f"synth_{index:05d}", np.random.default_rng([series.seed, index])
    every = series.phrases == "all"
    if series.kind == "retina" or (series.kind == "mixed" and index % 2):
        picture, eye = fundus.photograph(rng, series.size)
        yield _item(name, picture, fundus.ALL_PHRASES if every else fundus.PHRASES), eye.spacing_mm
        return
    # seeds of their own: neither the other devices nor the frames before change a picture's noise or anatomy
    devices = np.random.default_rng([series.seed, index, 0, 1]) if every else None
    scene = angiogram.compose(rng, series.size, series.frames, devices)
    for frame in range(first, series.frames if end is None else end):
        picture = angiogram.take(scene, np.random.default_rng([series.seed, index, 1, frame]), frame)
        label = name if series.frames == 1 else f"{name}_{frame:03d}"
        yield (
            _item(label, picture, angiogram.ALL_PHRASES if every else angiogram.PHRASES),
            scene.tree.view.spacing_mm,
        )


def _item(name: str, picture: Picture, phrases: Sequence[str]) -> Item:
    masks = answer(picture, phrases)
    return Item(name, picture.pixels[None], tuple(masks), np.stack(list(masks.values()))[:, None])
