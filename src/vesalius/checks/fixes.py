"""A corrected copy of a dataset: what is certain is put right, what is not is dropped, and all of it is listed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from vesalius.checks.correction import Action, Change, Correction, correct
from vesalius.checks.findings import count_errors, finding
from vesalius.checks.inspection import Report, inspect, workers_for
from vesalius.data.copying import copy_images
from vesalius.data.formats import ANNOTATION_FILES
from vesalius.data.writers import vesalius_json
from vesalius.errors import AnnotationError
from vesalius.files import check_new, check_outside, replacing, write_json
from vesalius.parallel import map_in_order
from vesalius.types import Finding, Sample

ACTIONS = get_args(Action)
UNSEEN = ("lossy_mask", "gray_mask")
"""Codes about mask files, which the copy has as RLE: they would be forgotten."""
PART = re.compile(r", (polygon|object) \d+$")
"""How a `Change` calls a part of a phrase."""


@dataclass(frozen=True)
class Fixes:
    """What became of a dataset."""

    changes: tuple[Change, ...]
    kept: int
    """Images in the copy."""
    remaining: tuple[Finding, ...]
    """What `check` says of the copy, and of the mask files that became RLE in it."""

    @property
    def errors(self) -> int:
        """How many of `remaining` are errors."""
        return count_errors(self.remaining)

    @property
    def counts(self) -> dict[str, int]:
        """Images kept, how often each action was done, and of what was dropped how many were images, phrases or parts.

        An entry that was refused when it was read is an image.
        """
        done = Counter(change.action for change in self.changes if change.action != "dropped")
        dropped = Counter(_rank(change) for change in self.changes if change.action == "dropped")
        return {
            "kept": self.kept,
            **{action: done[action] for action in ACTIONS if action != "dropped"},
            **{f"{rank} dropped": dropped[rank] for rank in ("images", "phrases", "parts")},
        }


def check_folder(out: Path, data: Path) -> None:
    """Raise OutputError unless `out` is absent or empty; SettingError where it is the dataset or lies inside of it."""
    check_outside(out, data if data.is_dir() else data.parent)
    check_new(out)


def _rank(change: Change) -> str:
    """What kind of thing a change dropped."""
    if not change.id or change.what == "image":
        return "images"
    return "parts" if PART.search(change.what) else "phrases"


def write_fixed(
    report: Report,
    out: Path,
    *,
    num_workers: int | None = None,
    on_progress: Callable[[float, str], None] = lambda share, note: None,
) -> Fixes:
    """Write the corrected copy of a checked dataset: images, annotations[.SPLIT].json and fixes.json.

    It is in the format `vesalius`, with the phrases and groups that `report` has. Ids stay, but for an image of a
    split whose id another split has for another image. `num_workers` as for `inspect`. Raises AnnotationError where
    nothing would be left of a split, or one cannot be read at all; OutputError where the disk says no, and then there is no `out`.
    """
    changes = _refused(report)
    unscaled: Counter[str] = Counter()
    total = sum(len(part.samples) for part in report.parts.values())
    kept: dict[str, list[Sample]] = {}
    done = 0
    for split, part in report.parts.items():
        kept[split] = []
        seen: dict[str, str] = {}
        for correction in map_in_order(correct, part.samples, workers_for(total, num_workers)):
            again = _find_again(correction, seen)
            changes += [replace(change, split=split) for change in (*correction.changes, *again)]
            if correction.sample is not None and not again:
                kept[split].append(correction.sample)
            unscaled[split] += correction.unscaled
            done += 1
            on_progress(0.5 * done / total, f"{done} of {total} images")
        if not kept[split]:
            raise AnnotationError(
                f"{part.root}: no image of {split or 'it'} can be kept; mend by hand what check lists"
            )
    with replacing(out) as temporary:
        n = _write(kept, temporary, lambda i: on_progress(0.5 + 0.1 * i / total, f"{i} images placed"))
        after = inspect(
            temporary,
            num_workers=num_workers,
            on_progress=lambda share, note: on_progress(0.6 + 0.4 * share, note),
        )
        left = [_at(each, temporary.name, out.resolve().name) for each in after.findings]
        left += [each for each in report.findings if each.code in UNSEEN]
        left += [
            _doubt(n, len(report.parts[split].samples), out / _name(split))
            for split, n in unscaled.items()
            if n > 1
        ]
        fixes = Fixes(tuple(changes), n, tuple(left))
        write_json(temporary / "fixes.json", to_dict(fixes))
    return fixes


def _refused(report: Report) -> list[Change]:
    """Entries and files of which there is no sample: what is said about them names none.

    Raises AnnotationError where it is a whole annotation file, which is not to be dropped like an entry.
    """
    found = [each for each in report.findings if each.severity == "error" and not each.samples]
    for each in found:
        if not each.location and any(Path(each.file).match(pattern) for pattern in ANNOTATION_FILES):
            raise AnnotationError(
                f"{each.file}: {each.message}; mend it, or take it away, before the copy is made"
            )
    return [
        Change("dropped", "", ", ".join(part for part in (each.file, each.location) if part), each.message)
        for each in found
    ]


def to_dict(fixes: Fixes) -> dict[str, Any]:
    """What fixes.json holds: how many images were kept, what was done to which, and what is still to be said."""
    actions = {
        action: [
            {key: value for key, value in asdict(change).items() if key != "action"}
            for change in fixes.changes
            if change.action == action
        ]
        for action in ACTIONS
    }
    return {"kept": fixes.kept, **actions, "remaining": [asdict(each) for each in fixes.remaining]}


def _find_again(correction: Correction, seen: dict[str, str]) -> list[Change]:
    """That the sample is dropped because another of its split is the same in everything; empty where none is."""
    if correction.sample is None or correction.key is None:
        return []
    first = seen.setdefault(correction.key, correction.sample.id)
    if first == correction.sample.id:
        return []
    return [
        Change("dropped", correction.sample.id, "image", f"is the same as {first} in pixels and annotation")
    ]


def _write(kept: Mapping[str, Sequence[Sample]], folder: Path, on_image: Callable[[int], None]) -> int:
    """Images once each, and an annotation file for each split; how many samples there are."""
    placed: dict[tuple[Path, int | None], Sample] = {}
    taken: set[str] = set()
    for split, samples in kept.items():
        # without masks, which the writer reads anyway
        new = [replace(each, masks=None) for each in samples if (each.image, each.frame) not in placed]
        names = {each.id: f"{each.id}__{split}" if each.id in taken else each.id for each in new}
        there = copy_images(new, folder, names, copy=True, on_progress=on_image)
        placed |= {(each.image, each.frame): now for each, now in zip(new, there, strict=True)}
        taken.update(names.values())
        rows = [_on(each, placed[each.image, each.frame]) for each in samples]
        vesalius_json.write(folder / _name(split), rows)
    return sum(map(len, kept.values()))


def _name(split: str) -> str:
    return f"annotations.{split}.json" if split else "annotations.json"


def _doubt(n: int, of: int, file: Path) -> Finding:
    """That the entries which stayed may be wrong as well."""
    message = (
        f"{n} of {of} entries are dropped because nobody knows on what size they were drawn; "
        "other entries may be drawn at the same wrong scale"
    )
    return finding("outside_image", file, "", message)


def _on(sample: Sample, placed: Sample) -> Sample:
    """The sample on its image where that was placed."""
    return replace(sample, id=placed.id, image=placed.image, frame=None)


def _at(found: Finding, before: str, after: str) -> Finding:
    """The finding with the name of the folder that it will lie in."""
    texts = {
        key: getattr(found, key).replace(before, after) for key in ("file", "location", "message", "remedy")
    }
    return replace(found, **texts)
