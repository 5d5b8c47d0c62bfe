"""Read 2D raw data of nnU-Net: `dataset.json`, `imagesTr/CASE_0000.png`, `labelsTr/CASE.png`.

    {"channel_names": {"0": "X-ray"}, "labels": {"background": 0, "vessel": 1}, "numTraining": 48, "file_ending": ".png"}

The name of a label is the phrase, and its number is the pixel value in the label file. A list of values is a region:
the union of their pixels. Version 1 has `{"0": "background", "1": "vessel"}` and no `file_ending`. Every label is a
prompt of every case. An image must be one file, so three channels must be a color image `CASE_0000.png`.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from vesalius.data.decoders.picture import SUFFIXES
from vesalius.data.readers.fields import is_file, kind, show
from vesalius.data.readers.maskfolder import classes_of
from vesalius.data.source import Problems, Source, read_json, report, reporting
from vesalius.types import Location, Sample, Value

FILE = "dataset.json"
FIRST_ENDING = ".nii.gz"
"""File ending of version 1 datasets, which do not state it."""
Labels = dict[str, tuple[Value, ...]]


def recognize(source: Source) -> bool:
    """True if the source is a folder with `dataset.json` and `imagesTr/`, or the `dataset.json` itself."""
    named = source.path.is_dir() or source.path.name == FILE
    return named and is_file(source.root / FILE) and (source.root / "imagesTr").is_dir()


def read(source: Source, phrase: str = "", problems: Problems = None) -> list[Sample]:
    """Samples of the training cases, sorted by case name, which is the id.

    Raises AnnotationError for an invalid `dataset.json`, files that are not images, and cases without label, without
    image or with several channels. With `problems`, the error of a case is added there and the case is skipped.
    """
    root, path = source.root, source.root / FILE
    top = _read_top(path)
    labels, _ = _read_labels(top.get("labels"), path)
    ending = _read_ending(top, path)
    images = _list_images(root / "imagesTr", ending)
    drawn = {file.name.removesuffix(ending): file for file in _list_files(root / "labelsTr", ending)}
    cases = sorted(images.keys() | drawn.keys())
    if not cases:
        raise Location(root / "imagesTr").error(f"has no image CASE_0000{ending}", "no_image")
    stated = top.get("numTraining")
    if stated is not None and stated != len(cases):
        counts = f"is {show(stated)}, but there are {len(cases)} cases"
        report(Location(path, "numTraining").error(counts, "case_count_mismatch"), problems)
    samples = []
    for case in cases:
        with reporting(problems):
            image = _only_channel(images.get(case, []), case, root, ending)
            if case not in drawn:
                message = f"there is no labelsTr/{case}{ending}"
                raise Location(image).error(message, "unpaired_file", "add it, or remove the image")
            masks = classes_of(drawn[case], labels)
            samples.append(Sample(case, image, tuple(labels), masks, Location(path, f"case {case}")))
    return samples


def notes(source: Source) -> list[str]:
    """Notes on files that are not read (test cases and other file names), and on the label `ignore`."""
    root = source.root
    top = _read_top(root / FILE)
    ending = _read_ending(top, root / FILE)
    found = []
    tests = len(_list_files(root / "imagesTs", ending))
    if tests:
        found.append(f"imagesTs/ is not read, because it has no labels: {tests} files")
    for folder, pattern in (("imagesTr", rf".+_\d{{4}}{re.escape(ending)}"), ("labelsTr", f".+{re.escape(ending)}")):
        others = Counter(
            file.suffix or file.name
            for file in _list_files(root / folder, "")
            if not re.fullmatch(pattern, file.name, re.DOTALL)
        )
        if others:
            counted = ", ".join(f"{suffix} ({n})" for suffix, n in others.items())
            found.append(f"not read in {folder}/, because of their names: {counted}")
    _, ignored = _read_labels(top.get("labels"), root / FILE)
    if ignored is not None:
        found.append(f"the label 'ignore' ({ignored}) marks pixels that are not annotated: images with it are rejected")
    return found


def _read_top(path: Path) -> dict[str, Any]:
    top, where = read_json(path), Location(path)
    if not isinstance(top, dict):
        raise where.error(f"must be an object with labels, not {kind(top)}", "bad_value")
    if "dataset" in top:
        raise where.inside("dataset").error(
            "a list of cases is not supported", "bad_value", "put the cases into imagesTr/ and labelsTr/"
        )
    return top


def _read_labels(value: Any, path: Path) -> tuple[Labels, int | None]:
    """(phrase -> values, without the background; value of the label `ignore`, or None)."""
    where = Location(path, "labels")
    if not isinstance(value, dict) or not value:
        raise where.error('must be an object such as {"background": 0, "vessel": 1}', "invalid_labels")
    if all(key.isdecimal() and isinstance(name, str) for key, name in value.items()):
        value = {name: int(key) if len(key) < 6 else key for key, name in value.items()}
    labels: Labels = {}
    ignored = None
    for name, each in value.items():
        values = each if isinstance(each, list) else [each]
        if not name.strip() or not values or not all(type(one) is int and 0 <= one < 2**16 for one in values):
            raise where.error(
                f"the label {show(name)} must be a name with a whole number or a list of them, not {show(each)}",
                "invalid_labels",
            )
        if values != [0] and (0 in values or name == "background"):
            raise where.error("the background must be 0, and no other label may be 0", "invalid_labels")
        if name == "ignore":
            ignored = values[0]
        elif values != [0]:
            labels[name] = tuple(dict.fromkeys(values))
    if not labels:
        raise where.error("the only label is the background", "invalid_labels")
    return labels, ignored


def _read_ending(top: dict[str, Any], path: Path) -> str:
    ending = top.get("file_ending", FIRST_ENDING)
    if ending not in SUFFIXES:
        raise Location(path, "file_ending").error(
            f"the files end in {show(ending)}, but only {', '.join(SUFFIXES)} are read",
            "unsupported_file_type",
            "write each slice as an image, and its labels as another image",
        )
    return str(ending)


def _list_files(folder: Path, ending: str) -> list[Path]:
    """Files in a folder, sorted by name, except hidden ones; empty without the folder."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in files if file.name.endswith(ending) and file.name[0] != "." and is_file(file)]


def _list_images(folder: Path, ending: str) -> dict[str, list[Path]]:
    """Case -> image files, one for each channel."""
    found: dict[str, list[Path]] = {}
    for file in _list_files(folder, ending):
        match = re.fullmatch(r"(.+)_[0-9]{4}", file.name.removesuffix(ending), re.DOTALL)
        if match:
            found.setdefault(match[1], []).append(file)
    return found


def _only_channel(files: list[Path], case: str, root: Path, ending: str) -> Path:
    name = f"{case}_0000{ending}"
    if files and [file.name for file in files] != [name]:
        message = "is a separate channel, but each image must be one file"
        raise Location(files[-1]).error(message, "separate_channels", f"save all channels as {name}")
    if not files:
        raise Location(root / "labelsTr" / (case + ending)).error(
            f"there is no imagesTr/{name}", "unpaired_file", "add it, or remove the label"
        )
    return files[0]
