"""A folder with `images/` and `masks/`, paired by stem: what the pixels of a mask file show.

Beside them may stand a table of classes, `classes.json`, which makes each mask file a map of classes:

    {"blood vessel": 1, "catheter": 2}       gray levels, or indices of the file's palette
    {"blood vessel": [255, 0, 0]}            colors

Every class is then a prompt of every image: a map also says what is not there. Without the table, pixels other than 0
are the one object of the image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vesalius.data.images import list_images, sample_id
from vesalius.data.readers.fields import kind, show
from vesalius.data.source import Problems, Source, read_json, report
from vesalius.errors import AnnotationError, SettingError
from vesalius.names import list_names
from vesalius.types import MaskFile, Sample, Value

TABLE = "classes.json"


def recognize(source: Source) -> bool:
    """Whether the folder has both `images/` and `masks/`."""
    return (source.path / "images").is_dir() and (source.path / "masks").is_dir()


def read(source: Source, phrase: str = "", problems: Problems = None) -> list[Sample]:
    """Samples of the folder in order of their ids; every mask shows `phrase`, or the classes of the table.

    Subfolders pair too: `images/p1/a.jpg` with `masks/p1/a.png`. Raises SettingError where there is neither phrase nor
    table; AnnotationError for a wrong table, or where a partner is missing or two files have the same stem; with
    `problems`, files without a partner are put there and left out.
    """
    path = source.path
    table = read_table(path / TABLE) if (path / TABLE).exists() else None
    if table is None and not phrase:
        raise SettingError(
            f'{path}: nothing says what the masks show; name it, for example --prompt "blood vessel", '
            f"or give the values of its classes in {TABLE}"
        )
    images, masks = (_by_stem(path / side, problems) for side in ("images", "masks"))
    for side, other, lonely in (
        ("images", "masks", images.keys() - masks.keys()),
        ("masks", "images", masks.keys() - images.keys()),
    ):
        if lonely:
            message = f"{path / side}: no file in {other}/ has the stem of {list_names(sorted(lonely))}; add or remove it"
            report(AnnotationError(message, code="unpaired_file"), problems)
    return [
        Sample(
            stem,
            images[stem],
            tuple(table) if table else (phrase,),
            classes_of(masks[stem], table) if table else ((MaskFile(masks[stem]),),),
            source=str(images[stem]),
        )
        for stem in sorted(images.keys() & masks.keys())
    ]


def read_table(path: Path) -> dict[str, tuple[Value, ...]]:
    """Phrase -> the value of its class; AnnotationError, naming the file, for anything but a table as above.

    The background is 0 or black without saying so; an entry `background` may say it.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise AnnotationError(
            f"{path}: must be an object of phrases and values, not {kind(value)}", code="invalid_class_table"
        )
    found = {phrase: _read_value(each, f"{path}, {show(phrase)}") for phrase, each in value.items()}
    table = {phrase: each for phrase, each in found.items() if each not in (0, (0, 0, 0))}
    if "" in {phrase.strip() for phrase in table} or not table:
        raise AnnotationError(f"{path}: names no phrase; give each class one", code="invalid_class_table")
    nothing = [phrase for phrase in found.keys() - table.keys() if phrase != "background"]
    if nothing:
        raise AnnotationError(
            f"{path}, {show(nothing[0])}: 0 and black are the background; give the class another value",
            code="invalid_class_table",
        )
    if len(set(table.values())) < len(table) or len({type(each) for each in found.values()}) > 1:
        raise AnnotationError(
            f"{path}: the values must be distinct, and all numbers or all colors", code="invalid_class_table"
        )
    return {phrase: (each,) for phrase, each in table.items()}


def classes_of(mask: Path, table: dict[str, tuple[Value, ...]]) -> tuple[tuple[MaskFile], ...]:
    """One map of classes, as the masks of all phrases of its table."""
    known = tuple(dict.fromkeys(value for values in table.values() for value in values))
    return tuple((MaskFile(mask, values, known),) for values in table.values())


def notes(source: Source) -> list[str]:
    """What else lies in the folder, folders with a closing slash; hidden ones are left out."""
    others = (other for other in source.path.iterdir() if other.name not in ("images", "masks", TABLE))
    names = sorted(other.name + "/" * other.is_dir() for other in others if not other.name.startswith("."))
    return [f"ignored beside images/ and masks/: {', '.join(names)}"] if names else []


def _read_value(value: Any, place: str) -> Value:
    if type(value) is int and 0 <= value < 2**16:
        return value
    if (
        isinstance(value, list)
        and len(value) == 3
        and all(type(each) is int and 0 <= each < 256 for each in value)
    ):
        red, green, blue = value
        return red, green, blue
    raise AnnotationError(
        f"{place}: the value of a class must be a whole number from 1 to 65535 or a color [r, g, b], not {show(value)}",
        code="invalid_class_table",
    )


def _by_stem(folder: Path, problems: Problems) -> dict[str, Path]:
    """Sample id -> file."""
    found: dict[str, Path] = {}
    for file in list_images(folder):
        stem = sample_id("images" / file.relative_to(folder))
        if stem in found:
            message = f"{file}: has the same stem as {found[stem].name}; remove one of them"
            report(AnnotationError(message, code="duplicate_id"), problems)
        found.setdefault(stem, file)
    if not found:
        raise AnnotationError(f"{folder}: holds no image; png, jpg, bmp and tif are looked for")
    return found
