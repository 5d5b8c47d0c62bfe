"""Read COCO instances: one JSON file with images, annotations and categories.

    {"images": [{"id": 1, "file_name": "a.png", "height": h, "width": w}, ...],
     "annotations": [{"image_id": 1, "category_id": 1, "segmentation": polygons or RLE, "iscrowd": 0}, ...],
     "categories": [{"id": 1, "name": "vessel"}, ...]}

The name of a category is the phrase, and each annotation is one object of it, crowds included. As in LVIS,
`neg_category_ids` of an image lists the categories that are not in it. An image without this field and without
annotations is a negative for the category if the file has only one category; otherwise it counts as not annotated.
An image may have `group`, `sequence`, `frame` and `spacing_mm` as in the format `vesalius`. Its other keys are
metadata.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from vesalius.data.images import frame_id
from vesalius.data.readers import fields
from vesalius.data.readers.fields import Id, named, parse, show
from vesalius.data.sample_fields import KEYS as SAMPLE_KEYS
from vesalius.data.sample_fields import SampleFields
from vesalius.data.source import Problems, Source, UniqueIds, report, reporting
from vesalius.errors import AnnotationError, DataError
from vesalius.masks import Size
from vesalius.types import Absent, Location, MaskReference, Sample

KEYS = ("id", "file_name", "height", "width", "neg_category_ids", *SAMPLE_KEYS)
"""Keys of an image that are not metadata."""

ANNOTATION_KEYS = ("id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd")


class _Top(fields.StrictObject):
    images: list[Any]
    annotations: list[Any]
    categories: list[Any]


class _Category(fields.StrictObject):
    id: Id
    name: fields.Phrase


class _Record(SampleFields):
    id: Id
    file_name: Any = None
    height: PositiveInt | None = None
    width: PositiveInt | None = None
    neg_category_ids: list[Id] | None = None


class _Annotation(fields.StrictObject):
    image_id: Id
    category_id: Id
    segmentation: Any = None
    bbox: Any = None


@dataclass(frozen=True)
class _Image:
    """An image record with the phrases and masks of its annotations."""

    name: str
    path: Path
    where: Location
    size: Size | None
    absent: tuple[str, ...] | None
    """The phrases of `neg_category_ids`; None if the image has no such field."""
    record: _Record
    masks: list[tuple[str, MaskReference]] = field(default_factory=list)


def recognize(source: Source) -> bool:
    """True if the source is a JSON file with top-level lists `images` and `annotations`."""
    value = source.json
    return isinstance(value, dict) and all(isinstance(value.get(key), list) for key in ("images", "annotations"))


def read(source: Source, phrase: str = "", problems: Problems = None) -> list[Sample]:
    """Samples in the order of `images`; one prompt for each annotation, in their order, then absent phrases.

    Images are searched beside the file, in `images/`, and in subfolders of both named like the split, the last word of
    the file name. For a file in `annotations/`, they are searched beside this folder. Raises AnnotationError with the
    file and the index (from 0) of the image, annotation or category. With `problems`, errors are added there, and
    images with an invalid record or annotation are skipped.
    """
    top = parse(_Top, source.json, Location(source.path))
    if not top.images:
        raise Location(source.path).error("lists no image", "no_image")
    categories = _read_categories(top.categories, source, problems)
    images, refused = _read_images(top.images, source, categories, problems)
    wrong: set[Any] = set()
    for index, annotation in enumerate(top.annotations):
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        image_id = image_id if type(image_id) in (int, str) else None
        if image_id in refused:
            continue
        where = source.locate(f"annotation {index}")
        try:
            found = parse(_Annotation, annotation, where)
            if image_id not in images:
                raise where.error(f"no image has the id {show(image_id)}", "unknown_id")
            image = images[image_id]
            image.masks.append(_read_annotation(found, where, image.size, categories))
        except AnnotationError as error:
            wrong.add(image_id)
            report(error, problems)
    only = tuple(categories.values()) if len(top.categories) == 1 else ()
    return [_sample(image, only) for image_id, image in images.items() if image_id not in wrong]


def notes(source: Source) -> list[str]:
    """Notes on crowds, images without annotations, and ignored keys of annotations."""
    annotations = [each for each in source.json["annotations"] if isinstance(each, dict)]
    found = []
    crowds = sum(each.get("iscrowd") == 1 for each in annotations)
    if crowds:
        found.append(f"crowds (iscrowd) read as objects of their category: {crowds}")
    ignored = Counter(key for each in annotations for key in each if key not in ANNOTATION_KEYS)
    if ignored:
        counted = ", ".join(f"{key} ({n})" for key, n in ignored.items())
        found.append(f"annotation keys ignored: {counted}")
    drawn = {each["image_id"] for each in annotations if isinstance(each.get("image_id"), int | str)}
    bare = sum(
        isinstance(each, dict)
        and each.get("neg_category_ids") is None
        and isinstance(each.get("id"), int | str)
        and each["id"] not in drawn
        for each in source.json["images"]
    )
    if bare:
        only = len(source.json.get("categories") or ()) == 1
        how = "negatives for the only category" if only else "not annotated"
        found.append(f"images without annotation, read as {how}: {bare}")
    return found


def _read_categories(records: list[Any], source: Source, problems: Problems) -> dict[Any, str]:
    """Category id -> name; the same name with two ids is one phrase."""
    categories: dict[Any, str] = {}
    ids = UniqueIds()
    for index, record in enumerate(records):
        where = source.locate(f"category {index}")
        with reporting(problems):
            category = parse(_Category, record, where)
            ids.add(category.id, where, "give each category an id of its own")
            categories[category.id] = category.name
    return categories


def _read_images(
    records: list[Any], source: Source, categories: Mapping[Any, str], problems: Problems
) -> tuple[dict[Any, _Image], set[Any]]:
    """(id -> image, ids that occur only in invalid records)."""
    root, folders = _find_folders(source)
    images: dict[Any, _Image] = {}
    refused = set()
    ids, names = UniqueIds(), UniqueIds()
    for index, record in enumerate(records):
        name = record.get("file_name") if isinstance(record, dict) else None
        where = source.locate(named(f"image {index}", name))
        stated = record.get("id") if isinstance(record, dict) else None
        image_id = stated if type(stated) in (int, str) else None
        try:
            if image_id is not None:
                ids.add(image_id, where, "give each image an id of its own")
            image = _read_image(parse(_Record, record, where), where, root, folders, categories)
            names.add(image.name, where)
        except DataError as error:
            refused.add(image_id)
            report(error, problems)
        else:
            images[image_id] = image
    return images, refused - images.keys()


def _find_folders(source: Source) -> tuple[Path, tuple[str, ...]]:
    """(root folder of the images, subfolders to search, in this order)."""
    split = re.split(r"[._]", source.path.stem)[-1]
    folder = source.path.absolute().parent
    if folder.name == "annotations":
        return folder.parent, (folder.name, split, f"images/{split}", "images", "")
    return source.root, ("", f"images/{split}", "images", split)


def _read_image(
    record: _Record, where: Location, root: Path, folders: tuple[str, ...], categories: Mapping[Any, str]
) -> _Image:
    path, name = fields.find_image(record.file_name, where, root, folders)
    fields.check_metadata(record.unknown, where)
    size = fields.read_size(record.height, record.width, where)
    negative = record.neg_category_ids
    unknown = [each for each in negative or () if each not in categories]
    if unknown:
        at = where.inside("neg_category_ids")
        raise at.error(f"no category has the id {show(unknown[0])}", "unknown_id")
    absent = None if negative is None else tuple(categories[each] for each in negative)
    name = name if record.frame is None else frame_id(name, record.frame)
    return _Image(name, path, where, size, absent, record)


def _read_annotation(
    annotation: _Annotation, where: Location, size: Size | None, categories: Mapping[Any, str]
) -> tuple[str, MaskReference]:
    if annotation.category_id not in categories:
        raise where.error(f"no category has the id {show(annotation.category_id)}", "unknown_id")
    shape = annotation.segmentation
    if shape is None or shape in ([], {}):
        box = "only a box (bbox) and " if annotation.bbox else ""
        raise where.error(f"has {box}no segmentation", "no_mask")
    return categories[annotation.category_id], fields.read_mask(shape, where.inside("segmentation"), size)


def _sample(image: _Image, only: tuple[str, ...]) -> Sample:
    """The sample of an image; `only`, the single category of the file, is absent in images without annotations."""
    absent = image.absent
    if absent is None:
        absent = () if image.masks else only
    rows = [*image.masks, *((phrase, Absent()) for phrase in absent)]
    return Sample(
        image.name,
        image.path,
        tuple(phrase for phrase, _ in rows),
        tuple((reference,) for _, reference in rows) or None,
        image.where,
        size=image.size,
        metadata=image.record.unknown,
        **image.record.as_arguments(),
    )
