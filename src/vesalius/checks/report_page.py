"""Report of a check: check.html with thumbnails of samples, findings.json, and augmented.png."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vesalius.checks import thumbnails
from vesalius.checks.distributions import draw_distributions
from vesalius.checks.findings import is_summary
from vesalius.checks.inspection import Report, workers_for
from vesalius.checks.names import SUFFIX, hide_persons
from vesalius.codes import CODES, chinese_codes
from vesalius.colors import Color, as_css, phrase_colors
from vesalius.data.augment import AugmentSettings
from vesalius.data.augment_figure import draw_examples
from vesalius.errors import DataError
from vesalius.files import check_outside, check_replaceable, replacing, write_json, write_text
from vesalius.language import current
from vesalius.pages import as_data_url, render
from vesalius.parallel import map_in_processes
from vesalius.types import Finding, Sample

PAGE, FINDINGS, AUGMENTED = "check.html", "findings.json", "augmented.png"
MAX_FLAGGED, MAX_GOOD, EXAMPLES = 200, 24, 32
"""Maximum number of samples with findings, without findings, and augmented."""
MAX_LISTED = 50
"""Maximum number of findings per code in the page; findings.json has all of them."""
AUGMENTED_WIDTH = 1200
"""Width of the figure of augmented samples in the page, in pixels."""
DATASET_CODES = ("no_groups",)
"""Codes about a whole dataset, for which no samples are shown."""
MODERATE = AugmentSettings(rotate_degrees=20, scale=0.15, shift=0.05, gamma=0.3, contrast=0.2, noise=4)
"""Augmentation of the example figure; without flips, because phrases may name a side."""


@dataclass(frozen=True)
class SampleFigure:
    """The thumbnail of a sample in the page, with its caption."""

    id: str
    split: str
    codes: tuple[str, ...]
    picture: str = ""
    """A `data:` URL; empty if the image cannot be drawn (`undrawn` has the reason)."""
    legend: tuple[tuple[str, str], ...] = ()
    """(CSS color, text) of each entry."""
    undrawn: tuple[str, ...] = ()
    """Reason for the image, or each mask, that is not drawn."""


def check_folder(folder: Path, data: Path) -> None:
    """Raise OutputError unless `folder` is absent, empty or a check report; SettingError if it lies in the dataset."""
    check_outside(folder, data if data.is_dir() else data.parent)
    check_replaceable(folder, "check report", (PAGE, FINDINGS, AUGMENTED), PAGE)


def write_page(
    report: Report,
    folder: Path,
    *,
    num_workers: int | None = None,
    seed: int = 0,
    on_progress: Callable[[float, str], None] = lambda fraction, note: None,
) -> Path:
    """Write the report of a checked dataset to a new folder, or replace an older report; returns the path of the page.

    The page shows up to 200 samples with findings, round-robin over the codes, and 24 samples without, sampled with
    `seed`. Raises OutputError if `folder` has any other content or cannot be written, and SettingError if it lies in the
    dataset.
    """
    for part in report.parts.values():
        check_folder(folder, part.root)
    flagged = find_flagged(report)
    good = [index for index in _indices(report) if index not in flagged]
    rng = np.random.default_rng(seed)
    good = [good[i] for i in sorted(rng.permutation(len(good))[:MAX_GOOD].tolist())]
    shown = list(flagged.items())[:MAX_FLAGGED] + [(index, ()) for index in good]
    figures: list[SampleFigure] = []
    colors = report_colors(report)
    jobs = [
        (sample, split, codes, {prompt: colors[prompt] for prompt in sample.prompts})
        for sample, split, codes in ((report.parts[split].samples[i], split, codes) for (split, i), codes in shown)
    ]
    for figure in map_in_processes(_draw, jobs, workers_for(len(jobs), num_workers)):
        figures.append(figure)
        on_progress(0.5 * len(figures) / len(jobs), figure.id)
    with replacing(folder) as temporary:
        temporary.mkdir()
        write_json(temporary / FINDINGS, to_dict(report))
        examples = _draw_examples(report, seed)
        if examples is not None:
            examples.save(temporary / AUGMENTED)
        write_text(temporary / PAGE, _render(report, figures, len(flagged), examples))
    return folder / PAGE


def to_dict(report: Report) -> dict[str, Any]:
    """The content of findings.json."""
    parts = report.parts.values()
    return {
        "data": [part.name for part in parts],
        "formats": list(dict.fromkeys(part.format for part in parts)),
        "notes": [note for part in parts for note in part.notes],
        "counts": report.counts,
        "findings": [asdict(finding) for finding in report.findings],
    }


SampleIndex = tuple[str, int]
"""A split, and the index of a sample in it."""


def find_flagged(report: Report) -> dict[SampleIndex, tuple[str, ...]]:
    """Samples with findings -> their codes; errors first, round-robin over the codes of each severity."""
    indices: dict[str, list[SampleIndex]] = {}
    for split, i in _indices(report):
        indices.setdefault(report.parts[split].samples[i].id, []).append((split, i))
    codes: dict[SampleIndex, dict[str, None]] = {}
    queues: dict[tuple[bool, str], dict[SampleIndex, None]] = {}
    for finding in report.findings:
        if finding.code in DATASET_CODES:
            continue
        found = [index for name in finding.samples for index in indices.get(name, ())]
        queues.setdefault((finding.severity != "error", finding.code), {}).update(dict.fromkeys(found))
        for index in found:
            codes.setdefault(index, {})[finding.code] = None
    order: dict[SampleIndex, None] = {}
    for mild in (False, True):
        turns = zip_longest(*(queue for key, queue in queues.items() if key[0] == mild))
        order |= dict.fromkeys(index for turn in turns for index in turn if index is not None)
    return {index: tuple(codes[index]) for index in order}


def _indices(report: Report) -> Iterable[SampleIndex]:
    return [(split, i) for split, part in report.parts.items() for i in range(len(part.samples))]


def report_colors(report: Report) -> dict[str, Color]:
    """Phrase -> color, in the order in which the phrases first occur in the dataset."""
    samples = (sample for part in report.parts.values() for sample in part.samples)
    return phrase_colors(prompt for sample in samples for prompt in sample.prompts)


def _draw(job: tuple[Sample, str, tuple[str, ...], Mapping[str, Color]]) -> SampleFigure:
    sample, split, codes, colors = job
    name = hide_persons(sample.id)
    try:
        drawn = thumbnails.draw(sample, colors)
    except DataError as error:
        return SampleFigure(name, split, codes, undrawn=(hide_persons(str(error), sample.image.parts),))
    legend = tuple((as_css(color), text) for color, text in drawn.legend)
    undrawn = tuple(hide_persons(each, sample.image.parts) for each in drawn.undrawn)
    return SampleFigure(name, split, codes, as_data_url(drawn.picture), legend, undrawn)


def _draw_examples(report: Report, seed: int) -> Image.Image | None:
    """Figure of augmented samples with a valid mask for each phrase; None if there are none."""
    valid = {(each.split, each.id): len(each.targets) for each in report.measurements}
    samples = [(split, report.parts[split].samples[i]) for split, i in _indices(report)]
    usable = [each for split, each in samples if each.masks and valid[split, each.id] == len(each.prompts)]
    return (
        Image.fromarray(draw_examples(usable, MODERATE, seed, n=EXAMPLES, colors=report_colors(report)))
        if usable
        else None
    )


def _render(report: Report, figures: Sequence[SampleFigure], n_flagged: int, examples: Image.Image | None) -> str:
    shown = min(n_flagged, MAX_FLAGGED)
    kinds = _by_code(report.findings)
    values = {
        "names": [part.name for part in report.parts.values()],
        "report": to_dict(report),
        "severities": [finding.severity for finding in report.findings if not is_summary(finding)],
        "kinds": kinds,
        "severity_of": {kind["code"]: kind["severity"] for kind in kinds},
        "flagged": figures[:shown],
        "n_flagged": n_flagged,
        "good": figures[shown:],
        "charts": draw_distributions(report.measurements, report.counts["phrases"]),
        "examples": as_data_url(examples, AUGMENTED_WIDTH) if examples is not None else "",
        "augmented": AUGMENTED,
        "settings": MODERATE.model_dump(exclude_unset=True),
    }
    return render(Path(__file__).with_name("report_page.html.jinja"), values)


def _anonymous(finding: Finding) -> Finding:
    """The finding with personal names masked in its file, location and message."""
    named = [*Path(finding.file).parts, *(part for part in re.split(r"[/()]", finding.location) if SUFFIX.search(part))]
    file, location, message = (hide_persons(text, named) for text in (finding.file, finding.location, finding.message))
    return replace(finding, file=file, location=location, message=message)


def _by_code(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Per code, errors first: meaning, remedies, counts and the first `MAX_LISTED` findings.

    In Chinese the meaning and remedy are those of the code; the findings keep their English messages.
    """
    chinese = current() == "zh"
    codes = chinese_codes() if chinese else CODES
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.code, []).append(finding)
    kinds = [
        {
            "code": code,
            "severity": its[0].severity,
            "meaning": codes[code].meaning,
            "remedies": list(dict.fromkeys(codes[code].remedy if chinese else finding.remedy for finding in its))[:3],
            "n": sum(not is_summary(finding) for finding in its),
            "more": max(0, len(its) - MAX_LISTED),
            "shown": [_anonymous(finding) for finding in its[:MAX_LISTED]],
        }
        for code, its in found.items()
    ]
    return sorted(kinds, key=lambda kind: kind["severity"] != "error")
