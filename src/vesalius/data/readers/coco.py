"""COCO instances: one JSON file with images, annotations and categories.

    {"images": [{"id": 1, "file_name": "a.png", "height": h, "width": w}, ...],
     "annotations": [{"image_id": 1, "category_id": 1, "segmentation": polygons or RLE, "iscrowd": 0}, ...],
     "categories": [{"id": 1, "name": "vessel"}, ...]}

The name of a category is the phrase, each annotation one object of it, crowds included. What is not in an
image is said as LVIS does, by `neg_category_ids` in its record. Where a record has no such field and no
annotation, the image shows nothing of a file's only category; with several categories nobody knows, and it
is not annotated. A record may have `group`, `sequence`, `frame` and `spacing_mm` as in the format of the
house; its other keys are metadata.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vesalius.data.images import frame_id
from vesalius.data.readers import fields
from vesalius.data.readers.fields import kind, show
from vesalius.data.sample_fields import KEYS as PARTICULARS
from vesalius.data.sample_fields import read_particulars
from vesalius.data.source import Problems, Source, report
from vesalius.errors import AnnotationError
from vesalius.masks import Size
from vesalius.types import Absent, MaskReference, Sample

KEYS = ("id", "file_name", "height", "width", "neg_category_ids", *PARTICULARS)
"""Of an image record; others are metadata."""

ANNOTATION_KEYS = ("id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd")

Id = int | str


@dataclass(frozen=True)
class _Image:
    """A record of `images`, and the rows that annotations add to it."""

    id: str
    path: Path
    place: str
    size: Size | None
    absent: tuple[str, ...] | None
    """What `neg_category_ids` says; None where the record has no such field."""
    particulars: dict[str, Any]
    metadata: dict[str, Any]
    rows: list[tuple[str, MaskReference]] = field(default_factory=list)


def recognize(source: Source) -> bool:
    """Whether it is a JSON file whose top has the lists `images` and `annotations`."""
    value = source.json
    return isinstance(value, dict) and all(
        isinstance(value.get(key), list) for key in ("images", "annotations")
    )


def read(source: Source, phrase: str = "", problems: Problems = None) -> list[Sample]:
    """Samples in the order of `images`; one prompt for each annotation, in their order, then what is absent.

    Images lie beside the file, in `images/` there, or in a folder of either that is named like the split,
    which is the last word of the file's name; for a file in `annotations/` these folders lie beside that
    one. Raises AnnotationError naming the file and the index (from 0) of the image, annotation or category;
    with `problems` it is put there, and an image is left out whole where its record or one of its
    annotations is wrong.
    """
    value = _read_top(source)
    categories = _read_categories(value["categories"], source.path, problems)
    images, refused = _read_images(value["images"], source, categories, problems)
    wrong: set[Id | None] = set()
    for index, annotation in enumerate(value["annotations"]):
        place, image_id = f"{source.path}, annotation {index}", None
        try:
            image_id = _read_id(annotation, "image_id", place)
            if image_id in refused:
                continue
            if image_id not in images:
                raise AnnotationError(f"{place}: no image has the id {show(image_id)}", code="unknown_id")
            image = images[image_id]
            image.rows.append(_read_annotation(annotation, place, image.size, categories))
        except AnnotationError as error:
            wrong.add(image_id)
            report(error, problems)
    only = tuple(categories.values()) if len(value["categories"]) == 1 else ()
    return [_sample(image, only) for name, image in images.items() if name not in wrong]


def notes(source: Source) -> list[str]:
    """How crowds and images without annotation are read, and what of the annotations is not."""
    annotations = [each for each in source.json["annotations"] if isinstance(each, dict)]
    found = []
    crowds = sum(each.get("iscrowd") == 1 for each in annotations)
    if crowds:
        found.append(f"crowds (iscrowd) read as objects of their category: {crowds}")
    ignored = Counter(key for each in annotations for key in each if key not in ANNOTATION_KEYS)
    if ignored:
        counted = ", ".join(f"{key} ({n})" for key, n in ignored.items())
        found.append(f"keys of annotations that are not kept: {counted}")
    drawn = {each["image_id"] for each in annotations if isinstance(each.get("image_id"), Id)}
    silent = sum(
        isinstance(each, dict)
        and each.get("neg_category_ids") is None
        and isinstance(each.get("id"), Id)
        and each["id"] not in drawn
        for each in source.json["images"]
    )
    if silent:
        only = len(source.json.get("categories") or ()) == 1
        how = "showing nothing of the only category" if only else "not annotated"
        found.append(f"images without annotation, read as {how}: {silent}")
    return found


def _read_top(source: Source) -> dict[str, list[Any]]:
    value = source.json
    if not isinstance(value, dict):
        raise AnnotationError(
            f"{source.path}: must hold an object with images and annotations, not {kind(value)}"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(value.get(key), list):
            raise AnnotationError(f"{source.path}: {key} must be a list, not {kind(value.get(key))}")
    if not value["images"]:
        raise AnnotationError(f"{source.path}: names no image; give at least one")
    return value


def _read_categories(records: list[Any], path: Path, problems: Problems) -> dict[Id, str]:
    """Id -> name; the same name under two ids is one phrase."""
    categories: dict[Id, str] = {}
    for index, record in enumerate(records):
        place = f"{path}, category {index}"
        try:
            number = _read_id(record, "id", place)
            name = record.get("name")
            if not isinstance(name, str) or not name.strip():
                found = kind(name) if name else "empty"
                raise AnnotationError(f"{place}: name must be a phrase, not {found}", code="no_phrase")
            if number in categories:
                raise AnnotationError(
                    f"{place}: has the same id {show(number)} as another", code="duplicate_id"
                )
        except AnnotationError as error:
            report(error, problems)
        else:
            categories[number] = name
    return categories


def _read_images(
    records: list[Any], source: Source, categories: Mapping[Id, str], problems: Problems
) -> tuple[dict[Id, _Image], set[Id | None]]:
    """Id -> image, and the ids of those that are refused."""
    root, folders = _find_folders(source)
    images: dict[Id, _Image] = {}
    refused: set[Id | None] = set()
    places: dict[str, str] = {}
    for index, record in enumerate(records):
        place, number = f"{source.path}, image {index}", None
        try:
            number = _read_id(record, "id", place)
            if number in images or number in refused:
                raise AnnotationError(
                    f"{place}: has the same id {show(number)} as another", code="duplicate_id"
                )
            image = _read_image(record, place, root, folders, categories)
            if image.id in places:
                raise AnnotationError(
                    f"{image.place}: has the same sample id {image.id} as {places[image.id]}; "
                    "list each image once, and name images apart by more than the suffix",
                    code="duplicate_id",
                )
        except AnnotationError as error:
            refused.add(number)
            report(error, problems)
        else:
            images[number] = image
            places[image.id] = image.place
    return images, refused - images.keys()


def _find_folders(source: Source) -> tuple[Path, tuple[str, ...]]:
    """The folder that images must be in, and its folders in which each is looked for, in this order."""
    split = re.split(r"[._]", source.path.stem)[-1]
    folder = source.path.absolute().parent
    if folder.name == "annotations":
        return folder.parent, (folder.name, split, f"images/{split}", "images", "")
    return source.root, ("", f"images/{split}", "images", split)


def _read_image(
    record: dict[str, Any], place: str, root: Path, folders: Sequence[str], categories: Mapping[Id, str]
) -> _Image:
    path, name = fields.find_image(record.get("file_name"), place, root, folders)
    named = f"{place} ({record['file_name']})"
    size = [record.get("height"), record.get("width")]
    metadata = {key: value for key, value in record.items() if key not in KEYS}
    fields.check_metadata(metadata, named)
    particulars = read_particulars(record, named)
    frame = particulars["frame"]
    return _Image(
        id=name if frame is None else frame_id(name, frame),
        path=path,
        place=named,
        size=None if size == [None, None] else fields.read_size(size, named),
        absent=_read_absent(record.get("neg_category_ids"), named, categories),
        particulars=particulars,
        metadata=metadata,
    )


def _read_absent(value: Any, place: str, categories: Mapping[Id, str]) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(each) in (int, str) for each in value):
        raise AnnotationError(f"{place}: neg_category_ids must be a list of ids, not {show(value)}")
    unknown = [each for each in value if each not in categories]
    if unknown:
        raise AnnotationError(f"{place}: no category has the id {show(unknown[0])}", code="unknown_id")
    return tuple(categories[each] for each in value)


def _read_annotation(
    annotation: dict[str, Any], place: str, size: Size | None, categories: Mapping[Id, str]
) -> tuple[str, MaskReference]:
    """Its phrase and its mask."""
    category = _read_id(annotation, "category_id", place)
    if category not in categories:
        raise AnnotationError(f"{place}: no category has the id {show(category)}", code="unknown_id")
    shape = annotation.get("segmentation")
    if shape is None or shape in ([], {}):
        box = "only a box (bbox) and " if annotation.get("bbox") else ""
        raise AnnotationError(
            f"{place}: has {box}no segmentation; draw its mask or remove it", code="no_mask"
        )
    if isinstance(shape, dict):
        return categories[category], fields.read_rle(shape, place, size)
    if not isinstance(shape, list):
        raise AnnotationError(f"{place}: segmentation must be polygons or RLE, not {kind(shape)}")
    return categories[category], fields.read_polygons(shape, place)


def _read_id(record: Any, key: str, place: str) -> Id:
    if not isinstance(record, dict):
        raise AnnotationError(f"{place}: must be an object, not {kind(record)}")
    value = record.get(key)
    if type(value) is int or type(value) is str:
        return value
    raise AnnotationError(f"{place}: {key} must be a whole number or text, not {show(value)}")


def _sample(image: _Image, only: tuple[str, ...]) -> Sample:
    """`only` is the category of a file that has one, of which an image without annotation shows nothing."""
    unsaid = () if image.rows else only
    absent = unsaid if image.absent is None else image.absent
    rows = [*image.rows, *((phrase, Absent()) for phrase in absent)]
    masks = tuple((reference,) for _, reference in rows)
    return Sample(
        image.id,
        image.path,
        tuple(phrase for phrase, _ in rows),
        masks or None,
        image.place,
        size=image.size,
        metadata=image.metadata,
        **image.particulars,
    )
