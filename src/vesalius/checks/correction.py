"""Correction of one sample for `check --fix`: some errors are fixed, other faulty annotations are dropped.

Each change is recorded. A phrase is kept or dropped as a whole, because an incomplete mask would be wrong ground truth.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool
from PIL import Image
from scipy.ndimage import binary_dilation, label

from vesalius.data.dataset import load_image, load_mask
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.data.decoders.limits import MAX_PIXELS
from vesalius.data.decoders.picture import is_turned
from vesalius.data.images import read_mask
from vesalius.errors import DataError, ImageError
from vesalius.files import to_json
from vesalius.lineage import hash_pixels
from vesalius.masks import EIGHT_CONNECTED, Size, area_average, decode_rle, encode_rle, overshoot, rasterize
from vesalius.names import count_of
from vesalius.types import Absent, MaskFile, MaskReference, Polygons, RleMask, Sample

Action = Literal["rescaled", "merged", "clipped", "dropped"]
MAX_ENLARGEMENT = 2.0
"""Maximum scale factor of pixel masks. Their edge is known to half a pixel; above 2x, the error could exceed one pixel."""
MAX_OVERSHOOT_PX, MAX_OVERSHOOT = 2.0, 0.02
"""Tolerated overshoot of points: in pixels, or as a fraction of the side if that is more. Points further outside mean that
the mask was drawn on another size."""


@dataclass(frozen=True)
class Change:
    """One change to a sample, or to an entry that could not be read."""

    action: Action
    id: str
    """Id of the sample; empty for an entry that could not be read."""
    part: str
    """What was changed: `image`, a phrase, or a polygon or object of a phrase."""
    reason: str
    split: str = ""
    """Key of `Report.parts`."""


@dataclass(frozen=True)
class Correction:
    """A corrected sample with its changes."""

    sample: Sample | None
    """None if the sample is dropped."""
    changes: tuple[Change, ...] = ()
    has_unknown_scale: bool = False
    """True if the sample was dropped because it is unknown at which image size it was annotated."""
    key: str | None = None
    """Hash of pixels, masks, group and metadata that finds duplicates; None if duplicates of the sample are allowed."""


class NotCorrectable(ValueError):
    """A phrase cannot be kept; the message is the reason."""


def correct(sample: Sample, reader: FrameReader | None = None) -> Correction:
    """Correct one sample: masks at the image size, no degenerate polygons, and one object per phrase.

    For a sample without annotation, only the stated size is corrected. Reads the image and all masks.
    """
    changes: list[Change] = []

    def note(action: Action, part: str, reason: str) -> None:
        changes.append(Change(action, sample.id, part, reason))

    try:
        image = load_image(sample, reader)
    except ImageError as error:
        note("dropped", "image", str(error))
        return Correction(None, tuple(changes))
    size = image.shape[0], image.shape[1]
    if sample.size is None and is_turned(sample.image):
        sample = replace(sample, size=size)  # decides how the copy is turned
    if far := _find_far_points(sample, sample.size or size):
        note("dropped", "image", far)
        return Correction(None, tuple(changes), has_unknown_scale=True)
    kept: dict[str, tuple[MaskReference, ...]] = {}
    for phrase, objects in zip(sample.prompts, sample.masks or (), strict=sample.masks is not None):
        try:
            kept[phrase] = _correct_phrase(objects, phrase, sample.size, size, note)
        except (NotCorrectable, DataError) as error:
            note("dropped", repr(phrase), str(error))
    if sample.masks is not None and not kept:
        note("dropped", "image", "no phrase is left")
        return Correction(None, tuple(changes))
    if sample.size not in (None, size):
        if not any(change.action == "rescaled" for change in changes):
            note("rescaled", "stated size", _from_to(sample.size, size))
        sample = replace(sample, size=size)
    if sample.masks is not None:
        sample = replace(sample, prompts=tuple(kept), masks=tuple(kept.values()))
    return Correction(sample, tuple(changes), key=_key(sample, image, size))


Note = Callable[[Action, str, str], None]


def _correct_phrase(
    objects: Sequence[MaskReference], phrase: str, stated: Size | None, size: Size, note: Note
) -> tuple[MaskReference, ...]:
    """The corrected objects of a phrase: one non-empty object, or `Absent`; NotCorrectable or DataError if impossible."""
    drawn = [each for each in objects if not isinstance(each, Absent)]
    if not drawn:
        return tuple(objects)
    kept: list[MaskReference] = []
    for index, reference in enumerate(drawn):
        name = repr(phrase) if len(drawn) == 1 else f"{phrase!r}, object {index}"
        if isinstance(reference, Polygons):
            corrected = _correct_polygons(reference, name, stated, size, note)
        else:
            corrected = _correct_raster(reference, name, size, note)
        if corrected is not None and load_mask(corrected, size, name).any():
            kept.append(corrected)
        elif len(drawn) > 1:
            note("dropped", name, "has no pixels")
    if not kept:
        raise NotCorrectable("its mask has no pixels, and the phrase is not marked as absent")
    if len(kept) > 1:
        note("merged", repr(phrase), f"{len(kept)} objects have the same phrase")
        return (_merge(kept, size),)
    return tuple(kept)


def _correct_polygons(
    polygons: Polygons, name: str, stated: Size | None, size: Size, note: Note
) -> MaskReference | None:
    """The polygons in image coordinates, clipped to the image; None if no polygon has an area."""
    parts = []
    for index, part in enumerate(polygons.parts):
        if reason := _degenerate(part):
            note("dropped", f"{name}, polygon {index}", reason)
        else:
            parts.append(part)
    if not parts:
        return None
    if stated not in (None, size):
        assert stated is not None
        _check_scale(stated, size)
        scale = size[1] / stated[1], size[0] / stated[0]
        parts = [tuple(value * scale[i % 2] for i, value in enumerate(part)) for part in parts]
        note("rescaled", name, _from_to(stated, size))
    over = _outside(parts, size)
    if over <= 1:
        return Polygons(tuple(parts))
    note("clipped", name, f"reached {over:.4g} pixels outside the image")
    # as RLE, because a clipped polygon has new corners and would not rasterize to the same mask
    return RleMask(encode_rle(rasterize(parts, size)))


def _degenerate(part: Sequence[float]) -> str:
    """Reason why a polygon has no area, "" if it has one; NotCorrectable if some of its coordinates are missing."""
    n, finite = len(part) // 2, _finite_points(part)
    if not _spans_area(finite):
        return f"its {count_of(n, 'point')} enclose no area" if len(finite) == n else "is not a polygon (NaN)"
    if len(finite) < n:
        raise NotCorrectable("one of its polygons has a non-finite coordinate, so its shape is unknown")
    if len(part) % 2:
        raise NotCorrectable(f"one of its polygons has {len(part)} numbers, so a coordinate is missing")
    return ""


def _finite_points(part: Sequence[float]) -> np.ndarray:
    """(n, 2): the points of a polygon with two finite coordinates."""
    points = np.array(part[: len(part) // 2 * 2], dtype=float).reshape(-1, 2)
    return points[np.isfinite(points).all(axis=1)]


def _spans_area(points: np.ndarray) -> bool:
    """True unless all points lie on one line."""
    if len(points) < 3:
        return False
    # coordinates near the limit of float64 are rejected later
    with np.errstate(over="ignore", invalid="ignore"):
        edges = points[1:] - points[0]
        edges = np.ldexp(edges, -np.frexp(np.abs(edges).max())[1])  # exact, and prevents overflow
        longest = edges[np.argmax((edges**2).sum(axis=1))]
        return bool((edges[:, 0] * longest[1] != edges[:, 1] * longest[0]).any())


def _correct_raster(reference: RleMask | MaskFile | Absent, name: str, size: Size, note: Note) -> MaskReference | None:
    """The mask at the image size; None if it is empty; NotCorrectable if rescaling would change its shape."""
    stored = stored_size(reference)
    if stored == size:
        return reference
    if stored[0] * stored[1] > MAX_PIXELS:
        raise NotCorrectable(f"its mask of {_by(stored)} has more than {MAX_PIXELS // 10**6} megapixels")
    if isinstance(reference, MaskFile):
        mask = read_mask(reference.path, stored, reference.values, reference.known)
    else:
        assert isinstance(reference, RleMask)
        try:
            mask = decode_rle(reference.rle)
        except ValueError as error:
            raise NotCorrectable(str(error)) from error
    if not mask.any():  # in a label map, a class without pixels is absent
        return Absent() if isinstance(reference, MaskFile) and reference.values is not None else None
    _check_scale(stored, size)
    resampled = resample(mask, size)
    if resampled is None:
        raise NotCorrectable(
            f"its mask of {_by(stored)} would change its shape at {_by(size)}; draw it again on the image"
        )
    note("rescaled", name, _from_to(stored, size))
    return RleMask(encode_rle(resampled))


def stored_size(reference: MaskReference) -> Size:
    """(h, w) in an RLE or in the header of a mask file; NotCorrectable if the file cannot be read."""
    if isinstance(reference, MaskFile):
        try:
            with Image.open(reference.path) as file:
                return file.height, file.width
        except Exception as error:  # Pillow's parsers raise exceptions of any type
            raise NotCorrectable(f"{reference.path}: cannot be read ({error})") from error
    assert isinstance(reference, RleMask)
    return reference.rle["size"][0], reference.rle["size"][1]


def resample(mask: Bool[np.ndarray, "h w"], size: Size) -> Bool[np.ndarray, "H W"] | None:
    """The mask resampled to `size`, or None if resampling would change its shape.

    A pixel belongs to the result if the mask covers at least half of it. None if a mask pixel would move by more than one
    pixel, if components would split, merge or vanish, or if the scale factor exceeds `MAX_ENLARGEMENT`.
    """
    if max(new / old for new, old in zip(size, mask.shape, strict=True)) > MAX_ENLARGEMENT:
        return None
    resampled = area_average(mask, size) >= 0.5
    same_shape = _near(mask, resampled) and _components(mask) == _components(resampled)
    return resampled if same_shape else None


def _near(before: Bool[np.ndarray, "h w"], after: Bool[np.ndarray, "H W"]) -> bool:
    """Whether each pixel of `before`, scaled to the size of `after`, is at most one pixel from `after`."""
    reached = binary_dilation(after, EIGHT_CONNECTED)
    rows, columns = (
        ((positions + 0.5) * new / old).astype(int)
        for positions, new, old in zip(np.nonzero(before), after.shape, before.shape, strict=True)
    )
    return bool(reached[rows, columns].all())


def _components(mask: Bool[np.ndarray, "h w"]) -> int:
    return int(label(mask, EIGHT_CONNECTED)[1])


def _merge(objects: Sequence[MaskReference], size: Size) -> MaskReference:
    polygons = [each for each in objects if isinstance(each, Polygons)]
    if len(polygons) == len(objects):
        return Polygons(tuple(part for each in polygons for part in each.parts))
    return RleMask(encode_rle(np.logical_or.reduce([load_mask(each, size, "") for each in objects])))


def _check_scale(stated: Size, size: Size) -> None:
    """Raise NotCorrectable if the two sizes suggest that the image was rotated, cropped, padded or stretched."""
    if stated == size[::-1]:
        raise NotCorrectable(
            f"its stated size {_by(stated)} is the image size with height and width swapped; the image may have been rotated"
        )
    if not same_ratio(stated, size):
        raise NotCorrectable(
            f"its stated size is {_by(stated)} for an image of {_by(size)}: the ratios of height and width differ, and it is "
            "unknown whether the image was stretched, cropped or padded"
        )


def same_ratio(one: Size, other: Size) -> bool:
    """Whether the ratio of heights equals the ratio of widths within 1 %."""
    return math.isclose(one[0] / other[0], one[1] / other[1], rel_tol=0.01)


def _find_far_points(sample: Sample, drawn: Size) -> str:
    """Reason why polygons cannot have been drawn on an image of size `drawn`; "" if they can."""
    furthest = 0.0
    for reference in (each for objects in sample.masks or () for each in objects):
        for part in reference.parts if isinstance(reference, Polygons) else ():
            points = _finite_points(part)
            if _spans_area(points):
                beyond = np.maximum(-points, points - (drawn[1], drawn[0])).max(axis=0)
                if (beyond > np.maximum(MAX_OVERSHOOT_PX, MAX_OVERSHOOT * np.array([drawn[1], drawn[0]]))).any():
                    furthest = max(furthest, float(beyond.max()))
    if not furthest:
        return ""
    what = f"its stated size of {_by(drawn)}" if sample.size else "the image"
    return (
        f"coordinates lie {furthest:.4g} pixels outside {what}, so it is unknown at which image size it was annotated"
    )


def _outside(parts: Sequence[Sequence[float]], size: Size) -> float:
    """Distance in pixels of the farthest point outside an image of `size`; 0 if all are inside."""
    return max(0.0, overshoot(np.concatenate([np.reshape(part, (-1, 2)) for part in parts]), size))


def _key(sample: Sample, image: np.ndarray, size: Size) -> str | None:
    # equal frames of a clip are legitimate and are kept
    if sample.masks is None or sample.sequence is not None:
        return None
    masks = [
        encode_rle(np.logical_or.reduce([load_mask(each, size, "") for each in objects]))["counts"]
        for objects in sample.masks
    ]
    content = [
        hash_pixels(image),
        sorted(zip(sample.prompts, masks, strict=True)),
        [sample.group, sample.spacing_mm, dict(sorted(sample.metadata.items()))],
    ]
    return hashlib.sha256(to_json(content).encode()).hexdigest()


def _from_to(before: Size | None, after: Size) -> str:
    assert before is not None
    unequal = "" if same_ratio(before, after) else ", with different factors for height and width"
    return f"{_by(before)} to {_by(after)}{unequal}"


def _by(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
