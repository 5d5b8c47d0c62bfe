"""Read CVAT XML 1.1: `image` elements with shapes for images, `track` elements over frames for videos.

    <annotations>
      <image id="0" name="p1/a.png" width="512" height="512">
        <polygon label="vessel" points="10.5,20.0;30.0,20.0;30.0,40.0"> <attribute name="side">left</attribute> </polygon>
        <mask label="vessel" left="3" top="2" width="4" height="5" rle="2, 3, 15"/>
      </image>
      <track id="0" label="catheter"> <box frame="0" outside="0" xtl="1" ytl="1" xbr="9" ybr="5"/> ... </track>
    </annotations>

The label is the phrase. Polygon, box, ellipse and mask are read; the `rle` of a mask has the run lengths of its box,
row by row, background first. An image without shapes is not annotated. In a video, each frame with a shape of a track
is a sample, and `outside` means that the label is not in the frame. Attributes are kept as metadata (`shapes`), tags
as `tags`; occlusion, depth order and source are ignored. Expat (2.4.1 or later) limits entity expansion, and
ElementTree loads no external entities. Source: docs.cvat.ai, XML annotation format.
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

import numpy as np

from vesalius.data.decoders import frame_files
from vesalius.data.decoders.picture import SUFFIXES
from vesalius.data.images import frame_id
from vesalius.data.readers import fields, shapes
from vesalius.data.readers.fields import is_file, show
from vesalius.data.source import Problems, Samples, Source, report, reporting, unreadable
from vesalius.errors import AnnotationError
from vesalius.masks import Size, encode_rle
from vesalius.types import Absent, Location, MaskReference, Polygons, RleMask, Sample

Element = ElementTree.Element

MAX_DEPTH = 32
MAX_COORDINATE = 1e7


def recognize(source: Source) -> bool:
    """True if the source is an XML file with `<annotations>` in its first bytes."""
    return source.head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and b"<annotations>" in source.head


def read(source: Source, phrase: str = "", problems: Problems = None) -> list[Sample]:
    """Samples in the order of the images in the file or of the frames in the video; one prompt for each shape.

    Images are searched beside the file and in `images/`, also in subfolders named like their `subset`. Frames of a
    video are `images/frame_000000.png` and so on, or are read from the video named in the file. Raises AnnotationError
    with file and image or track. With `problems`, the error is added there; an invalid image is skipped, and an invalid
    track skips its whole video. A file that is not XML always raises.
    """
    samples = Samples()
    clip = _Clip()
    for element in _parse(source.path):
        try:
            if element.tag == "image":
                where = source.locate(f"image {show(element.get('name'))}")
                samples.add(_read_image(element, where, source.root), where)
            elif element.tag == "track":
                clip.add(element, source.locate(f"track {show(element.get('id'))}"))
            elif element.tag == "meta":
                clip.read_meta(element, source)
        except AnnotationError as error:
            clip.broken |= element.tag != "image"
            report(error, problems)
    try:
        clip.check()
    except AnnotationError as error:
        clip.broken = True
        report(error, problems)
    for frame in () if clip.broken else sorted(clip.frames):
        with reporting(problems):
            where = source.locate(f"frame {frame}")
            samples.add(clip.sample(frame, where, source.root), where)
    if not samples and not problems:
        raise Location(source.path).error("has neither images nor tracks", "no_image")
    return samples


def _parse(path: Path) -> Iterator[Element]:
    """The children of the root, one at a time; each is cleared when the next is requested."""
    where = Location(path)
    try:
        depth = 0
        with path.open("rb") as file:
            for event, element in ElementTree.iterparse(file, events=("start", "end")):
                depth += 1 if event == "start" else -1
                if event == "start" and depth == 1:
                    root = element
                if depth > MAX_DEPTH:
                    raise where.error(f"is nested {depth} levels deep, more than CVAT writes", "unreadable_file")
                if event == "end" and depth == 1:
                    yield element
                    root.clear()
    except OSError as error:
        raise unreadable(path, error) from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise where.error(f"is not XML ({error})", "unreadable_file", "export it again from CVAT") from error


def _read_image(element: Element, where: Location, root: Path) -> Sample:
    subset = element.get("subset", "")
    # a subset is used as a folder only if it is a plain name
    within = (subset, f"images/{subset}") if PurePosixPath(subset).name == subset != ".." else ()
    image, name = fields.find_image(
        _complete(element.get("name", ""), root), where, root, ("", "images", *filter(None, within))
    )
    size = _read_size(element, where)
    rows: list[tuple[str, MaskReference]] = []
    noted, tags = [], []
    for index, shape in enumerate(element):
        at = where.inside(f"{shape.tag} {index}")
        label = _read_label(shape, at)
        attributes = {each.get("name", ""): each.text or "" for each in shape.iter("attribute")}
        noted += [{"label": label} | attributes] if attributes else []
        if shape.tag == "tag":
            tags.append(label)
        else:
            rows.append((label, _read_shape(shape, at, size)))
    metadata: dict[str, Any] = {"tags": tags, "shapes": noted, "subset": subset}
    return Sample(
        name,
        image,
        tuple(label for label, _ in rows),
        tuple((mask,) for _, mask in rows) or None,
        where,
        size=size,
        metadata={key: value for key, value in metadata.items() if value},
    )


def _complete(name: str, root: Path) -> str:
    """The name, completed by the suffix of its file if it has none, as for the frames of a video."""
    endings = (*SUFFIXES, *map(str.upper, SUFFIXES)) if "." not in name else ()
    candidates = ((name + ending, folder) for folder in ("images", "") for ending in endings)
    return next((full for full, folder in candidates if is_file(root / folder / full)), name)


def _read_shape(shape: Element, where: Location, size: Size | None) -> MaskReference:
    if shape.tag in ("polyline", "points", "skeleton", "cuboid"):
        raise where.error(f"a {shape.tag} has no area", "no_area")
    if shape.tag not in SHAPES:
        raise where.error("is an unknown shape", "unknown_shape")
    return SHAPES[shape.tag](shape, where, size)


def _read_polygon(shape: Element, where: Location, size: Size | None) -> Polygons:
    try:
        pairs = [pair.split(",") for pair in shape.get("points", "").split(";")]
        return Polygons((tuple(float(number) for x, y in pairs for number in (x, y)),))
    except ValueError as error:
        found = show(shape.get("points"))
        raise where.error(f'points must be pairs of numbers, "x,y;x,y", not {found}', "invalid_points") from error


def _read_box(shape: Element, where: Location, size: Size | None) -> Polygons:
    left, top, right, bottom = (_read_number(shape, key, where) for key in ("xtl", "ytl", "xbr", "ybr"))
    return _rotated(shapes.rectangle(left, top, right - left, bottom - top), shape, where, size)


def _read_ellipse(shape: Element, where: Location, size: Size | None) -> Polygons:
    return _rotated(
        shapes.ellipse(*(_read_number(shape, key, where) for key in ("cx", "cy", "rx", "ry"))), shape, where, size
    )


def _rotated(outline: shapes.Points, shape: Element, where: Location, size: Size | None) -> Polygons:
    """The outline, rotated around its center and clipped to the image."""
    angle = _read_number(shape, "rotation", where) if shape.get("rotation") is not None else 0.0
    x, y = outline.mean(axis=0)
    outline = shapes.rotate(outline, angle, x, y) if angle else outline
    if size is not None and (angle or shape.tag == "ellipse"):
        outline = shapes.clip(outline, size)
    return Polygons((tuple(outline.ravel().tolist()),))


def _read_mask(shape: Element, where: Location, size: Size | None) -> RleMask:
    if size is None:
        raise where.error("a mask needs the width and height of its image", "missing_field")
    left, top, width, height = (_read_whole(shape, key, where) for key in ("left", "top", "width", "height"))
    if left + width > size[1] or top + height > size[0]:
        raise where.error(
            f"the mask spans x {left} to {left + width} and y {top} to {top + height}, but the image is "
            f"{size[0]} x {size[1]} (h x w)",
            "invalid_rle",
        )
    try:
        runs = [int(run) for run in shape.get("rle", "").split(",")]
    except ValueError as error:
        raise where.error("rle must be comma-separated whole numbers", "invalid_rle") from error
    if min(runs) < 0 or sum(runs) != width * height:
        raise where.error(f"the runs of rle must sum to {width} x {height} pixels, not {sum(runs)}", "invalid_rle")
    mask = np.zeros(size, dtype=bool)
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask[top : top + height, left : left + width] = inside.reshape(height, width)
    return RleMask(encode_rle(mask))


SHAPES: dict[str, Callable[[Element, Location, Size | None], MaskReference]] = {
    "polygon": _read_polygon,
    "box": _read_box,
    "ellipse": _read_ellipse,
    "mask": _read_mask,
}


def _read_label(element: Element, where: Location) -> str:
    label = element.get("label", "")
    if not label.strip():
        raise where.error("has no label", "no_phrase", "give it one in CVAT")
    return label


def _read_size(element: Element, where: Location) -> Size | None:
    """(h, w), or None if the element does not state both."""
    if element.get("width") is None or element.get("height") is None:
        return None
    height, width = _read_whole(element, "height", where), _read_whole(element, "width", where)
    return fields.check_area((height, width), where)


def _read_number(element: Element, key: str, where: Location) -> float:
    try:
        number = float(element.get(key, ""))
    except ValueError:
        number = math.nan
    if not abs(number) <= MAX_COORDINATE:
        raise where.error(f"{key} must be a number, not {show(element.get(key))}", "invalid_points")
    return number


def _read_whole(element: Element, key: str, where: Location) -> int:
    text = element.get(key, "")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise where.error(f"{key} must be a whole number, not {show(element.get(key))}", "bad_value")
    return int(text)


@dataclass
class _Clip:
    """The shapes of all tracks of a video by frame; tracks span many frames, so all are read before any sample."""

    frames: dict[int, list[tuple[str, MaskReference]]] = field(default_factory=dict)
    tracks: list[tuple[Location, dict[int, bool]]] = field(default_factory=list)
    """(location, frame -> True if visible) of each track, for the frames in which it has a shape."""
    size: Size | None = None
    name: str = ""
    video: str = ""
    broken: bool = False

    def read_meta(self, element: Element, source: Source) -> None:
        """Set name, size and video from the metadata of the task or job."""
        self.name = element.findtext("task/name") or element.findtext("job/name") or ""
        self.video = element.findtext("source") or element.findtext("task/source") or ""
        stated = next(element.iter("original_size"), None)
        if stated is not None:
            sides = Element("original_size", {each.tag: (each.text or "").strip() for each in stated})
            self.size = _read_size(sides, source.locate("original_size"))

    def add(self, track: Element, where: Location) -> None:
        """Add the shapes of a track to their frames."""
        label = _read_label(track, where)
        visible: dict[int, bool] = {}
        for shape in track:
            if shape.tag == "attribute":
                continue
            frame = _read_whole(shape, "frame", where)
            at = where.inside(f"{shape.tag} of frame {frame}")
            outside = shape.get("outside", "0")
            if outside not in ("0", "1"):
                raise at.error(f"outside must be 0 or 1, not {show(outside)}", "bad_value")
            mask = Absent() if outside == "1" else _read_shape(shape, at, self.size)
            self.frames.setdefault(frame, []).append((label, mask))
            visible[frame] = outside == "0"
        self.tracks.append((where, dict(sorted(visible.items()))))

    def check(self) -> None:
        """Raise AnnotationError if a visible track has no shape in the next annotated frame."""
        order = sorted(self.frames)
        for where, visible in self.tracks:
            mentioned = list(visible)
            for frame, then in zip_longest(mentioned, mentioned[1:]):
                next_index = bisect_right(order, frame)
                if visible[frame] and next_index < len(order) and order[next_index] != then:
                    raise where.error(
                        f"is visible in frame {frame} but has no shape in frame {order[next_index]}", "track_gap"
                    )

    def sample(self, frame: int, where: Location, root: Path) -> Sample:
        """The sample of one frame; AnnotationError if its image is not found."""
        image, name, number = self._find_frame(frame, where, root)
        rows = self.frames[frame]
        clip = self.name or root.resolve().name
        return Sample(
            name,
            image,
            tuple(label for label, _ in rows),
            tuple((mask,) for _, mask in rows),
            where,
            frame=number,
            group=clip,
            sequence=clip,
            size=self.size,
        )

    def _find_frame(self, frame: int, where: Location, root: Path) -> tuple[Path, str, int | None]:
        """(image file, id, None) or, without an image file, (video, id of the frame, its index)."""
        stem = f"frame_{frame:06d}"
        image = _complete(stem, root)
        if image != stem:
            return *fields.find_image(image, where, root), None
        if self.video:
            try:
                video, name = fields.find_image(self.video, where, root)
            except AnnotationError:
                pass  # the error below names the video too
            else:
                if frame_files.kind_of(video) is not None:
                    return video, frame_id(name, frame), frame
        beside = f", and the video {show(self.video)} is not beside the file" if self.video else ""
        raise where.error(
            f"there is no images/{stem}.png{beside}",
            "missing_image",
            "export with images, or extract the frames to files of these names",
        )
