"""One sample corrected where the remedy is certain; where it is not, what is wrong is dropped, and said.

A phrase is kept whole or dropped: a mask from which a drawn piece was taken would be a wrong truth.
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
from vesalius.data.decoders.limits import MAX_PIXELS
from vesalius.data.images import read_mask
from vesalius.errors import DataError, ImageError
from vesalius.files import to_json
from vesalius.lineage import hash_pixels
from vesalius.masks import Size, area_average, decode_rle, encode_rle, overshoot, rasterize
from vesalius.types import Absent, MaskFile, MaskReference, Polygons, RleMask, Sample

Action = Literal["rescaled", "merged", "clipped", "dropped"]
EIGHT = np.ones((3, 3), dtype=bool)
ENLARGED_MOST = 2.0
"""A border drawn in pixels is known to half a pixel: enlarged by more than this, it could be off by more than one."""
STRAY_PX, STRAY = 2.0, 0.02
"""How far outside a hand may slip: pixels, or if more, share of the side. Further out, it was drawn on another size."""


@dataclass(frozen=True)
class Change:
    """One thing that was done to a sample, or to an entry that no sample could be made of."""

    action: Action
    id: str
    """Of the sample; empty for an entry that was refused when it was read."""
    what: str
    why: str
    split: str = ""


@dataclass(frozen=True)
class Correction:
    """A sample as it should be, and how it came to be so."""

    sample: Sample | None
    """None where nothing of it is left."""
    changes: tuple[Change, ...] = ()
    unscaled: bool = False
    """Dropped because nobody knows on what size it was drawn."""
    key: str | None = None
    """The same for two samples whose pixels, masks, groups and metadata are equal; None where that says nothing."""


class NotCorrectable(ValueError):
    """Why a phrase cannot be kept."""


def correct(sample: Sample) -> Correction:
    """The sample on its image: sizes made right, degenerate parts left out, one object a phrase.

    A sample without annotation only has its stated size made right. Reads the image and every mask.
    """
    changes: list[Change] = []

    def note(action: Action, what: str, why: str) -> None:
        changes.append(Change(action, sample.id, what, why))

    try:
        image = load_image(sample)
    except ImageError as error:
        note("dropped", "image", str(error))
        return Correction(None, tuple(changes))
    size = image.shape[0], image.shape[1]
    unknown = _find_stray(sample, sample.size or size)
    if unknown:
        note("dropped", "image", unknown)
        return Correction(None, tuple(changes), unscaled=True)
    kept: dict[str, tuple[MaskReference, ...]] = {}
    for phrase, objects in zip(sample.prompts, sample.masks or (), strict=sample.masks is not None):
        try:
            kept[phrase] = _correct_phrase(objects, phrase, sample.size, size, note)
        except (NotCorrectable, DataError) as error:
            note("dropped", repr(phrase), str(error))
    if sample.masks is not None and not kept:
        note("dropped", "image", "no phrase of it is left")
        return Correction(None, tuple(changes))
    if sample.size not in (None, size):
        if not any(change.action == "rescaled" for change in changes):
            note("rescaled", "stated size", _way(sample.size, size))
        sample = replace(sample, size=size)
    if sample.masks is not None:
        sample = replace(sample, prompts=tuple(kept), masks=tuple(kept.values()))
    return Correction(sample, tuple(changes), key=_key(sample, image, size))


Note = Callable[[Action, str, str], None]


def _correct_phrase(
    objects: Sequence[MaskReference], phrase: str, stated: Size | None, size: Size, note: Note
) -> tuple[MaskReference, ...]:
    """One object, of at least a pixel, or `Absent` where the phrase is; NotCorrectable, DataError where it cannot be kept."""
    drawn = [each for each in objects if not isinstance(each, Absent)]
    if not drawn:
        return tuple(objects)
    kept: list[MaskReference] = []
    for index, reference in enumerate(drawn):
        name = repr(phrase) if len(drawn) == 1 else f"{phrase!r}, object {index}"
        if isinstance(reference, Polygons):
            right = _correct_polygons(reference, name, stated, size, note)
        else:
            right = _correct_raster(reference, name, size, note)
        if right is not None and load_mask(right, size, name).any():
            kept.append(right)
        elif len(drawn) > 1:
            note("dropped", name, "has no pixel")
    if not kept:
        raise NotCorrectable("its mask has no pixel, and nobody said that it is not in the image")
    if len(kept) > 1:
        note("merged", repr(phrase), f"{len(kept)} objects of one phrase are one target")
        return (_unite(kept, size),)
    return tuple(kept)


def _correct_polygons(
    polygons: Polygons, name: str, stated: Size | None, size: Size, note: Note
) -> MaskReference | None:
    """In pixels of the image and on it; None without a part that has an area."""
    parts = []
    for index, part in enumerate(polygons.parts):
        fault = _degenerate(part)
        if fault:
            note("dropped", f"{name}, polygon {index}", fault)
        else:
            parts.append(part)
    if not parts:
        return None
    if stated not in (None, size):
        assert stated is not None
        _check_scale(stated, size)
        scale = size[1] / stated[1], size[0] / stated[0]
        parts = [tuple(value * scale[i % 2] for i, value in enumerate(part)) for part in parts]
        note("rescaled", name, _way(stated, size))
    over = _outside(parts, size)
    if over <= 1:
        return Polygons(tuple(parts))
    note("clipped", name, f"was outside by {over:.4g} pixels")
    # as pixels: a polygon cut at the border has other corners, and is not rasterized to the same mask
    return RleMask(encode_rle(rasterize(parts, size)))


def _degenerate(part: Sequence[float]) -> str:
    """Why a polygon encloses nothing, "" where it may; NotCorrectable where a piece was drawn that cannot be known."""
    n, sound = len(part) // 2, _sound_points(part)
    if not _spans_area(sound):
        return f"its {n} point{'s' * (n != 1)} enclose no area" if len(sound) == n else "is no polygon (NaN)"
    if len(sound) < n:
        raise NotCorrectable(
            "a polygon of it has a coordinate that is no number, so a piece would be missing"
        )
    if len(part) % 2:
        raise NotCorrectable(f"a polygon of it has {len(part)} numbers; nobody knows which one is missing")
    return ""


def _sound_points(part: Sequence[float]) -> np.ndarray:
    """(n, 2): those of which both numbers are finite."""
    points = np.array(part[: len(part) // 2 * 2], dtype=float).reshape(-1, 2)
    return points[np.isfinite(points).all(axis=1)]


def _spans_area(points: np.ndarray) -> bool:
    """Whether they do not all lie on one line."""
    if len(points) < 3:
        return False
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # coordinates near the end of float64 are refused later
        edges = points[1:] - points[0]
        edges = np.ldexp(edges, -np.frexp(np.abs(edges).max())[1])  # exact, and squares cannot overflow
        longest = edges[np.argmax((edges**2).sum(axis=1))]
        return bool((edges[:, 0] * longest[1] != edges[:, 1] * longest[0]).any())


def _correct_raster(
    reference: RleMask | MaskFile | Absent, name: str, size: Size, note: Note
) -> MaskReference | None:
    """At the size of the image; None without a pixel. NotCorrectable where rescaling would change its shape."""
    own = own_size(reference)
    if own == size:
        return reference
    if own[0] * own[1] > MAX_PIXELS:
        raise NotCorrectable(f"its mask of {_by(own)} has more than {MAX_PIXELS // 10**6} megapixels")
    if isinstance(reference, MaskFile):
        mask = read_mask(reference.path, own, reference.values, reference.known)
    else:
        assert isinstance(reference, RleMask)
        try:
            mask = decode_rle(reference.rle)
        except ValueError as error:
            raise NotCorrectable(str(error)) from error
    if not mask.any():  # what a map of classes does not show is not there
        return Absent() if isinstance(reference, MaskFile) and reference.values is not None else None
    _check_scale(own, size)
    right = resample(mask, size)
    if right is None:
        raise NotCorrectable(
            f"its mask of {_by(own)} would change its shape at {_by(size)}; make it again on the image"
        )
    note("rescaled", name, _way(own, size))
    return RleMask(encode_rle(right))


def own_size(reference: MaskReference) -> Size:
    if isinstance(reference, MaskFile):
        try:
            with Image.open(reference.path) as file:
                return file.height, file.width
        except Exception as error:  # Pillow's parsers raise whatever they meet
            raise NotCorrectable(f"{reference.path}: cannot be read ({error})") from error
    assert isinstance(reference, RleMask)
    return reference.rle["size"][0], reference.rle["size"][1]


def resample(mask: Bool[np.ndarray, "h w"], size: Size) -> Bool[np.ndarray, "H W"] | None:
    """The mask at another size, or None where it would not be the same shape there.

    A pixel belongs to it where at least half of it is covered, so that it cannot grow by a pixel. Refused: a pixel of
    the mask more than one away from what is left, pieces that part, meet or vanish, enlarging beyond `ENLARGED_MOST`.
    """
    if max(new / old for new, old in zip(size, mask.shape, strict=True)) > ENLARGED_MOST:
        return None
    right = area_average(mask, size) >= 0.5
    if not _near(mask, right) or _pieces(mask) != _pieces(right):
        return None
    return right


def _near(before: Bool[np.ndarray, "h w"], after: Bool[np.ndarray, "H W"]) -> bool:
    """Whether no pixel is further than one pixel from where it would be after rescaling."""
    reached = binary_dilation(after, EIGHT)
    rows, columns = (
        ((places + 0.5) * new / old).astype(int)
        for places, new, old in zip(np.nonzero(before), after.shape, before.shape, strict=True)
    )
    return bool(reached[rows, columns].all())


def _pieces(mask: Bool[np.ndarray, "h w"]) -> int:
    """Connected pieces; pixels may touch by a corner."""
    return int(label(mask, EIGHT)[1])


def _unite(objects: Sequence[MaskReference], size: Size) -> MaskReference:
    polygons = [each for each in objects if isinstance(each, Polygons)]
    if len(polygons) == len(objects):
        return Polygons(tuple(part for each in polygons for part in each.parts))
    return RleMask(encode_rle(np.logical_or.reduce([load_mask(each, size, "") for each in objects])))


def _check_scale(stated: Size, size: Size) -> None:
    """Raise NotCorrectable where the image may have been turned, cut, padded or stretched."""
    if stated == size[::-1]:
        raise NotCorrectable(
            f"its size states {_by(stated)}, which is the image ({_by(size)}) turned or the two sides exchanged"
        )
    if not same_ratio(stated, size):
        raise NotCorrectable(
            f"its size states {_by(stated)} for an image of {_by(size)}: another ratio in height than in width, and "
            "nobody knows whether the image was stretched, cut or padded"
        )


def same_ratio(one: Size, other: Size) -> bool:
    """Whether height and width differ by the same factor, to 1 %."""
    return math.isclose(one[0] / other[0], one[1] / other[1], rel_tol=0.01)


def _find_stray(sample: Sample, drawn: Size) -> str:
    """Why polygons cannot have been drawn at a size; "" where they may."""
    furthest = 0.0
    for reference in (each for objects in sample.masks or () for each in objects):
        for part in reference.parts if isinstance(reference, Polygons) else ():
            points = _sound_points(part)
            if _spans_area(points):
                beyond = np.maximum(-points, points - (drawn[1], drawn[0])).max(axis=0)
                if (beyond > np.maximum(STRAY_PX, STRAY * np.array([drawn[1], drawn[0]]))).any():
                    furthest = max(furthest, float(beyond.max()))
    if not furthest:
        return ""
    on = f"even of the {_by(drawn)} that its size states" if sample.size else "of the image"
    return f"coordinates lie outside {on} by {furthest:.4g} pixels, so nobody knows on what size it was drawn"


def _outside(parts: Sequence[Sequence[float]], size: Size) -> float:
    """How far the furthest point lies outside of an image, in pixels; 0 where all are on it."""
    return max(0.0, overshoot(np.concatenate([np.reshape(part, (-1, 2)) for part in parts]), size))


def _key(sample: Sample, image: np.ndarray, size: Size) -> str | None:
    # frames of a clip may well be equal, and none may be missing
    if sample.masks is None or sample.sequence is not None:
        return None
    masks = [
        encode_rle(np.logical_or.reduce([load_mask(each, size, "") for each in objects]))["counts"]
        for objects in sample.masks
    ]
    told = [
        hash_pixels(image),
        sorted(zip(sample.prompts, masks, strict=True)),
        [sample.group, sample.spacing_mm, dict(sorted(sample.metadata.items()))],
    ]
    return hashlib.sha256(to_json(told).encode()).hexdigest()


def _way(before: Size | None, after: Size) -> str:
    assert before is not None
    alike = same_ratio(before, after)
    return f"{_by(before)} to {_by(after)}" + ("" if alike else ", by another factor in height than in width")


def _by(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
