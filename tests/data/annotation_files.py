"""Small annotation files in every format for the tests of readers, on images of 8 x 10 pixels."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vesalius.data.dataset import check_polygons
from vesalius.data.formats import FORMATS
from vesalius.data.source import Problems, Source
from vesalius.types import Sample

SIZE = (8, 10)
TRIANGLE = [1, 1, 6, 1, 1, 6]
POINTS = [[1, 1], [6, 1], [1, 6]]


def make_images(root: Path, *names: str) -> Path:
    """Create gray images with these names in the folder and return it."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", SIZE[::-1]).save(root / name)
    return root


def write_json(root: Path, value: Any, name: str = "annotations.json") -> Path:
    """Write a JSON file; a str is written unchanged, so that it may be invalid JSON."""
    path = root / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def read(kind: str, path: Path, problems: Problems = None) -> list[Sample]:
    """Samples of a file in this format; as in `open_dataset`, invalid polygons are errors."""
    assert FORMATS[kind].recognize(Source(path))
    samples = FORMATS[kind].read(Source(path), "", problems)
    if problems is None:
        for sample in samples:
            check_polygons(sample)
    return samples


def box_mask(rows: slice, columns: slice) -> np.ndarray:
    """bool (8, 10) with one rectangle."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[rows, columns] = True
    return mask


def entry(image: Any = "a.png", mask: Any = ((TRIANGLE,),), text: Any = ("vessel",), **more: Any) -> Any:
    """An entry of the format `vesalius`."""
    return {"image": image, "mask": mask, "text": text, **more}


def coco_image(number: Any = 1, name: Any = "a.png", **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1], **more}


def coco_annotation(shape: Any = (TRIANGLE,), of: Any = 1, category: Any = 1, **more: Any) -> dict[str, Any]:
    return {"image_id": of, "category_id": category, "segmentation": shape, "iscrowd": 0, **more}


def coco_file(images: Any = None, annotations: Any = None, categories: Any = None) -> dict[str, Any]:
    two = [{"id": 1, "name": "vessel", "supercategory": "x"}, {"id": 7, "name": "stent"}]
    return {
        "images": [coco_image()] if images is None else images,
        "annotations": [coco_annotation()] if annotations is None else annotations,
        "categories": categories or two,
    }


def labelme_shape(form: Any = "polygon", points: Any = POINTS, label: Any = "vessel", **more: Any) -> Any:
    return {"label": label, "points": points, "group_id": None, "shape_type": form, "flags": {}, **more}


def labelme_file(*shapes: Any, image: Any = "a.png", **more: Any) -> dict[str, Any]:
    stated = {"imageHeight": SIZE[0], "imageWidth": SIZE[1], "imageData": None, "imagePath": image}
    return {"version": "5.5.0", "flags": {}, "shapes": list(shapes), **stated, **more}


def labelme_mask(patch: Any, points: Any = ((0, 0), (0, 0)), **more: Any) -> Any:
    """A mask shape; `patch` is the value of its key `mask`, or an array of pixels."""
    packed = patch if patch is None or isinstance(patch, str) else png(patch)
    return labelme_shape("mask", [list(point) for point in points], **{"mask": packed, **more})


def png(patch: Any, mode: str = "L", form: str = "PNG") -> str:
    """An image file in base64."""
    file = io.BytesIO()
    Image.fromarray(np.array(patch, dtype=np.uint8)).convert(mode).save(file, format=form)
    return base64.b64encode(file.getvalue()).decode()


def region(form: str = "rectanglelabels", label: str = "vessel", **value: Any) -> dict[str, Any]:
    """A region of Label Studio."""
    size = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
    return {"id": "r1", "type": form, "from_name": "label", **size, "value": {**value, form: [label]}}


BOX = region(x=10, y=25, width=40, height=50)


def task(*regions: Any, image: Any = "a.png", **more: Any) -> dict[str, Any]:
    """A task of Label Studio."""
    annotations = [{"id": 5, "completed_by": 2, "result": list(regions)}]
    return {"id": 1, "data": {"image": image}, "annotations": annotations, **more}


def brush(values: np.ndarray, lengths: tuple[int, ...] = (3, 4, 8, 16), literal: int = 0) -> list[int]:
    """A brush stroke encoded by rle-pack, as runs of equal values or, with `literal`, runs of that many single values."""
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{length - 1:04b}" for length in lengths)
    i = 0
    while i < len(values):
        n = 1
        while i + n < len(values) and (n < literal or (not literal and values[i + n] == values[i])):
            n += 1
        pick = next((k for k, length in enumerate(lengths) if n <= 1 << length), 3)
        n = min(n, 1 << lengths[pick])
        bits += f"{int(not literal)}{pick:02b}{n - 1:0{lengths[pick]}b}"
        bits += "".join(f"{value:08b}" for value in (values[i : i + n] if literal else values[i : i + 1]))
        i += n
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def cvat_file(root: Path, *elements: str) -> Path:
    body = "\n".join(("<version>1.1</version>", *elements))
    path = root / "annotations.xml"
    path.write_text(f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{body}</annotations>', "utf-8")
    return path


def cvat_image(*shapes: str, name: str = "a.png", size: str = 'width="10" height="8"') -> str:
    return f'<image id="0" name="{name}" {size}>{"".join(shapes)}</image>'


CVAT_BOX = '<box label="v" xtl="1" ytl="1" xbr="3" ybr="3"/>'
