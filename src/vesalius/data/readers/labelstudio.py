"""The JSON export of Label Studio: a list of tasks, each with an image and what somebody drew on it.

    [{"data": {"image": "/data/upload/1/0a1b2c3d-frame.png", "patient": "p1"},
      "annotations": [{"id": 5, "completed_by": 2, "result": [region, ...]}]}, ...]

    region = {"type": "polygonlabels", "original_width": 512, "original_height": 512, "image_rotation": 0,
              "value": {"points": [[10.0, 20.0], ...], "polygonlabels": ["vessel"]}}

The label is the phrase, and a region with several labels an object of each. Read are polygons, rectangles and
ellipses, in percent of the image, and brushes. JSON-MIN, one object a task and a list of regions in it, is read too. A
task that nobody drew on is not annotated, and predictions are a model's and are not read. Other fields of `data`, and
choices and texts, are kept as metadata. Sources: labelstud.io, Label Studio task format, and the tags RectangleLabels,
EllipseLabels and BrushLabels.
"""

from __future__ import annotations

from typing import Any

from vesalius.data.decoders.limits import MAX_PIXELS
from vesalius.data.decoders.picture import SUFFIXES
from vesalius.data.readers import fields, shapes
from vesalius.data.readers.brush import decode_brush
from vesalius.data.readers.fields import is_number, kind, show
from vesalius.data.readers.uploads import Uploads
from vesalius.data.readers.vesalius_json import KEYS
from vesalius.data.source import Problems, Source, report
from vesalius.errors import AnnotationError
from vesalius.masks import Size, encode_rle
from vesalius.types import MaskReference, Polygons, RleMask, Sample

ANNOTATIONS = ("annotations", "completions")
REMARKS = ("choices", "textarea", "taxonomy", "rating", "number", "datetime")
MIN_KEYS = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time")
"""Of a task in JSON-MIN, beside the fields of `data` and the names of the controls."""
MOST_PERCENT = 1e6


def recognize(source: Source) -> bool:
    """Whether it is a JSON list of tasks: `data` with annotations or predictions, or JSON-MIN."""
    value = source.json
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    first = value[0].keys()
    is_task = isinstance(value[0].get("data"), dict) and bool({*ANNOTATIONS, "predictions"} & first)
    return is_task or {"annotator", "annotation_id"} <= first


def read(source: Source, phrase: str = "", problems: Problems = None) -> list[Sample]:
    """Samples of the tasks, in their order; one prompt for each label of a region.

    Images are found by the name at the end of their path, beside the file or at any depth in `images/` there, also
    without the eight characters that an upload put before it. Raises AnnotationError, naming file, task (counted from
    0) and annotation: for several annotations of one task of which none, or more than one, is marked as the ground
    truth, an image that is not found or found twice, and regions that are no masks; with `problems`, such a task is
    put there and left out.
    """
    samples: dict[str, Sample] = {}
    uploads = Uploads(source.root)
    for index, task in enumerate(source.json):
        try:
            sample = _read_task(task, f"{source.path}, task {index}", uploads)
            if sample.id in samples:
                raise AnnotationError(
                    f"{sample.source}: has the same image {sample.id} as {samples[sample.id].source}; keep one of them",
                    code="duplicate_id",
                )
            samples[sample.id] = sample
        except AnnotationError as error:
            report(error, problems)
    return list(samples.values())


def notes(source: Source) -> list[str]:
    """How many predictions, cancelled annotations and tasks without annotation there are."""
    tasks = [task for task in source.json if isinstance(task, dict) and isinstance(task.get("data"), dict)]
    predictions = sum(bool(task.get("predictions")) for task in tasks)
    every = [_annotations(task) for task in tasks]
    cancelled = sum(_is_cancelled(each) for annotations in every for each in annotations)
    silent = sum(
        all(_is_cancelled(each) or not each.get("result") for each in annotations) for annotations in every
    )
    lines = {
        "tasks whose predictions are not read, which are a model's": predictions,
        "annotations that were cancelled, and are not read": cancelled,
        "tasks that nobody drew on, read as not annotated": silent,
    }
    return [f"{what}: {n}" for what, n in lines.items() if n]


def _annotations(task: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[Any] = next((task[key] for key in ANNOTATIONS if isinstance(task.get(key), list)), [])
    return [each for each in found if isinstance(each, dict)]


def _is_cancelled(annotation: dict[str, Any]) -> bool:
    return bool(annotation.get("was_cancelled") or annotation.get("skipped"))


def _read_task(task: Any, place: str, uploads: Uploads) -> Sample:
    if not isinstance(task, dict):
        raise AnnotationError(f"{place}: must be an object, not {kind(task)}")
    if "data" not in task and "annotation_id" in task:
        task = _from_min(task)
    data = task.get("data")
    if not isinstance(data, dict):
        raise AnnotationError(f"{place}: has no data, which names the image")
    key = _image_key(data, place)
    image, name = uploads.find(data[key], place)
    at = f"{place} ({show(data[key])})"
    annotation = _only_annotation(task, at)
    remarks: dict[str, list[Any]] = {}
    rows: list[tuple[str, MaskReference]] = []
    size: Size | None = None
    regions = _regions(annotation, at)
    labeled = {show(each.get("id")) for _, each in regions if _is_labeled(each)}
    for within, region in regions:
        form = str(region["type"])
        if form in REMARKS:
            remarks.setdefault(str(region.get("from_name")), []).append(region["value"].get(form))
        # a shape and its label may be two regions of one id, both with the outline
        elif _is_labeled(region) or show(region.get("id")) not in labeled:
            size = _read_size(region, within, size)
            rows += [(label, _read_shape(region, within, size)) for label in _read_labels(region, within)]
    metadata = _metadata({name: value for name, value in data.items() if name != key}, remarks, at)
    if not rows:
        return Sample(name, image, (), None, at, size=size, metadata=metadata)
    phrases = tuple(label for label, _ in rows)
    return Sample(name, image, phrases, tuple((mask,) for _, mask in rows), at, size=size, metadata=metadata)


def _from_min(task: dict[str, Any]) -> dict[str, Any]:
    """A task of JSON-MIN, where the regions are lists of their values, as one of the other form."""
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


def _image_key(data: dict[str, Any], place: str) -> str:
    """The field of `data` that names the image: `image`, or the only one that ends like an image file."""
    found = [
        key
        for key, value in data.items()
        if isinstance(value, str)
        and any(each.lower().endswith(SUFFIXES) for each in (value, value.partition("?")[0]))
    ]
    if "image" in data or len(found) == 1:
        return "image" if "image" in data else found[0]
    raise AnnotationError(
        f"{place}: data must name one image, and has {', '.join(map(show, found)) or 'none'}; call its field image",
        code="missing_image",
    )


def _only_annotation(task: dict[str, Any], place: str) -> dict[str, Any]:
    """The annotation that counts; one without regions where nobody drew."""
    found = [each for each in _annotations(task) if not _is_cancelled(each)]
    if len(found) > 1:
        found = [each for each in found if each.get("ground_truth") is True] or found
    if len(found) > 1:
        names = ", ".join(f"{show(each.get('id'))} by {show(each.get('completed_by'))}" for each in found[:5])
        raise AnnotationError(
            f"{place}: has {len(found)} annotations ({names}), and nothing says which counts; mark one as ground truth "
            "in Label Studio, or cancel the others",
            code="ambiguous_annotation",
        )
    return found[0] if found else {"result": []}


def _regions(annotation: dict[str, Any], place: str) -> list[tuple[str, dict[str, Any]]]:
    """Place and region, without the relations between them."""
    result = annotation.get("result")
    if not isinstance(result, list):
        raise AnnotationError(f"{place}: result must be a list of regions, not {kind(result)}")
    regions = []
    for number, region in enumerate(result):
        within = f"{place}, annotation {show(annotation.get('id'))}, region {number}"
        if not isinstance(region, dict) or not isinstance(region.get("type"), str):
            raise AnnotationError(f"{within}: must be an object with type and value", code="unknown_shape")
        if region["type"] == "relation":
            continue
        if not isinstance(region.get("value"), dict):
            raise AnnotationError(f"{within}: value must be an object, not {kind(region.get('value'))}")
        regions.append((within, region))
    return regions


def _is_labeled(region: dict[str, Any]) -> bool:
    return str(region["type"]).endswith("labels")


def _read_labels(region: dict[str, Any], place: str) -> list[str]:
    labels = region["value"].get(region["type"])
    if (
        not isinstance(labels, list)
        or not labels
        or not all(isinstance(each, str) and each.strip() for each in labels)
    ):
        raise AnnotationError(
            f"{place}: a {show(region['type'])} needs a label, and has {show(labels)}; give it one",
            code="no_phrase",
        )
    return labels


def _read_size(region: dict[str, Any], place: str, known: Size | None) -> Size:
    """(h, w) of the image that the region was drawn on, which is that of the other regions."""
    height, width = region.get("original_height"), region.get("original_width")
    if (
        type(height) is not int
        or type(width) is not int
        or not 0 < height * width <= MAX_PIXELS
        or height < 0
    ):
        raise AnnotationError(
            f"{place}: original_height and original_width must be whole numbers of pixels, not {show(height)} and "
            f"{show(width)}",
            code="size_mismatch",
        )
    if region.get("image_rotation"):
        raise AnnotationError(
            f"{place}: the image was turned by {show(region['image_rotation'])} degrees when it was annotated; turn "
            "the image itself, and annotate that",
            code="rotated_annotation",
        )
    if known is not None and known != (height, width):
        raise AnnotationError(
            f"{place}: was drawn at {height} x {width} (h x w), other regions at {known[0]} x {known[1]}",
            code="size_mismatch",
        )
    return height, width


def _read_shape(region: dict[str, Any], place: str, size: Size) -> MaskReference:
    """The form is told by the fields of `value`: the type may be no more than `labels`."""
    value, (height, width) = region["value"], size
    if "rle" in value:
        return RleMask(encode_rle(decode_brush(value["rle"], size, place)))
    if "points" in value and value.get("closed", True):
        return _read_polygon(value["points"], place, size)
    if (
        "points" in value
        or "vertices" in value
        or ("x" in value and not {"radiusX", "height"} & value.keys())
    ):
        raise AnnotationError(
            f"{place}: a {show(region['type'])} that is a point or a line has no area; draw a polygon around what is "
            "meant, or remove it",
            code="no_area",
        )
    scale = width / 100, height / 100
    if "x" not in value:
        raise AnnotationError(
            f"{place}: {show(region['type'])} is a form that is not read; draw a polygon or use the brush",
            code="unknown_shape",
        )
    angle = _number(value, "rotation", place) if "rotation" in value else 0.0
    x, y = _number(value, "x", place) * scale[0], _number(value, "y", place) * scale[1]
    if "radiusX" in value:
        radii = _number(value, "radiusX", place) * scale[0], _number(value, "radiusY", place) * scale[1]
        outline = shapes.clip(shapes.turn(shapes.ellipse(x, y, *radii), angle, x, y), size)
    else:
        sides = _number(value, "width", place) * scale[0], _number(value, "height", place) * scale[1]
        outline = shapes.rectangle(x, y, *sides)
        # it is turned around its first corner
        outline = shapes.clip(shapes.turn(outline, angle, x, y), size) if angle else outline
    return Polygons((tuple(outline.ravel().tolist()),))


def _read_polygon(points: Any, place: str, size: Size) -> Polygons:
    if not isinstance(points, list) or not all(
        isinstance(point, list) and len(point) == 2 for point in points
    ):
        raise AnnotationError(f"{place}: points must be a list of [x, y]", code="invalid_points")
    numbers = fields.read_polygon([number for point in points for number in point], f"{place}: points")
    sides = size[1], size[0]
    return Polygons((tuple(number / 100 * sides[i % 2] for i, number in enumerate(numbers)),))


def _number(value: dict[str, Any], key: str, place: str) -> float:
    number = value.get(key)
    if number is None or not is_number(number) or abs(number) > MOST_PERCENT:
        raise AnnotationError(f"{place}: {key} must be a number, not {show(number)}", code="invalid_points")
    return float(number)


def _metadata(others: dict[str, Any], remarks: dict[str, list[Any]], place: str) -> dict[str, Any]:
    """Other fields of `data`, and what was chosen or written: the thing itself where it is only one."""
    metadata = {f"labelstudio_{key}" if key in KEYS else key: value for key, value in others.items()}
    for key, values in remarks.items():
        each = [one for value in values for one in (value if isinstance(value, list) else [value])]
        name = f"labelstudio_{key}" if key in KEYS or key in metadata else key
        metadata[name] = each[0] if len(each) == 1 else each
    fields.check_metadata(metadata, place)
    return metadata
