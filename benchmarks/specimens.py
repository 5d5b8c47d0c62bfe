"""The smallest dataset of every format, for scripts that damage them: name of the format -> files."""

from __future__ import annotations

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
"""Path in the dataset -> what the file holds."""


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
    entry = {
        "image": "a.png",
        "mask": [[SQUARE], SQUARE, None],
        "text": ["v", "w", "x"],
        "size": [SIDE, SIDE],
    }
    second = {
        "image": "b.png",
        "mask": [encode_rle(_disc())],
        "text": ["v"],
        "group": "p1",
        "spacing_mm": 0.3,
    }
    clip = {"video": ["c.png", "d.png"], "mask": [[[SQUARE], None]], "text": ["v"]}
    images = {f"images/{name}.png": IMAGE for name in "abcd"}
    return {"annotations.json": _json([entry, second, clip]), **images}


def _coco() -> Files:
    annotations = [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "segmentation": [SQUARE],
            "iscrowd": 0,
            "bbox": [4, 4, 14, 14],
        },
        {"id": 2, "image_id": 2, "category_id": 1, "segmentation": encode_rle(_disc()), "iscrowd": 1},
    ]
    images = [
        {"id": i, "file_name": f"{n}.png", "width": SIDE, "height": SIDE} for i, n in ((1, "a"), (2, "b"))
    ]
    value = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "v"}]}
    return {"annotations.json": _json(value), "images/a.png": IMAGE, "images/b.png": IMAGE}


def _labelme() -> Files:
    shapes = [
        {"label": "v", "points": POINTS, "shape_type": "polygon", "group_id": None, "flags": {}},
        {"label": "w", "points": POINTS[:2], "shape_type": "rectangle", "group_id": 1, "flags": {}},
        {"label": "x", "points": POINTS[:2], "shape_type": "circle", "group_id": None, "flags": {}},
    ]
    value: dict[str, Any] = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": "a.png",
        "imageData": None,
    }
    return {"a.json": _json({**value, "imageHeight": SIDE, "imageWidth": SIDE}), "a.png": IMAGE}


def _cvat() -> Files:
    text = f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<image id="0" name="a.png" width="{SIDE}" height="{SIDE}">
<polygon label="v" occluded="0" points="4.0,4.0;18.0,4.5;18.0,18.0"><attribute name="s">1</attribute></polygon>
<box label="w" xtl="2" ytl="3" xbr="9" ybr="8" rotation="12.5"/>
<ellipse label="y" cx="12" cy="12" rx="5" ry="3"/>
<mask label="x" rle="2, 3, 4, 7" left="3" top="4" width="4" height="4"/>
</image></annotations>
"""
    return {"annotations.xml": text.encode(), "images/a.png": IMAGE}


def _labelstudio() -> Files:
    size = {"original_width": SIDE, "original_height": SIDE, "from_name": "label", "to_name": "image"}
    polygon = {"points": [[10.0, 10.0], [80.0, 12.0], [75.0, 80.0]], "polygonlabels": ["v"]}
    box = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 5, "rectanglelabels": ["w"]}
    brush = {"format": "rle", "rle": [0, 0, 9, 0, 37, 3, 51, 160, 7], "brushlabels": ["x"]}
    kinds = (("polygonlabels", polygon), ("rectanglelabels", box), ("brushlabels", brush))
    results = [{"id": kind, "type": kind, "value": value, **size} for kind, value in kinds]
    task = {
        "id": 1,
        "data": {"image": "/data/upload/1/0a1b2c3d-a.png"},
        "annotations": [{"id": 1, "result": results}],
    }
    return {"annotations.json": _json([task]), "images/a.png": IMAGE}


def _maskfolder() -> Files:
    index = _png(_disc().astype(np.uint8) * 2)
    return {"images/a.png": IMAGE, "masks/a.png": index, "classes.json": _json({"v": 2, "w": 1})}


def _nnunet() -> Files:
    value = {
        "channel_names": {"0": "XA"},
        "labels": {"background": 0, "v": 1},
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
