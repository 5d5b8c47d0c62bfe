"""What is wrong with a data set, and how much there is of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.data.dataset import LOSSY, DataSet, check_size, load_mask, open_data_set
from vesalius.data.images import read_image, stored_turned
from vesalius.errors import AnnotationError, DataError
from vesalius.masks import Size
from vesalius.types import Absent, Finding, MaskFile, MaskReference, Sample


def inspect(
    data: str | Path, *, split: str | None = None, prompt: str | None = None, group: str | None = None
) -> tuple[DataSet, list[Finding]]:
    """The usable samples of a data set, and all findings, those of entries that cannot be read included.

    Raises DataError where there is no data set at all, SettingError where an argument does not fit it.
    """
    problems: list[DataError] = []
    data_set = open_data_set(data, split=split, prompt=prompt, group=group, problems=problems)
    findings = [_error(str(problem).partition(": ")[0], problem) for problem in problems]
    return data_set, findings + check(data_set)


def check(data_set: DataSet) -> list[Finding]:
    """Findings about the samples: reads every image and mask, and goes on after each error.

    Errors: `image` (cannot be read), `annotation` (a mask does not fit). Warnings: `empty_mask`,
    `turned_image`, `lossy_mask`, `repeated_phrase`, `no_groups`.
    """
    findings = [finding for sample in data_set.samples for finding in _check_sample(sample)]
    if data_set.merged:
        findings.append(_repeated(data_set))
    alone = sum(sample.group is None for sample in data_set.samples)
    if alone:
        message = (
            f"{alone} of {len(data_set.samples)} images have no patient or sequence: each is its own group, "
            "and splits cannot keep frames of one patient together; name a field or expression with --group"
        )
        findings.append(Finding("no_groups", "warning", data_set.name, message))
    return findings


def counts(data_set: DataSet) -> dict[str, Any]:
    """Numbers of a data set, ready for JSON.

    `images`, `pairs` (image x phrase), `objects`, `absent` (pairs whose phrase is not in the image),
    `groups`, `phrases` (phrase -> number of images, the commonest first).
    """
    targets = [objects for sample in data_set.samples for objects in sample.masks or ()]
    drawn = [sum(not isinstance(each, Absent) for each in objects) for objects in targets]
    stated = {sample.group for sample in data_set.samples if sample.group is not None}
    alone = sum(sample.group is None for sample in data_set.samples)
    phrases = Counter(prompt for sample in data_set.samples for prompt in sample.prompts)
    return {
        "images": len(data_set.samples),
        "pairs": sum(phrases.values()),
        "objects": sum(drawn),
        "absent": sum(n == 0 for n in drawn),
        "groups": len(stated) + alone,
        "phrases": dict(phrases.most_common()),
    }


def _check_sample(sample: Sample) -> list[Finding]:
    place = sample.source or sample.id
    try:
        image = read_image(sample.image)
    except DataError as error:
        return [_error(place, error)]
    findings = []
    if stored_turned(sample.image):
        message = "the file asks viewers to turn it (EXIF), so masks drawn in one lie askew; save it upright"
        findings.append(Finding("turned_image", "warning", place, message))
    size = image.shape[0], image.shape[1]
    try:
        check_size(sample, size)
    except DataError as error:
        return [*findings, _error(place, error)]
    for prompt, objects in zip(sample.prompts, sample.masks or (), strict=sample.masks is not None):
        findings += [finding for each in objects for finding in _check_object(each, prompt, size, place)]
    return findings


def _check_object(reference: MaskReference, prompt: str, size: Size, place: str) -> list[Finding]:
    if isinstance(reference, Absent):
        return []
    findings = []
    if isinstance(reference, MaskFile) and reference.path.suffix.lower() in LOSSY:
        message = f"{reference.path} is a JPEG, which blurs its border into the background; save masks as PNG"
        findings.append(Finding("lossy_mask", "warning", place, message))
    try:
        mask: np.ndarray = load_mask(reference, size, place)
    except DataError as error:
        return [*findings, _error(place, error)]
    if not mask.any():
        message = (
            f"the mask of {prompt!r} has no pixel; draw it, or use null if the phrase is not in the image"
        )
        findings.append(Finding("empty_mask", "warning", place, message))
    return findings


def _repeated(data_set: DataSet) -> Finding:
    shown = ", ".join(data_set.merged[:5]) + (", ..." if len(data_set.merged) > 5 else "")
    message = (
        f"{len(data_set.merged)} images have several objects under one phrase ({shown}); their union is the "
        "target: tell them apart in words if each should be found alone"
    )
    return Finding("repeated_phrase", "warning", data_set.name, message)


def _error(place: str, error: DataError) -> Finding:
    code = "annotation" if isinstance(error, AnnotationError) else "image"
    return Finding(code, "error", place, str(error).removeprefix(f"{place}: "))
