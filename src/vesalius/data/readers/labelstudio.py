"""Read the JSON export of Label Studio: a list of tasks, each with an image and annotations made of regions.

    [{"data": {"image": "/data/upload/1/0a1b2c3d-frame.png", "patient": "p1"},
      "annotations": [{"id": 5, "completed_by": 2, "result": [region, ...]}]}, ...]

    region = {"type": "polygonlabels", "original_width": 512, "original_height": 512, "image_rotation": 0,
              "value": {"points": [[10.0, 20.0], ...], "polygonlabels": ["vessel"]}}

The label is the phrase, and a region with several labels is one object of each. Polygons, rectangles and ellipses, in
percent of the image, and brush strokes are read. The export JSON-MIN, with lists of regions at the top level of each
task, is read too. A task without regions is not annotated. Predictions of models are not read. Other fields of `data`,
choices and texts are kept as metadata. Sources: labelstud.io, Label Studio task format, and the tags RectangleLabels,
EllipseLabels and BrushLabels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from vesalius.data.decoders.picture import SUFFIXES
from vesalius.data.readers import fields, shapes
from vesalius.data.readers.brush import decode_brush
from vesalius.data.readers.fields import kind, parse, show
from vesalius.data.readers.uploads import Uploads
from vesalius.data.readers.vesalius_json import KEYS
from vesalius.data.source import Problems, Samples, Source, reporting
from vesalius.masks import Size, encode_rle
from vesalius.types import Location, MaskReference, Polygons, RleMask, Sample

ANNOTATIONS = ("annotations", "completions")
REMARKS = ("choices", "textarea", "taxonomy", "rating", "number", "datetime")
"""Region types without a shape, such as texts and ratings of the whole image."""
MIN_KEYS = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time")
"""Keys of a JSON-MIN task that are neither fields of `data` nor names of controls."""

Percent = Annotated[float, Field(ge=-1e6, le=1e6)]


class _Task(fields.StrictObject):
    data: dict[str, Any]


class _Region(fields.StrictObject):
    id: Any = None
    type: str
    value: dict[str, Any] = Field(default_factory=dict)
    from_name: Any = None
    original_height: int | None = None
    original_width: int | None = None
    image_rotation: Any = None


class _Rectangle(fields.StrictObject):
    x: Percent
    y: Percent
    width: Percent
    height: Percent
    rotation: Percent = 0


class _Ellipse(fields.StrictObject):
    x: Percent
    y: Percent
    radiusX: Percent
    radiusY: Percent
    rotation: Percent = 0


def recognize(source: Source) -> bool:
    """True if the source is a JSON list of tasks: `data` with annotations or predictions, or JSON-MIN."""
    value = source.json
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    first = value[0].keys()
    is_task = isinstance(value[0].get("data"), dict) and bool({*ANNOTATIONS, "predictions"} & first)
    return is_task or {"annotator", "annotation_id"} <= first


def read(source: Source, phrase: str = "", problems: Problems = None) -> list[Sample]:
    """Samples in the order of the tasks; one prompt for each label of a region.

    Images are searched by file name, beside the annotation file and at any depth in `images/`, also without the upload
    prefix of eight characters. Raises AnnotationError with file, task (counted from 0) and annotation: if a task has
    several annotations but not exactly one marked as ground truth, an image is missing or found twice, or a region is
    not a mask. With `problems`, the error is added there and the task is skipped.
    """
    samples = Samples()
    uploads = Uploads(source.root)
    for index, task in enumerate(source.json):
        with reporting(problems):
            sample, where = _read_task(task, source.locate(f"task {index}"), uploads)
            samples.add(sample, where, "keep one task for each image")
    return samples


def notes(source: Source) -> list[str]:
    """Notes with the numbers of predictions, canceled annotations and tasks without regions."""
    tasks = [task for task in source.json if isinstance(task, dict) and isinstance(task.get("data"), dict)]
    every = [_annotations(task) for task in tasks]
    lines = {
        "tasks with predictions of a model, which are not read": sum(bool(task.get("predictions")) for task in tasks),
        "canceled annotations, which are not read": sum(
            _is_canceled(each) for annotations in every for each in annotations
        ),
        "tasks without regions, read as not annotated": sum(
            all(_is_canceled(each) or not each.get("result") for each in annotations) for annotations in every
        ),
    }
    return [f"{what}: {n}" for what, n in lines.items() if n]


def _annotations(task: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[Any] = next((task[key] for key in ANNOTATIONS if isinstance(task.get(key), list)), [])
    return [each for each in found if isinstance(each, dict)]


def _is_canceled(annotation: dict[str, Any]) -> bool:
    return bool(annotation.get("was_cancelled") or annotation.get("skipped"))


def _read_task(task: Any, where: Location, uploads: Uploads) -> tuple[Sample, Location]:
    if isinstance(task, dict) and "data" not in task and "annotation_id" in task:
        task = _from_min(task)
    data = parse(_Task, task, where).data
    key = _image_key(data, where)
    image, name = uploads.find(data[key], where)
    where = Location(where.path, f"{where.field} ({show(data[key])})")
    remarks: dict[str, list[Any]] = {}
    rows: list[tuple[str, MaskReference]] = []
    size: Size | None = None
    regions = list(_regions(_only_annotation(task, where), where))
    labeled = {show(each.id) for _, each in regions if each.type.endswith("labels")}
    for at, region in regions:
        if region.type in REMARKS:
            remark = region.value.get(region.type)
            remarks.setdefault(str(region.from_name), []).append(remark)
        # a shape and its label may be two regions with the same id, both with the outline
        elif region.type.endswith("labels") or show(region.id) not in labeled:
            size = _read_size(region, at, size)
            mask = _read_shape(region, at, size)
            rows += [(label, mask) for label in _read_labels(region, at)]
    return Sample(
        name,
        image,
        tuple(label for label, _ in rows),
        tuple((mask,) for _, mask in rows) or None,
        where,
        size=size,
        metadata=_metadata({name: value for name, value in data.items() if name != key}, remarks, where),
    ), where


def _from_min(task: dict[str, Any]) -> dict[str, Any]:
    """A JSON-MIN task, which has lists of region values, converted to the form of the full export."""
    lists = {
        key: value
        for key, value in task.items()
        if isinstance(value, list)
        and value
        and all(isinstance(each, dict) and "original_width" in each for each in value)
    }
    result = [
        {"type": next((key for key in each if key.endswith("labels")), None), "value": each} | each
        for value in lists.values()
        for each in value
    ]
    data = {key: value for key, value in task.items() if key not in MIN_KEYS and key not in lists}
    return {"data": data, "annotations": [{"id": task["annotation_id"], "result": result}]}


def _image_key(data: dict[str, Any], where: Location) -> str:
    """Key of the image in `data`: `image`, or the only key with a value that ends like an image file."""
    found = [
        key
        for key, value in data.items()
        if isinstance(value, str) and any(each.lower().endswith(SUFFIXES) for each in (value, value.partition("?")[0]))
    ]
    if "image" in data or len(found) == 1:
        return "image" if "image" in data else found[0]
    raise where.error(
        f"data must name one image, but names {', '.join(map(show, found)) or 'none'}",
        "missing_image",
        "name the image field `image`",
    )


def _only_annotation(task: dict[str, Any], where: Location) -> dict[str, Any]:
    """The annotation of a task: the only one, or the only ground truth; an empty one if there is none."""
    found = [each for each in _annotations(task) if not _is_canceled(each)]
    if len(found) > 1:
        found = [each for each in found if each.get("ground_truth") is True] or found
    if len(found) > 1:
        names = ", ".join(f"{show(each.get('id'))} by {show(each.get('completed_by'))}" for each in found[:5])
        raise where.error(f"has {len(found)} annotations ({names})", "ambiguous_annotation")
    return found[0] if found else {"result": []}


def _regions(annotation: dict[str, Any], where: Location) -> Iterator[tuple[Location, _Region]]:
    """(location, region) of each region; relations are skipped."""
    result = annotation.get("result")
    if not isinstance(result, list):
        raise where.error(f"result must be a list of regions, not {kind(result)}", "bad_value")
    for index, value in enumerate(result):
        at = where.inside(f"annotation {show(annotation.get('id'))}, region {index}")
        region = parse(_Region, value, at)
        if region.type == "relation":
            continue
        if "value" not in region.model_fields_set:
            raise at.error("has no value", "missing_field")
        yield at, region


def _read_labels(region: _Region, where: Location) -> list[str]:
    labels = region.value.get(region.type)
    if not isinstance(labels, list) or not labels or not all(isinstance(each, str) and each.strip() for each in labels):
        raise where.error(f"a region of type {show(region.type)} needs a label, but has {show(labels)}", "no_phrase")
    return labels


def _read_size(region: _Region, where: Location, known: Size | None) -> Size:
    """(h, w) of the image stated in a region; AnnotationError if other regions state another size."""
    height, width = region.original_height, region.original_width
    if height is None or width is None:
        raise where.error("has no original_height and original_width", "missing_field")
    fields.check_area((height, width), where)
    if region.image_rotation:
        angle = show(region.image_rotation)
        raise where.error(f"the image was rotated by {angle} degrees for annotation", "rotated_annotation")
    if known is not None and known != (height, width):
        raise where.error(
            f"was drawn at {height} x {width} (h x w), other regions at {known[0]} x {known[1]}", "size_mismatch"
        )
    return height, width


def _read_shape(region: _Region, where: Location, size: Size) -> MaskReference:
    """The mask of a region; the keys of `value` determine the shape, because the type may be just `labels`."""
    value, scale = region.value, (size[1] / 100, size[0] / 100)
    if "rle" in value:
        return RleMask(encode_rle(decode_brush(value["rle"], size, where)))
    if "points" in value and value.get("closed", True):
        points = fields.check_points(value["points"], where.inside("points"))
        return Polygons((tuple([n for x, y in points for n in (x / 100 * size[1], y / 100 * size[0])]),))
    if {"points", "vertices"} & value.keys() or ("x" in value and not {"radiusX", "height"} & value.keys()):
        raise where.error(f"a point or line ({show(region.type)}) has no area", "no_area")
    if "x" not in value:
        raise where.error(f"the region type {show(region.type)} is not supported", "unknown_shape")
    if "radiusX" in value:
        drawn = parse(_Ellipse, value, where)
        x, y = drawn.x * scale[0], drawn.y * scale[1]
        outline = shapes.ellipse(x, y, drawn.radiusX * scale[0], drawn.radiusY * scale[1])
        outline = shapes.clip(shapes.rotate(outline, drawn.rotation, x, y), size)
    else:
        box = parse(_Rectangle, value, where)
        x, y = box.x * scale[0], box.y * scale[1]
        outline = shapes.rectangle(x, y, box.width * scale[0], box.height * scale[1])
        # a rectangle is rotated around its first corner
        if box.rotation:
            outline = shapes.clip(shapes.rotate(outline, box.rotation, x, y), size)
    return Polygons((tuple(outline.ravel().tolist()),))


def _metadata(others: dict[str, Any], remarks: dict[str, list[Any]], where: Location) -> dict[str, Any]:
    """Other fields of `data`, choices and texts; a list of one value is stored as the value."""
    metadata = {f"labelstudio_{key}" if key in KEYS else key: value for key, value in others.items()}
    for key, values in remarks.items():
        each = [one for value in values for one in (value if isinstance(value, list) else [value])]
        name = f"labelstudio_{key}" if key in KEYS or key in metadata else key
        metadata[name] = each[0] if len(each) == 1 else each
    return fields.check_metadata(metadata, where)
