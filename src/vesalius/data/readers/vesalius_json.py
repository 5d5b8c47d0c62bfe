"""Read the annotation format `vesalius`, the official fine-tuning JSON of Sa2VA with optional keys.

    [{"image": "a.png", "mask": [object, ...], "text": [str, ...], "group": "p1", "size": [h, w]}, ...]

`mask[i]` is one object of the phrase `text[i]`: nested polygons `[[x1, y1, ...], ...]`, one flat polygon
`[x1, y1, ...]`, COCO RLE, or null if the phrase is not in the image. An entry with neither `mask` nor `text` is not
annotated. `frame` is the index of a frame in a multi-frame file, `sequence` the clip of an image. An entry with `video`
instead of `image` has a list of paths, one for each frame, and each of its objects is a list with one value for each
frame.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field

from vesalius.data.images import frame_id
from vesalius.data.readers import fields
from vesalius.data.readers.fields import kind, named, parse
from vesalius.data.sample_fields import KEYS as SAMPLE_KEYS
from vesalius.data.sample_fields import SampleFields
from vesalius.data.source import Problems, Source, UniqueIds, reporting
from vesalius.masks import Size
from vesalius.types import Absent, Location, MaskReference, Sample

KEYS = ("image", "video", "mask", "text", "size", *SAMPLE_KEYS)
"""Keys of an entry that are not metadata."""


class _Entry(SampleFields):
    image: Any = None
    video: list[Any] = Field(default_factory=list, min_length=1)
    mask: list[Any] = Field(default_factory=list)
    text: list[fields.Phrase] = Field(default_factory=list)
    size: fields.ImageSize | None = None


def recognize(source: Source) -> bool:
    """True if the source is a JSON list, empty or with `image`, `video` or `mask` in its first entry."""
    value = source.json
    return isinstance(value, list) and (
        not value or not isinstance(value[0], dict) or bool({"image", "video", "mask"} & value[0].keys())
    )


def read(source: Source, phrase: str = "", problems: Problems = None) -> list[Sample]:
    """Samples in the order of the entries; one prompt for each text, also for a repeated text.

    A video gives one sample for each frame. Images must be in the folder of the annotation file or its `images/`.
    Raises AnnotationError with file, entry (counted from 0) and image. With `problems`, the error of an entry is added
    there and the entry is skipped; a file that is not a list of entries always raises.
    """
    where, entries = Location(source.path), source.json
    if not isinstance(entries, list):
        raise where.error(f"must be a list of entries, not {kind(entries)}", "bad_value")
    if not entries:
        raise where.error("has no entries", "no_image", "give at least one image")
    samples: list[Sample] = []
    ids = UniqueIds()
    for index, entry in enumerate(entries):
        with reporting(problems):
            found = _read_entry(entry, source.path, index, source.root)
            new = UniqueIds()
            for sample, at in found:
                (ids if sample.id in ids else new).add(sample.id, at)
            ids.update(new)
            samples += [sample for sample, _ in found]
    return samples


def _read_entry(value: Any, path: Path, index: int, root: Path) -> list[tuple[Sample, Location]]:
    paths: Any = value.get("video", [value.get("image")]) if isinstance(value, dict) else None
    paths = paths if isinstance(paths, list) else []
    locations = [Location(path, named(f"entry {index}", each)) for each in paths]
    where = locations[0] if locations else Location(path, f"entry {index}")
    entry = parse(_Entry, value, where)
    given = entry.model_fields_set
    labeled = bool(given & {"mask", "text"})
    missing = [key for key in ("mask", "text") if labeled and key not in given]
    missing += [] if given & {"image", "video"} else ["image"]
    if missing:
        raise where.error(f"has no {' and no '.join(missing)}", "missing_field")
    images = [fields.find_image(each, at, root) for each, at in zip(paths, locations, strict=True)]
    if labeled:
        _check_texts(entry, where)
    clip = _clip_name(paths, images) if entry.video else None
    if clip and entry.frame is not None:
        raise where.inside("frame").error("a video entry cannot have a frame", "bad_value")
    fields.check_metadata(entry.unknown, where)
    tracks = [
        _read_track(each, where.inside(f"mask[{i}]"), len(paths)) if clip else [each]
        for i, each in enumerate(entry.mask)
    ]
    common = entry.as_arguments()
    common |= {key: common[key] or clip for key in ("group", "sequence")}
    samples = []
    for i, ((image, name), at) in enumerate(zip(images, locations, strict=True)):
        masks = tuple((_read_object(track[i], at, j, entry.size),) for j, track in enumerate(tracks))
        sample = Sample(
            name if entry.frame is None else frame_id(name, entry.frame),
            image,
            tuple(entry.text),
            masks if labeled else None,
            at,
            size=entry.size,
            metadata=entry.unknown,
            **common,
        )
        samples.append((sample, at))
    return samples


def _clip_name(paths: list[str], images: list[tuple[Path, str]]) -> str:
    """The name of the frames' common folder, unless it is `images`; else the id of the first frame."""
    folders = {PurePosixPath(path).parent for path in paths}
    name = folders.pop().name if len(folders) == 1 else ""
    return name if name not in ("", "images") else images[0][1]


def _check_texts(entry: _Entry, where: Location) -> None:
    if len(entry.mask) != len(entry.text):
        counts = f"{len(entry.mask)} masks but {len(entry.text)} texts"
        raise where.error(f"has {counts}", "phrase_count_mismatch")
    if not entry.text:
        raise where.error("has no phrase", "no_phrase")


def _read_track(value: Any, where: Location, n_frames: int) -> list[Any]:
    """The values of one object of a clip, one for each frame; a single null applies to all frames."""
    if value is None:
        return [None] * n_frames
    if not isinstance(value, list) or len(value) != n_frames:
        found = f"{len(value)} values" if isinstance(value, list) else kind(value)
        raise where.error(f"must be a list of {n_frames} values, one for each frame, not {found}", "bad_value")
    return value


def _read_object(value: Any, where: Location, index: int, size: Size | None) -> MaskReference:
    if value is None:
        return Absent()
    at = where.inside(f"mask[{index}]")
    if value == []:
        raise at.error("is empty", "empty_object")
    return fields.read_mask(value, at, size)
