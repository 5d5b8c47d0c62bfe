"""Read a folder with `images/` and `masks/`, paired by stem.

With a class table `classes.json` in the folder, each mask file is a class map:

    {"blood vessel": 1, "catheter": 2}       gray levels, or indices of the file's palette
    {"blood vessel": [255, 0, 0]}            colors

Every class is then a prompt of every image, and a class without pixels is absent. Without the table, the nonzero pixels
are one object.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vesalius.data.images import list_images, sample_id
from vesalius.data.readers.fields import kind, show
from vesalius.data.source import Problems, Source, UniqueIds, read_json, report, reporting
from vesalius.errors import SettingError
from vesalius.names import list_names
from vesalius.types import Location, MaskFile, Sample, Value

TABLE = "classes.json"


def recognize(source: Source) -> bool:
    """True if the folder has both `images/` and `masks/`."""
    return (source.path / "images").is_dir() and (source.path / "masks").is_dir()


def read(source: Source, phrase: str = "", problems: Problems = None) -> list[Sample]:
    """Samples of the folder, sorted by id; the prompts are `phrase`, or the classes of the table.

    Subfolders pair too: `images/p1/a.jpg` with `masks/p1/a.png`. Raises SettingError without phrase and table;
    AnnotationError for an invalid table, an unpaired file, or two files with the same stem. With `problems`, errors
    about files are added there and the files are skipped.
    """
    path = source.path
    table = read_table(path / TABLE) if (path / TABLE).exists() else None
    if table is None and not phrase:
        remedy = f'give one, for example --prompt "blood vessel", or a table of classes in {TABLE}'
        raise SettingError(f"{path}: the masks have no phrase; {remedy}", code="no_phrase", path=path, remedy=remedy)
    images, masks = (_by_stem(path / side, problems) for side in ("images", "masks"))
    for side, other, lonely in (
        ("images", "masks", images.keys() - masks.keys()),
        ("masks", "images", masks.keys() - images.keys()),
    ):
        if lonely:
            error = Location(path / side).error(
                f"no file in {other}/ has the stem of {list_names(sorted(lonely))}", "unpaired_file"
            )
            report(error, problems)
    return [
        Sample(
            stem,
            images[stem],
            tuple(table) if table else (phrase,),
            classes_of(masks[stem], table) if table else ((MaskFile(masks[stem]),),),
            source=Location(images[stem]),
        )
        for stem in sorted(images.keys() & masks.keys())
    ]


def read_table(path: Path) -> dict[str, tuple[Value, ...]]:
    """Phrase -> (class value,); AnnotationError for an invalid class table.

    The background is 0 or black and need not be listed; an entry `background` may list it.
    """
    value, where = read_json(path), Location(path)
    if not isinstance(value, dict):
        raise where.error(f"must be an object that maps phrases to values, not {kind(value)}", "invalid_class_table")
    found = {phrase: _read_value(each, where.inside(show(phrase))) for phrase, each in value.items()}
    table = {phrase: each for phrase, each in found.items() if each not in (0, (0, 0, 0))}
    if "" in {phrase.strip() for phrase in table} or not table:
        raise where.error("a class has no phrase, or there is no class", "invalid_class_table")
    nothing = [phrase for phrase in found.keys() - table.keys() if phrase != "background"]
    if nothing:
        raise where.inside(show(nothing[0])).error("0 and black are the background", "invalid_class_table")
    if len(set(table.values())) < len(table) or len({type(each) for each in found.values()}) > 1:
        raise where.error("the values must be distinct, and all numbers or all colors", "invalid_class_table")
    return {phrase: (each,) for phrase, each in table.items()}


def classes_of(mask: Path, table: dict[str, tuple[Value, ...]]) -> tuple[tuple[MaskFile], ...]:
    """The masks of all phrases of a class table in one class map."""
    known = tuple(dict.fromkeys(value for values in table.values() for value in values))
    return tuple((MaskFile(mask, values, known),) for values in table.values())


def notes(source: Source) -> list[str]:
    """A note that lists other files and folders (with a slash) beside `images/` and `masks/`, except hidden ones."""
    others = (other for other in source.path.iterdir() if other.name not in ("images", "masks", TABLE))
    names = sorted(other.name + "/" * other.is_dir() for other in others if not other.name.startswith("."))
    return [f"ignored beside images/ and masks/: {', '.join(names)}"] if names else []


def _read_value(value: Any, where: Location) -> Value:
    if type(value) is int and 0 <= value < 2**16:
        return value
    if isinstance(value, list) and len(value) == 3 and all(type(n) is int and 0 <= n < 256 for n in value):
        red, green, blue = value
        return red, green, blue
    raise where.error(
        f"the value of a class must be a whole number from 1 to 65535 or a color [r, g, b], not {show(value)}",
        "invalid_class_table",
    )


def _by_stem(folder: Path, problems: Problems) -> dict[str, Path]:
    """Sample id -> image or mask file in the folder."""
    found: dict[str, Path] = {}
    ids = UniqueIds()
    for file in list_images(folder):
        stem = sample_id("images" / file.relative_to(folder))
        with reporting(problems):
            ids.add(stem, Location(file), "remove one of them")
            found[stem] = file
    if not found:
        raise Location(folder).error("has no image", "no_image", "add png, jpg, bmp or tif files")
    return found
