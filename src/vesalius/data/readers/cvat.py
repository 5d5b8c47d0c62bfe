"""The XML of CVAT, version 1.1: for images, a list of `image` with shapes; for video, a list of `track` over frames.

    <annotations>
      <image id="0" name="p1/a.png" width="512" height="512">
        <polygon label="vessel" points="10.5,20.0;30.0,20.0;30.0,40.0"> <attribute name="side">left</attribute> </polygon>
        <mask label="vessel" left="3" top="2" width="4" height="5" rle="2, 3, 15"/>
      </image>
      <track id="0" label="catheter"> <box frame="0" outside="0" xtl="1" ytl="1" xbr="9" ybr="5"/> ... </track>
    </annotations>

The label is the phrase. Read are polygon, box, ellipse and mask, whose `rle` are the runs of its box, row by row, the
background first. An image without shapes is not annotated. In a video each frame that a track mentions is a sample; a
track that is outside of a frame says that its label is not there. Attributes are kept as metadata (`shapes`), tags as
`tags`; occlusion, order of depth and source are not. Source: docs.cvat.ai, XML annotation format.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from vesalius.data.decoders import frame_files
from vesalius.data.decoders.limits import MAX_PIXELS
from vesalius.data.decoders.picture import SUFFIXES
from vesalius.data.images import frame_id
from vesalius.data.readers import fields, shapes
from vesalius.data.readers.fields import is_file, show
from vesalius.data.source import Problems, Source, report
from vesalius.errors import AnnotationError
from vesalius.masks import Size, encode_rle
from vesalius.types import Absent, MaskReference, Polygons, RleMask, Sample

Element = ElementTree.Element

WITHOUT_AREA = ("polyline", "points", "skeleton", "cuboid")
MAX_DEPTH = 32
MAX_COORDINATE = 1e7
BLOCK_BYTES = 1 << 16


def recognize(source: Source) -> bool:
    """Whether it is an XML file whose first bytes hold `<annotations>`."""
    return source.head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and b"<annotations>" in source.head


def read(source: Source, phrase: str = "", problems: Problems = None) -> list[Sample]:
    """Samples in the order of the file, those of a video in the order of its frames; one prompt a shape.

    Images lie beside the file or in `images/`, also under the name of their `subset` there; frames of a video are
    `images/frame_000000.png` and so on, or are read from the video that the file names. Raises AnnotationError, naming
    file and image or track; with `problems`, a wrong image is put there and left out, and with a wrong track all of
    its video. What is no XML, or has a DOCTYPE, raises in both cases.
    """
    samples: dict[str, Sample] = {}
    clip = _Clip()
    for element in _parse(source.path):
        try:
            if element.tag == "image":
                place = f"{source.path}, image {show(element.get('name'))}"
                _add(_read_image(element, place, source.root), samples)
            elif element.tag == "track":
                clip.add(element, f"{source.path}, track {show(element.get('id'))}")
            elif element.tag == "meta":
                clip.read_meta(element, source.path)
        except AnnotationError as error:
            clip.broken |= element.tag != "image"
            report(error, problems)
    try:
        clip.check()
    except AnnotationError as error:
        clip.broken = True
        report(error, problems)
    for frame in () if clip.broken else sorted(clip.frames):
        try:
            _add(clip.sample(frame, source), samples)
        except AnnotationError as error:
            report(error, problems)
    if not samples and not problems:
        raise AnnotationError(
            f"{source.path}: has neither images nor tracks; export it again from CVAT", code="no_image"
        )
    return list(samples.values())


def _parse(path: Path) -> Iterator[Element]:
    """The children of the root, one at a time; each is emptied once the next is asked for."""
    try:
        _refuse_doctype(path)
        depth = 0
        with path.open("rb") as file:
            for event, element in ElementTree.iterparse(file, events=("start", "end")):
                depth += 1 if event == "start" else -1
                if event == "start" and depth == 1:
                    root = element
                if depth > MAX_DEPTH:
                    raise AnnotationError(
                        f"{path}: is nested {depth} deep, which no file of CVAT is", code="unreadable_file"
                    )
                if event == "end" and depth == 1:
                    yield element
                    root.clear()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror})", code="unreadable_file") from error
    except (ElementTree.ParseError, expat.ExpatError, ValueError, LookupError) as error:
        raise AnnotationError(
            f"{path}: is no XML ({error}); export it again from CVAT", code="unreadable_file"
        ) from error


def _refuse_doctype(path: Path) -> None:
    """AnnotationError where the file declares a document type: entities could grow without end, or name other files."""

    def refuse(*declared: Any) -> None:
        raise AnnotationError(
            f"{path}: has a DOCTYPE, which no file of CVAT has; remove it", code="unreadable_file"
        )

    started = False

    def start(*element: Any) -> None:
        nonlocal started
        started = True

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    with path.open("rb") as file:
        while not started and (block := file.read(BLOCK_BYTES)):
            parser.Parse(block, False)


def _add(sample: Sample, samples: dict[str, Sample]) -> None:
    if sample.id in samples:
        raise AnnotationError(
            f"{sample.source}: has the same id {sample.id} as {samples[sample.id].source}; "
            "name images apart by more than the suffix",
            code="duplicate_id",
        )
    samples[sample.id] = sample


def _read_image(element: Element, place: str, root: Path) -> Sample:
    subset = element.get("subset", "")
    # a subset may become a folder only where it is a plain name
    within = (subset, f"images/{subset}") if PurePosixPath(subset).name == subset != ".." else ()
    image, name = fields.find_image(
        _complete(element.get("name", ""), root), place, root, ("", "images", *filter(None, within))
    )
    size = _read_size(element, place)
    rows: list[tuple[str, MaskReference]] = []
    noted, tags = [], []
    for index, shape in enumerate(element):
        at = f"{place}, {shape.tag} {index}"
        label = _read_label(shape, at)
        attributes = {each.get("name", ""): each.text or "" for each in shape.iter("attribute")}
        noted += [{"label": label} | attributes] if attributes else []
        if shape.tag == "tag":
            tags.append(label)
        else:
            rows.append((label, _read_shape(shape, at, size)))
    metadata = {
        key: value for key, value in {"tags": tags, "shapes": noted, "subset": subset}.items() if value
    }
    if not rows:
        return Sample(name, image, (), None, place, size=size, metadata=metadata)
    phrases = tuple(label for label, _ in rows)
    return Sample(
        name, image, phrases, tuple((mask,) for _, mask in rows), place, size=size, metadata=metadata
    )


def _complete(name: str, root: Path) -> str:
    """The name with the suffix of its file, where it has none: so frames of a video are listed, and stored as images."""
    endings = (*SUFFIXES, *map(str.upper, SUFFIXES)) if "." not in name else ()
    places = ((name + ending, folder) for folder in ("images", "") for ending in endings)
    return next((full for full, folder in places if is_file(root / folder / full)), name)


def _read_shape(shape: Element, place: str, size: Size | None) -> MaskReference:
    if shape.tag in WITHOUT_AREA:
        raise AnnotationError(
            f"{place}: a {shape.tag} has no area; draw a polygon around what is meant, or remove it",
            code="no_area",
        )
    if shape.tag not in SHAPES:
        raise AnnotationError(
            f"{place}: is a shape that is unknown; draw it as a polygon", code="unknown_shape"
        )
    return SHAPES[shape.tag](shape, place, size)


def _read_polygon(shape: Element, place: str, size: Size | None) -> Polygons:
    try:
        pairs = [pair.split(",") for pair in shape.get("points", "").split(";")]
        points = tuple(float(number) for x, y in pairs for number in (x, y))
    except ValueError as error:
        raise AnnotationError(
            f'{place}: points must be pairs of numbers, "x,y;x,y", not {show(shape.get("points"))}',
            code="invalid_points",
        ) from error
    return Polygons((points,))


def _read_box(shape: Element, place: str, size: Size | None) -> Polygons:
    left, top, right, bottom = (_read_number(shape, key, place) for key in ("xtl", "ytl", "xbr", "ybr"))
    outline = shapes.rectangle(left, top, right - left, bottom - top)
    return _turned(outline, shape, place, size)


def _read_ellipse(shape: Element, place: str, size: Size | None) -> Polygons:
    x, y, radius_x, radius_y = (_read_number(shape, key, place) for key in ("cx", "cy", "rx", "ry"))
    outline = shapes.ellipse(x, y, radius_x, radius_y)
    return _turned(outline, shape, place, size)


def _turned(outline: shapes.Points, shape: Element, place: str, size: Size | None) -> Polygons:
    """The outline, turned around its center, and cut at the border of the image."""
    angle = _read_number(shape, "rotation", place) if shape.get("rotation") is not None else 0.0
    x, y = outline.mean(axis=0)
    outline = shapes.turn(outline, angle, x, y) if angle else outline
    if size is not None and (angle or shape.tag == "ellipse"):
        outline = shapes.clip(outline, size)
    return Polygons((tuple(outline.ravel().tolist()),))


def _read_mask(shape: Element, place: str, size: Size | None) -> RleMask:
    if size is None:
        raise AnnotationError(
            f"{place}: a mask needs the width and height of its image", code="size_mismatch"
        )
    left, top, width, height = (_read_whole(shape, key, place) for key in ("left", "top", "width", "height"))
    if left + width > size[1] or top + height > size[0]:
        raise AnnotationError(
            f"{place}: the mask spans x {left} to {left + width} and y {top} to {top + height}, but the image is "
            f"{size[0]} x {size[1]} (h x w)",
            code="invalid_rle",
        )
    try:
        runs = [int(run) for run in shape.get("rle", "").split(",")]
    except ValueError as error:
        raise AnnotationError(
            f"{place}: rle must be whole numbers with commas between them", code="invalid_rle"
        ) from error
    if min(runs) < 0 or sum(runs) != width * height:
        raise AnnotationError(
            f"{place}: the runs of rle must fill the {width} x {height} pixels of the mask, not {sum(runs)}",
            code="invalid_rle",
        )
    mask = np.zeros(size, dtype=bool)
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask[top : top + height, left : left + width] = inside.reshape(height, width)
    return RleMask(encode_rle(mask))


SHAPES: dict[str, Callable[[Element, str, Size | None], MaskReference]] = {
    "polygon": _read_polygon,
    "box": _read_box,
    "ellipse": _read_ellipse,
    "mask": _read_mask,
}


def _read_label(element: Element, place: str) -> str:
    label = element.get("label", "")
    if not label.strip():
        raise AnnotationError(f"{place}: has no label; give it one in CVAT", code="no_phrase")
    return label


def _read_size(element: Element, place: str) -> Size | None:
    """(h, w) where both are stated."""
    if element.get("width") is None or element.get("height") is None:
        return None
    height, width = _read_whole(element, "height", place), _read_whole(element, "width", place)
    if not 0 < height * width <= MAX_PIXELS:
        raise AnnotationError(
            f"{place}: the size {height} x {width} (h x w) is not from 1 to {MAX_PIXELS // 10**6} million pixels",
            code="size_mismatch",
        )
    return height, width


def _read_number(element: Element, key: str, place: str) -> float:
    try:
        number = float(element.get(key, ""))
    except ValueError:
        number = math.nan
    if not abs(number) <= MAX_COORDINATE:
        raise AnnotationError(
            f"{place}: {key} must be a number, not {show(element.get(key))}", code="invalid_points"
        )
    return number


def _read_whole(element: Element, key: str, place: str) -> int:
    text = element.get(key, "")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise AnnotationError(f"{place}: {key} must be a whole number, not {show(element.get(key))}")
    return int(text)


@dataclass
class _Clip:
    """What the tracks of a video say, until all of them were read: each runs over many frames."""

    frames: dict[int, list[tuple[str, MaskReference]]] = field(default_factory=dict)
    tracks: list[tuple[str, dict[int, bool]]] = field(default_factory=list)
    """Place of each track, and for the frames that it mentions whether it is in view."""
    size: Size | None = None
    name: str = ""
    video: str = ""
    broken: bool = False

    def read_meta(self, element: Element, path: Path) -> None:
        """Name, size and video of the task or job."""
        self.name = element.findtext("task/name") or element.findtext("job/name") or ""
        self.video = element.findtext("source") or element.findtext("task/source") or ""
        stated = next(element.iter("original_size"), None)
        if stated is not None:
            sides = Element("original_size", {each.tag: (each.text or "").strip() for each in stated})
            self.size = _read_size(sides, f"{path}, original_size")

    def add(self, track: Element, place: str) -> None:
        """Put the shapes of a track to those of their frames."""
        label = _read_label(track, place)
        marks: dict[int, bool] = {}
        for shape in track:
            if shape.tag == "attribute":
                continue
            frame = _read_whole(shape, "frame", place)
            at = f"{place}, {shape.tag} of frame {frame}"
            outside = shape.get("outside", "0")
            if outside not in ("0", "1"):
                raise AnnotationError(f"{at}: outside must be 0 or 1, not {show(outside)}")
            mask = Absent() if outside == "1" else _read_shape(shape, at, self.size)
            self.frames.setdefault(frame, []).append((label, mask))
            marks[frame] = outside == "0"
        self.tracks.append((place, dict(sorted(marks.items()))))

    def check(self) -> None:
        """AnnotationError where a track that is in view does not mention the next frame: it would be missing there."""
        order = sorted(self.frames)
        for place, marks in self.tracks:
            mentioned = list(marks)
            for frame, then in zip_longest(mentioned, mentioned[1:]):
                place_in_order = bisect_right(order, frame)
                if marks[frame] and place_in_order < len(order) and order[place_in_order] != then:
                    raise AnnotationError(
                        f"{place}: is in view at frame {frame} and says nothing of frame {order[place_in_order]}; "
                        "export all frames, not key frames alone",
                        code="track_gap",
                    )

    def sample(self, frame: int, source: Source) -> Sample:
        """One frame; AnnotationError where its image is not found."""
        place = f"{source.path}, frame {frame}"
        image, name, number = self._find_frame(frame, place, source.root)
        rows = self.frames[frame]
        clip = self.name or source.root.resolve().name
        return Sample(
            name,
            image,
            tuple(label for label, _ in rows),
            tuple((mask,) for _, mask in rows),
            place,
            frame=number,
            group=clip,
            sequence=clip,
            size=self.size,
        )

    def _find_frame(self, frame: int, place: str, root: Path) -> tuple[Path, str, int | None]:
        """An image of its own, its id and None, or the video with the number of the frame."""
        stem = f"frame_{frame:06d}"
        image = _complete(stem, root)
        if image != stem:
            return *fields.find_image(image, place, root), None
        if self.video:
            try:
                video, name = fields.find_image(self.video, place, root)
            except AnnotationError:
                pass  # the message below says more
            else:
                if frame_files.kind_of(video) is not None:
                    return video, frame_id(name, frame), frame
        beside = f", nor is the video {show(self.video)} beside the file" if self.video else ""
        raise AnnotationError(
            f"{place}: there is no images/{stem}.png{beside}; export with images, or extract the frames under such names",
            code="missing_image",
        )
