"""Inspection of a dataset: all findings in one pass that reads each image once, in several processes."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vesalius.checks import phrases
from vesalius.checks.duplicates import check_duplicates
from vesalius.checks.findings import error_finding, sample_finding, split_source
from vesalius.checks.images import check_image
from vesalius.checks.masks import check_masks, find_drawn_size
from vesalius.checks.measurements import Measurement
from vesalius.checks.names import check_names, check_unlisted
from vesalius.checks.overlaps import Overlap, check_overlaps
from vesalius.checks.widths import check_widths
from vesalius.data.dataset import Dataset, open_dataset
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.data.formats import ANNOTATION_FILES
from vesalius.data.perceptual_hash import hash_image
from vesalius.errors import DataError, SettingError
from vesalius.masks import Size
from vesalius.parallel import map_in_processes
from vesalius.types import Finding, Polygons, Sample
from vesalius.window import AUTO, ShownRanges, Window, describe_ranges

SAMPLES_PER_JOB = 16
"""Maximum number of samples in a job, unless they are frames of one file."""
FRAMES_PER_JOB = 256
"""Maximum number of frames of one video or volume in a job. It is large because each job opens the file again."""

FOLD = re.compile(r"\.(train|val|test)(ing|id|idation)?$", re.IGNORECASE)
"""Matches the end of the name of a fold's split: `fold1.train`, `fold1.val`."""

FEW = 128
"""Number of samples up to which starting processes (1 to 2 s) takes longer than the work."""


@dataclass(frozen=True)
class Report:
    """Findings, counts and measurements of a dataset, or of all splits of a folder."""

    parts: dict[str, Dataset]
    """Name of the split -> its samples; the only name is "" unless a folder has several annotation files."""
    findings: tuple[Finding, ...]
    counts: dict[str, Any]
    """`phrases.counts` over all splits, plus `overlapping` (pair of naturally overlapping phrases -> number of images) and,
    for several splits, `splits` (name -> number of images)."""
    measurements: tuple[Measurement, ...]
    """One for each sample of each split, in order."""


@dataclass(frozen=True)
class SampleResult:
    """Measurements, findings and overlaps of one sample."""

    measurement: Measurement
    findings: tuple[Finding, ...]
    drawn_at: Size | None = None
    """Image size at which the masks were drawn, if it differs from the size of the image."""
    overlaps: tuple[Overlap, ...] = ()
    reach: float | None = None
    """Largest coordinate divided by the side of the image; None if no coordinate is outside."""


def inspect(
    data: str | Path,
    *,
    split: str | None = None,
    prompt: str | None = None,
    group: str | None = None,
    window: Any = AUTO,
    num_workers: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Inspect a dataset: findings, counts and measurements.

    A folder with several annotation files is checked as a whole, including leaks between its splits, unless `split`
    selects one. `num_workers` processes read the images (0: this process; default: one per core, or this process for up
    to `FEW` samples). `on_progress(done, total)` receives numbers of images. Raises DataError if there
    is no dataset, and SettingError for invalid arguments.
    """
    if num_workers is not None and num_workers < 0:
        message = f"num_workers must be 0 or more; got {num_workers}"
        raise SettingError(message, code="bad_value", field="num_workers")
    findings: list[Finding] = []
    parts: dict[str, Dataset] = {}
    files = find_parts(Path(data), split)
    for name, file in files.items():
        problems: list[DataError] = []
        try:
            parts[name] = open_dataset(file, split=split, prompt=prompt, group=group, window=window, problems=problems)
        except DataError as error:
            if len(files) == 1:
                raise
            problems = [error]
        findings += map(error_finding, problems)
    records = _measure(parts, num_workers, on_progress)
    measurements = [record.measurement for record in records]
    findings += (each for record in records for each in record.findings)
    usual: Counter[str] = Counter()
    for name, dataset in parts.items():
        own = [record for record in records if record.measurement.split == name]
        overlaps, by_nature = check_overlaps(
            [
                (sample, [target.phrase for target in record.measurement.targets], record.overlaps)
                for sample, record in zip(dataset.samples, own, strict=True)
            ]
        )
        usual.update(by_nature)
        findings += overlaps + _check_whole(dataset, own)
    # if one split is selected, images of the others would be reported as unlisted
    if split is None:
        findings += _check_folder(parts, files)
    findings += _check_shared(parts, measurements)
    counted = phrases.counts([sample for dataset in parts.values() for sample in dataset.samples])
    if usual:
        counted["overlapping"] = dict(usual)
    counted |= _count_depths(measurements, Window.of(window))
    if len(parts) > 1:
        counted["splits"] = {name: len(dataset.samples) for name, dataset in parts.items()}
    return Report(parts, tuple(findings), counted, tuple(measurements))


def _count_depths(measurements: Sequence[Measurement], window: Window) -> dict[str, Any]:
    """`depth` (type of the stored values -> number of images), and `window`, one line, if there are deep images."""
    shown = ShownRanges()
    for each in measurements:
        if each.window is not None:
            shown.add(each.window)
    depths = dict(Counter(each.depth for each in measurements if each.depth))
    return {"depth": depths, **({"window": describe_ranges(shown.as_json(), window)} if shown.n else {})}


def workers_for(n: int, num_workers: int | None) -> int:
    """Number of processes: `num_workers` if given; else 0 (this process) for up to `FEW` samples, else one per core."""
    if num_workers is not None:
        return num_workers
    return 0 if n <= FEW else os.cpu_count() or 1


def find_parts(data: Path, split: str | None) -> dict[str, Path]:
    """Name of each split of a folder -> its annotation file; for a single file or split, the name is ""."""
    if split is not None or not data.is_dir():
        return {"": data}
    files = sorted(file for pattern in ANNOTATION_FILES for file in data.glob(pattern))
    if len(files) < 2:
        return {"": files[0] if files else data}
    names = [file.stem.removeprefix("annotations").lstrip("._-") or file.name for file in files]
    distinct = len(set(names)) == len(names)
    return dict(zip(names if distinct else [file.name for file in files], files, strict=True))


def _measure(
    parts: dict[str, Dataset], num_workers: int | None, on_progress: Callable[[int, int], None]
) -> list[SampleResult]:
    n = sum(len(dataset.samples) for dataset in parts.values())
    records: list[SampleResult] = []
    jobs = ((name, batch) for name, part in parts.items() for batch in batches_of(part.samples))
    for batch in map_in_processes(inspect_samples, jobs, workers_for(n, num_workers)):
        records += batch
        on_progress(len(records), n)
    return records


def batches_of(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Batches of consecutive samples for worker processes; frames of one file stay together."""
    batch: list[Sample] = []
    for sample in samples:
        same_file = batch and batch[-1].image == sample.image
        if len(batch) >= (FRAMES_PER_JOB if same_file else SAMPLES_PER_JOB):
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


def inspect_samples(job: tuple[str, list[Sample]]) -> list[SampleResult]:
    """Results of `inspect_sample` for the samples of one (split, samples) job."""
    split, samples = job
    with FrameReader() as reader:
        return [inspect_sample(sample, split, reader) for sample in samples]


def inspect_sample(sample: Sample, split: str = "", reader: FrameReader | None = None) -> SampleResult:
    """Measurements and findings of one sample. Its image and masks are read once and released."""
    measurement = Measurement(sample.id, split, str(sample.image), sample.group, sample.sequence)
    decoded, findings = check_image(sample, reader)
    if sample.masks is None:
        findings.append(sample_finding("unlabeled_image", sample, "has no annotation"))
    if decoded is None:
        return SampleResult(measurement, tuple(findings))
    pixels = decoded.pixels
    size = pixels.shape[0], pixels.shape[1]
    targets, overlaps, found = check_masks(sample, size)
    measurement = replace(
        measurement, size=size, hashes=hash_image(pixels), depth=decoded.depth, window=decoded.window, targets=targets
    )
    reach = _find_reach(sample, size) if any(each.code == "outside_image" for each in found) else None
    return SampleResult(measurement, (*findings, *found), find_drawn_size(sample, size), tuple(overlaps), reach)


def _find_reach(sample: Sample, size: Size) -> float:
    """Largest polygon coordinate, divided by the side of the image along the same axis."""
    references = [each for objects in sample.masks or () for each in objects if isinstance(each, Polygons)]
    parts = [part for reference in references for part in reference.parts]
    x, y = ([each for part in parts for each in part[axis::2] if math.isfinite(each)] for axis in (0, 1))
    return max(max(x) / size[1], max(y) / size[0])


def _check_whole(dataset: Dataset, records: list[SampleResult]) -> list[Finding]:
    """Findings about a whole split."""
    n = len(records)
    file, location = split_source(dataset.samples[0]) if n else ("", "")
    name = file if location else str(dataset.root)
    drawn = [
        (record.measurement.id, record.drawn_at, record.measurement.size)
        for record in records
        if record.drawn_at is not None and record.measurement.size is not None
    ]
    reach = [(record.measurement.id, record.reach) for record in records if record.reach is not None]
    return [
        *phrases.check_sizes(drawn, n, name),
        *phrases.check_reach(reach, n, name),
        *phrases.check_phrases(dataset, name),
        *phrases.check_groups(dataset, name),
        *check_widths([record.measurement for record in records], name),
        *check_names(dataset),
    ]


def families(names: Sequence[str]) -> list[set[str]]:
    """Sets of splits that must be disjoint: the splits of one fold (`a.train`, `a.val`) and all splits without fold."""
    folds = {name: name.rpartition(".")[0] if FOLD.search(name) else "" for name in names}
    alone = {name for name, fold in folds.items() if not fold}
    each = dict.fromkeys(fold for fold in folds.values() if fold)
    return [alone | {name for name in names if folds[name] == fold} for fold in each] or [alone]


def _check_shared(parts: dict[str, Dataset], measurements: Sequence[Measurement]) -> list[Finding]:
    """Findings about duplicates within splits and leaks between splits that must be disjoint, without repetition."""
    findings: dict[Finding, None] = {}
    for family in families(list(parts)):
        among = {name: part for name, part in parts.items() if name in family}
        found = phrases.check_group_leaks(among)
        found += check_duplicates([each for each in measurements if each.split in family])
        findings |= dict.fromkeys(found)
    return list(findings)


def _check_folder(parts: dict[str, Dataset], files: dict[str, Path]) -> list[Finding]:
    """Finding `unlisted_image` about images that no annotation file of the folder lists."""
    annotations = [file for file in files.values() if file.is_file()]
    if len(annotations) == 1 and any(annotations[0].match(pattern) for pattern in ANNOTATION_FILES):
        folder = annotations[0].parent
        annotations = sorted(file for pattern in ANNOTATION_FILES for file in folder.glob(pattern))
    if not parts or not annotations:
        return []
    return check_unlisted(list(parts.values()), annotations)
