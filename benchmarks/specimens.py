"""Small datasets for fuzzing: one per format, with every kind of object that the format supports."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vesalius.masks import encode_rle

SIDE = 24

Files = dict[str, bytes]
"""Path in the dataset -> content of the file."""


def _png(pixels: np.ndarray) -> bytes:
    with tempfile.SpooledTemporaryFile() as file:
        Image.fromarray(pixels).save(file, "PNG")
        file.seek(0)
        return file.read()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _disc() -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.hypot(y - 12, x - 11) < 7


IMAGE = _png(np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE))
SQUARE = [4.0, 4.0, 18.0, 4.5, 18.0, 18.0, 4.0, 17.0]
POINTS = [[4.0, 4.0], [18.0, 4.5], [18.0, 18.0]]


def _vesalius() -> Files:
    rle = {"size": [SIDE, SIDE], "counts": [SIDE * SIDE]}
    first = {"image": "a.png", "mask": [[SQUARE], SQUARE, None, rle], "text": ["v", "w", "x", "y"]}
    second = {"image": "b.png", "mask": [encode_rle(_disc())], "text": ["v"], "group": "p1", "spacing_mm": 0.3}
    clip = {"video": ["c.png", "d.png"], "mask": [[[SQUARE], None]], "text": ["v"]}
    images = {f"images/{name}.png": IMAGE for name in "abcd"}
    return {"annotations.json": _json([first | {"size": [SIDE, SIDE], "note": 1}, second, clip]), **images}


def _coco() -> Files:
    shapes = [[SQUARE], encode_rle(_disc()), {"size": [SIDE, SIDE], "counts": [SIDE * SIDE]}]
    annotations = [
        {"id": i, "image_id": 1 + i // 2, "category_id": 1, "segmentation": shape, "iscrowd": i, "bbox": [4, 4, 9, 9]}
        for i, shape in enumerate(shapes)
    ]
    size = {"width": SIDE, "height": SIDE}
    images = [
        {"id": 1, "file_name": "a.png", **size, "neg_category_ids": [7], "spacing_mm": [1, 2], "license": 3},
        {"id": 2, "file_name": "b.png", **size, "group": "p1"},
    ]
    categories = [{"id": 1, "name": "v"}, {"id": 7, "name": "w"}]
    value = {"images": images, "annotations": annotations, "categories": categories}
    return {"annotations.json": _json(value), "images/a.png": IMAGE, "images/b.png": IMAGE}


def _labelme() -> Files:
    kinds = (("polygon", POINTS), ("polygon", POINTS), ("rectangle", POINTS[:2]), ("circle", POINTS[:2]))
    shapes: list[dict[str, Any]] = [
        {"label": f"v{i // 2}", "points": points, "shape_type": kind, "group_id": 1 if i < 2 else None, "flags": {}}
        for i, (kind, points) in enumerate(kinds)
    ]
    patch = base64.b64encode(_png(_disc().astype(np.uint8))).decode()
    corners = [[0, 0], [SIDE - 1, SIDE - 1]]
    shapes.append({"label": "m", "points": corners, "shape_type": "mask", "mask": patch, "description": "x"})
    ours = {"absent": ["stent"], "group": "p1", "spacing_mm": [0.3, 0.3]}
    value: dict[str, Any] = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "a.png", "imageData": None}
    value |= {"imageHeight": SIDE, "imageWidth": SIDE, "vesalius": ours}
    return {"a.json": _json(value), "a.png": IMAGE}


def _cvat() -> Files:
    text = f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><name>run</name><original_size><width>{SIDE}</width><height>{SIDE}</height></original_size></task></meta>
<image id="0" name="a.png" width="{SIDE}" height="{SIDE}">
<polygon label="v" occluded="0" points="4.0,4.0;18.0,4.5;18.0,18.0"><attribute name="s">1</attribute></polygon>
<box label="w" xtl="2" ytl="3" xbr="9" ybr="8" rotation="12.5"/>
<ellipse label="y" cx="12" cy="12" rx="5" ry="3"/>
<mask label="x" rle="2, 3, 4, 7" left="3" top="4" width="4" height="4"/>
<tag label="sharp"/>
</image>
<track id="0" label="v"> <box frame="0" outside="0" xtl="1" ytl="2" xbr="5" ybr="6"/>
<box frame="5" outside="1" xtl="1" ytl="2" xbr="5" ybr="6"/></track></annotations>
"""
    names = ("a", "frame_000000", "frame_000005")
    return {"annotations.xml": text.encode(), **{f"images/{name}.png": IMAGE for name in names}}


def _labelstudio() -> Files:
    size = {"original_width": SIDE, "original_height": SIDE, "from_name": "label", "to_name": "image"}
    n = 4 * SIDE * SIDE
    header = f"{n:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
    bits = f"{header}1{3:02b}{n - 1:016b}{255:08b}"  # one run of length 255
    stroke = [int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8)]
    box = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 5}
    kinds: dict[str, dict[str, Any]] = {
        "polygonlabels": {"points": [[10.0, 10.0], [80.0, 12.0], [75.0, 80.0]], "polygonlabels": ["v"]},
        "rectanglelabels": {**box, "rectanglelabels": ["w"]},
        "ellipselabels": {"x": 50, "y": 50, "radiusX": 40, "radiusY": 25, "rotation": 30, "ellipselabels": ["y"]},
        "brushlabels": {"format": "rle", "rle": stroke, "brushlabels": ["x"]},
        "choices": {"choices": ["LAO"]},
    }
    result = [{"id": kind, "type": kind, "value": value, **size} for kind, value in kinds.items()]
    task = {
        "id": 1,
        "data": {"image": "/data/upload/1/0a1b2c3d-a.png", "patient": "p1"},
        "annotations": [{"id": 1, "result": result}],
    }
    return {"annotations.json": _json([task]), "images/a.png": IMAGE}


def _maskfolder() -> Files:
    index = _png(_disc().astype(np.uint8) * 2)
    return {"images/a.png": IMAGE, "masks/a.png": index, "classes.json": _json({"v": 2, "w": 1})}


def _nnunet() -> Files:
    value = {
        "channel_names": {"0": "XA"},
        "labels": {"background": 0, "v": 1, "all": [1, 2]},
        "file_ending": ".png",
        "numTraining": 1,
    }
    labels = _png(_disc().astype(np.uint8))
    return {"dataset.json": _json(value), "imagesTr/a_0000.png": IMAGE, "labelsTr/a.png": labels}


def _dicom() -> Files:
    from pydicom.data import get_testdata_file

    names = ("CT_small.dcm", "MR_small_RLE.dcm", "examples_ybr_color.dcm", "JPEG2000.dcm", "liver.dcm")
    return {name: Path(str(get_testdata_file(name, download=False))).read_bytes() for name in names[:2]}


def _nifti() -> Files:
    import nibabel

    volume = np.arange(SIDE * SIDE * 3, dtype=np.int16).reshape(SIDE, SIDE, 3)
    return {"a.nii": nibabel.Nifti1Image(volume, np.eye(4)).to_bytes()}


def _video() -> Files:
    import av

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=15)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for i in range(5):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 40 * i, dtype=np.uint8), "rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return {"a.mp4": path.read_bytes()}


SPECIMENS: dict[str, Callable[[], Files]] = {
    "vesalius": _vesalius,
    "coco": _coco,
    "labelme": _labelme,
    "cvat": _cvat,
    "labelstudio": _labelstudio,
    "maskfolder": _maskfolder,
    "nnunet": _nnunet,
    "dicom": _dicom,
    "nifti": _nifti,
    "video": _video,
}
