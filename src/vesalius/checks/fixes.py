"""`check --fix`: a corrected copy of a dataset, with a list of all changes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from vesalius.checks.correction import Action, Change, Correction, correct
from vesalius.checks.findings import count_errors, finding
from vesalius.checks.inspection import Report, batches_of, inspect, workers_for
from vesalius.data.copying import copy_images
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.data.formats import ANNOTATION_FILES
from vesalius.data.writers import vesalius_json
from vesalius.errors import AnnotationError
from vesalius.files import check_new, check_outside, replacing, write_json
from vesalius.parallel import map_in_processes
from vesalius.types import Finding, Sample

ACTIONS = get_args(Action)
LOST_CODES = ("lossy_mask", "gray_mask")
"""Codes about mask files. They are copied from the input's report, because the copy stores RLE instead of mask files."""
PART = re.compile(r", (polygon|object) \d+$")
"""Matches the end of `Change.part` for a polygon or object of a phrase."""


@dataclass(frozen=True)
class Fixes:
    """Changes made by `check --fix`, and the findings that remain."""

    changes: tuple[Change, ...]
    kept: int
    """Number of images in the copy."""
    remaining: tuple[Finding, ...]
    """Findings about the copy, and about mask files of the input that are RLE in the copy."""

    @property
    def errors(self) -> int:
        """Number of errors in `remaining`."""
        return count_errors(self.remaining)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of kept images, of changes by action, and of dropped images, phrases and parts (polygons or objects).

        An unreadable entry counts as a dropped image.
        """
        done = Counter(change.action for change in self.changes if change.action != "dropped")
        dropped = Counter(_kind(change) for change in self.changes if change.action == "dropped")
        return {
            "kept": self.kept,
            **{action: done[action] for action in ACTIONS if action != "dropped"},
            **{f"{kind} dropped": dropped[kind] for kind in ("images", "phrases", "parts")},
        }


def check_folder(out: Path, data: Path) -> None:
    """Raise OutputError unless `out` is absent or empty; SettingError if it is the dataset or lies in it."""
    check_outside(out, data if data.is_dir() else data.parent)
    check_new(out)


def _kind(change: Change) -> str:
    """`images`, `phrases` or `parts`: what a change dropped."""
    if not change.id or change.part == "image":
        return "images"
    return "parts" if PART.search(change.part) else "phrases"


def write_fixed(
    report: Report,
    out: Path,
    *,
    num_workers: int | None = None,
    on_progress: Callable[[float, str], None] = lambda fraction, note: None,
) -> Fixes:
    """Write the corrected copy of a checked dataset: images, annotations[.SPLIT].json and fixes.json.

    The copy has the format `vesalius`, with the phrases and groups of `report`. Ids are unchanged, unless two splits use
    one id for different images. `num_workers` is as in `inspect`. Raises AnnotationError if a split would be empty or an
    annotation file cannot be read, and OutputError if the copy cannot be written; `out` is then not created.
    """
    changes = _unreadable_entries(report)
    unknown_scale: Counter[str] = Counter()
    total = sum(len(part.samples) for part in report.parts.values())
    kept: dict[str, list[Sample]] = {}
    done = 0
    for split, part in report.parts.items():
        kept[split] = []
        seen: dict[str, str] = {}
        jobs = map_in_processes(_correct_samples, batches_of(part.samples), workers_for(total, num_workers))
        for correction in chain.from_iterable(jobs):
            duplicate = _find_duplicate(correction, seen)
            changes += [replace(change, split=split) for change in (*correction.changes, *duplicate)]
            if correction.sample is not None and not duplicate:
                kept[split].append(correction.sample)
            unknown_scale[split] += correction.has_unknown_scale
            done += 1
            on_progress(0.5 * done / total, f"{done} of {total} images")
        if not kept[split]:
            raise AnnotationError(
                f"{part.root}: no image{f' of {split}' if split else ''} can be kept; correct the listed errors by hand",
                code="nothing_kept",
                path=part.root,
                field=split or None,
            )
    with replacing(out) as temporary:
        n = _write(kept, temporary, lambda i: on_progress(0.5 + 0.1 * i / total, f"{i} images copied"))
        after = inspect(
            temporary,
            num_workers=num_workers,
            on_progress=lambda done, n: on_progress(0.6 + 0.4 * done / n, f"{done} of {n} images checked"),
        )
        left = [_renamed(each, temporary.name, out.resolve().name) for each in after.findings]
        left += [each for each in report.findings if each.code in LOST_CODES]
        left += [
            _unknown_scale(n, len(report.parts[split].samples), out / _name(split))
            for split, n in unknown_scale.items()
            if n > 1
        ]
        fixes = Fixes(tuple(changes), n, tuple(left))
        write_json(temporary / "fixes.json", to_dict(fixes))
    return fixes


def _unreadable_entries(report: Report) -> list[Change]:
    """A change for each unreadable entry or image; AnnotationError for an unreadable annotation file."""
    found = [each for each in report.findings if each.severity == "error" and not each.samples]
    for each in found:
        if not each.location and any(Path(each.file).match(pattern) for pattern in ANNOTATION_FILES):
            raise AnnotationError(
                f"{each.file}: {each.message}; correct or remove it before writing a copy",
                code=each.code,
                path=each.file,
            )
    return [
        Change("dropped", "", ", ".join(part for part in (each.file, each.location) if part), each.message)
        for each in found
    ]


def to_dict(fixes: Fixes) -> dict[str, Any]:
    """The content of fixes.json: the number of kept images, the changes by action, and the remaining findings."""
    actions = {
        action: [
            {key: value for key, value in asdict(change).items() if key != "action"}
            for change in fixes.changes
            if change.action == action
        ]
        for action in ACTIONS
    }
    return {"kept": fixes.kept, **actions, "remaining": [asdict(each) for each in fixes.remaining]}


def _find_duplicate(correction: Correction, seen: dict[str, str]) -> list[Change]:
    """The change that drops a sample if it equals an earlier one of its split, otherwise none."""
    if correction.sample is None or correction.key is None:
        return []
    first = seen.setdefault(correction.key, correction.sample.id)
    if first == correction.sample.id:
        return []
    return [Change("dropped", correction.sample.id, "image", f"equals {first} in pixels and annotation")]


def _correct_samples(samples: list[Sample]) -> list[Correction]:
    with FrameReader() as reader:
        return [correct(sample, reader) for sample in samples]


def _write(kept: Mapping[str, Sequence[Sample]], folder: Path, on_image: Callable[[int], None]) -> int:
    """Write each image once and one annotation file per split; returns the number of samples."""
    placed: dict[tuple[Path, int | None], Sample] = {}
    taken: set[str] = set()
    for split, samples in kept.items():
        # masks are left out here, because the annotation writer reads them
        new = [replace(each, masks=None) for each in samples if (each.image, each.frame) not in placed]
        names = {each.id: f"{each.id}__{split}" if each.id in taken else each.id for each in new}
        there = copy_images(new, folder, names, copy=True, on_progress=on_image)
        placed |= {(each.image, each.frame): now for each, now in zip(new, there, strict=True)}
        taken.update(names.values())
        copies = (placed[each.image, each.frame] for each in samples)
        rows = [
            replace(each, id=copy.id, image=copy.image, frame=None) for each, copy in zip(samples, copies, strict=True)
        ]
        vesalius_json.write(folder / _name(split), rows)
    return sum(map(len, kept.values()))


def _name(split: str) -> str:
    return f"annotations.{split}.json" if split else "annotations.json"


def _unknown_scale(n: int, of: int, file: Path) -> Finding:
    """The finding that kept entries may have the same unknown scale as `n` dropped ones."""
    message = (
        f"{n} of {of} entries are dropped because it is unknown at which image size they were annotated; "
        "other entries may have the same wrong scale"
    )
    return finding("outside_image", file, "", message)


def _renamed(found: Finding, before: str, after: str) -> Finding:
    """The finding with the temporary folder's name replaced by the final one in all its texts."""
    texts = {key: getattr(found, key).replace(before, after) for key in ("file", "location", "message", "remedy")}
    return replace(found, **texts)
