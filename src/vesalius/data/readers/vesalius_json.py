"""The annotation format `vesalius`: the official fine-tuning JSON of Sa2VA.

    [{"image": "a.png", "mask": [object, ...], "text": [str, ...], "group": "p1", "size": [h, w]}, ...]

`mask[i]` is one object of the phrase `text[i]`: nested polygons `[[x1, y1, ...], ...]`, one flat polygon
`[x1, y1, ...]`, COCO RLE, or null where the phrase is not in the image. An entry with neither `mask` nor `text` is
not annotated. `frame` is a number in a file of several frames, `sequence` the clip that an image belongs to. Instead
of `image`, `video` is a list of paths, one a frame; an object is then a list with one such value for each frame.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from vesalius.data.images import frame_id
from vesalius.data.readers import fields
from vesalius.data.readers.fields import kind
from vesalius.data.sample_fields import KEYS as PARTICULARS
from vesalius.data.sample_fields import read_particulars
from vesalius.data.source import Problems, Source, report
from vesalius.errors import AnnotationError
from vesalius.masks import Size
from vesalius.types import Absent, MaskReference, Sample

KEYS = ("image", "video", "mask", "text", "size", *PARTICULARS)


def recognize(source: Source) -> bool:
    """Whether it is a JSON file with a list, the first entry of which, if any, has `image` or `video`."""
    value = source.json
    return isinstance(value, list) and (
        not value or not isinstance(value[0], dict) or bool({"image", "video", "mask"} & value[0].keys())
    )


def read(source: Source, phrase: str = "", problems: Problems = None) -> list[Sample]:
    """Samples of an annotation file, in its order; one prompt for each text, repeated where the text is.

    A video gives one sample a frame. Images lie beside the file or in `images/` beside it, and their paths may
    not leave its folder. Raises AnnotationError naming file, entry (counted from 0) and image; with `problems`,
    a wrong entry is put there instead and left out. A file that is no list of entries raises in both cases.
    """
    samples: dict[str, Sample] = {}
    for index, entry in enumerate(_entries(source)):
        try:
            found: dict[str, Sample] = {}
            for sample in _read_entry(entry, f"{source.path}, entry {index}", source.root):
                _check_new(sample, samples)
                _check_new(sample, found)
                found[sample.id] = sample
        except AnnotationError as error:
            report(error, problems)
        else:
            samples.update(found)
    return list(samples.values())


def _check_new(sample: Sample, samples: dict[str, Sample]) -> None:
    if sample.id in samples:
        raise AnnotationError(
            f"{sample.source}: has the same id {sample.id} as {samples[sample.id].source}; "
            "put all objects of an image in one entry, and name images apart by more than the suffix",
            code="duplicate_id",
        )


def _entries(source: Source) -> list[Any]:
    entries = source.json
    if not isinstance(entries, list):
        raise AnnotationError(f"{source.path}: must hold a list of entries, not {kind(entries)}")
    if not entries:
        raise AnnotationError(f"{source.path}: has no entries; give at least one image")
    return entries


def _read_entry(entry: Any, place: str, root: Path) -> list[Sample]:
    if not isinstance(entry, dict):
        raise AnnotationError(f"{place}: must be an object with image, mask and text, not {kind(entry)}")
    clip = "video" in entry
    labeled = "mask" in entry or "text" in entry
    needed = ("video" if clip else "image", *(("mask", "text") if labeled else ()))
    missing = [key for key in needed if key not in entry]
    if missing:
        raise AnnotationError(
            f"{place}: has no {' and no '.join(missing)}; an entry needs image, mask and text"
        )
    if clip and (not isinstance(entry["video"], list) or not entry["video"]):
        raise AnnotationError(f"{place}: video must be a list of the paths of its frames")
    paths = entry["video"] if clip else [entry["image"]]
    # the images first, so that every later message can name one
    images = [fields.find_image(path, place, root) for path in paths]
    named = f"{place} ({paths[0]})"
    texts = _read_texts(entry, named) if labeled else ()
    tracks = [
        _read_track(value, f"{named}: mask {i}", len(paths)) if clip else [value]
        for i, value in enumerate(entry["mask"] if labeled else ())
    ]
    shared = _read_shared(entry, named, _clip_name(paths, images) if clip else None)
    samples = []
    for i, (image, name) in enumerate(images):
        at = f"{place} ({paths[i]})"
        masks = tuple(
            (_read_object(track[i], f"{at}: mask {j}", shared["size"]),) for j, track in enumerate(tracks)
        )
        frame = shared["frame"]
        known_as = name if frame is None else frame_id(name, frame)
        samples.append(Sample(known_as, image, texts, masks if labeled else None, at, **shared))
    return samples


def _read_shared(entry: dict[str, Any], place: str, clip: str | None) -> dict[str, Any]:
    """What all frames of an entry have in common, as arguments of Sample."""
    metadata = {key: value for key, value in entry.items() if key not in KEYS}
    fields.check_metadata(metadata, place)
    particulars = read_particulars(entry, place)
    if clip and particulars["frame"] is not None:
        raise AnnotationError(f"{place}: a video has no frame of its own; its paths are its frames")
    named = {key: particulars[key] or clip for key in ("group", "sequence")}
    return {
        **particulars,
        **named,
        "size": fields.read_size(entry.get("size"), place),
        "metadata": metadata,
    }


def _clip_name(paths: list[str], images: list[tuple[Path, str]]) -> str:
    """The folder of the frames where they have one of their own, else the id of the first."""
    folders = {PurePosixPath(path).parent for path in paths}
    name = folders.pop().name if len(folders) == 1 else ""
    return name if name not in ("", "images") else images[0][1]


def _read_texts(entry: dict[str, Any], place: str) -> tuple[str, ...]:
    masks, texts = entry["mask"], entry["text"]
    if not isinstance(masks, list) or not isinstance(texts, list):
        raise AnnotationError(f"{place}: mask and text must be lists of equal length, one text an object")
    if len(masks) != len(texts):
        raise AnnotationError(
            f"{place}: has {len(masks)} masks but {len(texts)} texts; give one text an object",
            code="phrase_count_mismatch",
        )
    if not texts:
        raise AnnotationError(
            f"{place}: names no phrase; give at least one text, with null where it is not in the image",
            code="no_phrase",
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise AnnotationError(
                f"{place}: text {index} must be a phrase, not {kind(text) if text else 'empty'}",
                code="no_phrase",
            )
    return tuple(texts)


def _read_track(value: Any, place: str, n_frames: int) -> list[Any]:
    """The values of one object of a clip, one a frame; null stands for null in each."""
    if value is None:
        return [None] * n_frames
    if not isinstance(value, list) or len(value) != n_frames:
        found = f"{len(value)} values" if isinstance(value, list) else kind(value)
        raise AnnotationError(f"{place} must be a list of {n_frames} values, one a frame, not {found}")
    return value


def _read_object(value: Any, place: str, size: Size | None) -> MaskReference:
    if value is None:
        return Absent()
    if isinstance(value, dict):
        return fields.read_rle(value, place, size)
    if not isinstance(value, list):
        raise AnnotationError(f"{place} must be polygons, RLE or null, not {kind(value)}")
    if not value:
        raise AnnotationError(
            f"{place} is empty; use null to say that the phrase is not there", code="empty_object"
        )
    return fields.read_polygons(value, place)
