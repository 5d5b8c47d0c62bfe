"""The contact sheet of a check: one HTML file that needs no other, the findings as JSON, and augmented samples.

Report -> check.html, findings.json, augmented.png
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from vesalius.checks import tiles
from vesalius.checks.distributions import draw_distributions
from vesalius.checks.findings import CODES, sums_up
from vesalius.checks.inspection import FEW, Report
from vesalius.checks.names import SUFFIX, hide_persons
from vesalius.data.augment import AugmentSettings
from vesalius.data.augment_figure import draw_examples
from vesalius.errors import DataError
from vesalius.files import check_outside, check_replaceable, replacing, write_json, write_text
from vesalius.parallel import map_in_order
from vesalius.types import Finding, Sample
from vesalius.visualization import Color

PAGE, FINDINGS, AUGMENTED = "check.html", "findings.json", "augmented.png"
FLAGGED_MOST, GOOD_MOST, EXAMPLES = 200, 24, 32
LINES_MOST = 50
"""Findings of one code in the page; all are in findings.json."""
AUGMENTED_WIDTH = 1200
"""Pixels of the augmented samples in the page."""
QUALITY = 80
OF_ALL = ("no_groups",)
"""Codes about a whole dataset: a picture of one sample shows nothing of them."""
MODERATE = AugmentSettings(rotate_degrees=20, scale=0.15, shift=0.05, gamma=0.3, contrast=0.2, noise=4)
"""No mirroring: phrases may name a side."""


@dataclass(frozen=True)
class Tile:
    """A sample in the sheet."""

    id: str
    split: str
    codes: tuple[str, ...]
    picture: str = ""
    """A `data:` address; empty where there is none, `undrawn` says why."""
    legend: tuple[tuple[str, str], ...] = ()
    """(color in CSS, words)"""
    undrawn: tuple[str, ...] = ()


def check_target(folder: Path, data: Path) -> None:
    """Raise OutputError unless `folder` is absent, empty, or a sheet; SettingError where it lies in the dataset."""
    check_outside(folder, data if data.is_dir() else data.parent)
    check_replaceable(folder, "check report", (PAGE, FINDINGS, AUGMENTED), PAGE)


def write_sheet(
    report: Report,
    folder: Path,
    *,
    workers: int | None = None,
    seed: int = 0,
    on_progress: Callable[[float, str], None] = lambda share, note: None,
) -> Path:
    """Write the sheet of a checked dataset into a new folder, or over one; the path of the page.

    Shown are up to 200 samples with findings, every code in turn, and 24 others that `seed` draws. Raises
    OutputError where `folder` holds anything else than a sheet, or the disk says no, SettingError where it lies in the data.
    """
    for part in report.parts.values():
        check_target(folder, part.root)
    flagged = find_flagged(report)
    good = [place for place in _places(report) if place not in flagged]
    rng = np.random.default_rng(seed)
    good = [good[i] for i in sorted(rng.permutation(len(good))[:GOOD_MOST].tolist())]
    shown = list(flagged.items())[:FLAGGED_MOST] + [(place, ()) for place in good]
    drawn = []
    processes = workers if workers is not None else 0 if len(shown) <= FEW else os.cpu_count() or 1
    jobs = [(report.parts[split].samples[i], split, codes) for (split, i), codes in shown]
    for tile in map_in_order(_draw, jobs, processes):
        drawn.append(tile)
        on_progress(0.5 * len(drawn) / len(jobs), tile.id)
    with replacing(folder) as temporary:
        temporary.mkdir()
        write_json(temporary / FINDINGS, to_dict(report))
        examples = _draw_examples(report, seed)
        if examples is not None:
            examples.save(temporary / AUGMENTED)
        write_text(temporary / PAGE, _render(report, drawn, len(flagged), examples))
    return folder / PAGE


def to_dict(report: Report) -> dict[str, Any]:
    """What findings.json holds."""
    parts = report.parts.values()
    return {
        "data": [part.name for part in parts],
        "formats": list(dict.fromkeys(part.format for part in parts)),
        "notes": [note for part in parts for note in part.notes],
        "counts": report.counts,
        "findings": [asdict(finding) for finding in report.findings],
    }


Place = tuple[str, int]
"""Split, and number of a sample in it."""


def find_flagged(report: Report) -> dict[Place, tuple[str, ...]]:
    """Samples with findings -> their codes; errors before warnings, and in each the codes take turns."""
    places: dict[str, list[Place]] = {}
    for split, i in _places(report):
        places.setdefault(report.parts[split].samples[i].id, []).append((split, i))
    codes: dict[Place, dict[str, None]] = {}
    queues: dict[tuple[bool, str], dict[Place, None]] = {}
    for finding in report.findings:
        if finding.code in OF_ALL:
            continue
        found = [place for name in finding.samples for place in places.get(name, ())]
        queues.setdefault((finding.severity != "error", finding.code), {}).update(dict.fromkeys(found))
        for place in found:
            codes.setdefault(place, {})[finding.code] = None
    order: dict[Place, None] = {}
    for mild in (False, True):
        turns = zip_longest(*(queue for key, queue in queues.items() if key[0] == mild))
        order |= dict.fromkeys(place for turn in turns for place in turn if place is not None)
    return {place: tuple(codes[place]) for place in order}


def _places(report: Report) -> Iterable[Place]:
    return [(split, i) for split, part in report.parts.items() for i in range(len(part.samples))]


def _draw(job: tuple[Sample, str, tuple[str, ...]]) -> Tile:
    sample, split, codes = job
    name = hide_persons(sample.id)
    try:
        drawn = tiles.draw(sample)
    except DataError as error:
        return Tile(name, split, codes, undrawn=(hide_persons(str(error), sample.image.parts),))
    legend = tuple((_css(color), words) for color, words in drawn.legend)
    undrawn = tuple(hide_persons(each, sample.image.parts) for each in drawn.undrawn)
    return Tile(name, split, codes, _address(drawn.picture), legend, undrawn)


def _css(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _address(picture: Image.Image) -> str:
    """As JPEG; colors at full resolution, or thin lines would lose theirs."""
    memory = io.BytesIO()
    picture.save(memory, format="JPEG", quality=QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(memory.getvalue()).decode("ascii")


def _draw_examples(report: Report, seed: int) -> Image.Image | None:
    """Augmented samples of those whose masks are all right; None where there are none."""
    right = {(each.split, each.id): len(each.targets) for each in report.measures}
    samples = [(split, report.parts[split].samples[i]) for split, i in _places(report)]
    usable = [each for split, each in samples if each.masks and right[split, each.id] == len(each.prompts)]
    return Image.fromarray(draw_examples(usable, MODERATE, seed, n=EXAMPLES)) if usable else None


def _render(report: Report, drawn: Sequence[Tile], n_flagged: int, examples: Image.Image | None) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # ids, phrases and paths come from outside and may hold HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    if examples is not None:
        examples = examples.convert("RGB")
        examples.thumbnail((AUGMENTED_WIDTH, 4 * AUGMENTED_WIDTH), Image.Resampling.LANCZOS)
    return environment.get_template("check.html.jinja").render(
        names=[part.name for part in report.parts.values()],
        told=to_dict(report),
        severities=[finding.severity for finding in report.findings if not sums_up(finding)],
        kinds=_by_code(report.findings),
        flagged=drawn[: min(n_flagged, FLAGGED_MOST)],
        n_flagged=n_flagged,
        good=drawn[min(n_flagged, FLAGGED_MOST) :],
        charts=draw_distributions(report.measures, report.counts["phrases"]),
        examples=_address(examples) if examples is not None else "",
        augmented=AUGMENTED,
        settings=MODERATE.model_dump(exclude_unset=True),
    )


def _discreet(finding: Finding) -> Finding:
    """The finding without names of persons, which files and the images of entries may have."""
    named = [
        *Path(finding.file).parts,
        *(part for part in re.split(r"[/()]", finding.place) if SUFFIX.search(part)),
    ]
    file, place, message = (
        hide_persons(text, named) for text in (finding.file, finding.place, finding.message)
    )
    return replace(finding, file=file, place=place, message=message)


def _by_code(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Each code that was found, errors first, with its first findings."""
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.code, []).append(finding)
    kinds = [
        {
            "code": code,
            "severity": its[0].severity,
            "meaning": CODES[code].meaning,
            "remedies": list(dict.fromkeys(finding.remedy for finding in its))[:3],
            "n": sum(not sums_up(finding) for finding in its),
            "more": max(0, len(its) - LINES_MOST),
            "shown": [_discreet(finding) for finding in its[:LINES_MOST]],
        }
        for code, its in found.items()
    ]
    return sorted(kinds, key=lambda kind: kind["severity"] != "error")
