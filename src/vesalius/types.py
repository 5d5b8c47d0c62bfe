"""Types shared by all packages: `Sample`, `Item`, `Prediction`, `Finding`.

Sizes are (h, w); points are (x, y) in pixels of the original image. Values are validated on construction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool
from PIL import Image

from vesalius.calls import check_kind, checked, checked_init, describe
from vesalius.clicks import Click
from vesalius.codes import CODES
from vesalius.colors import PHRASE_COLORS, Color
from vesalius.errors import AnnotationError, DataError, SettingError
from vesalius.files import replacing
from vesalius.fonts import label
from vesalius.mask_maps import NO_MAPS, Full, LowRes, Maps
from vesalius.masks import Rle, Size
from vesalius.notebook import check_picture, draw_figure, encode_png
from vesalius.phrases import Match
from vesalius.visualization import overlay
from vesalius.window import AUTO, Range, Window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Status = Literal["ok", "no_seg", "failed"]
"""ok: at least one mask; no_seg: the model's answer has no [SEG]; failed: there is no answer, hence no score."""


@dataclass(frozen=True)
class Polygons:
    """One object drawn as polygons `(x1, y1, x2, y2, ...)` in pixels; their union is the mask."""

    parts: tuple[tuple[float, ...], ...]
    flat: bool = False
    """True if the file has one flat list of coordinates instead of a list of polygons."""


@dataclass(frozen=True)
class RleMask:
    """One object as COCO RLE."""

    rle: Rle


Value = int | tuple[int, int, int]
"""Pixel value in a mask file: a gray level, a palette index, or a color (r, g, b)."""


@dataclass(frozen=True)
class MaskFile:
    """One object as an image file: all nonzero pixels, or the pixels of one class in a label map."""

    path: Path
    values: tuple[Value, ...] | None = None
    """Values of the class in a label map, None for other files. A class without pixels is not in the image."""
    known: tuple[Value, ...] = ()
    """Values of all classes in a label map. Any other value is an error, except 0 or black (the background)."""


@dataclass(frozen=True)
class Absent:
    """An object that is annotated as absent from the image: its mask is empty on purpose."""


MaskReference = Polygons | RleMask | MaskFile | Absent
"""A mask as annotated, not yet read or rasterized."""


class Location(NamedTuple):
    """A file and, if known, the entry and object in it; as text, `annotations.json, entry 3 (a.png), mask[0]`."""

    path: Path
    field: str = ""

    def __str__(self) -> str:
        return f"{self.path}, {self.field}" if self.field else str(self.path)

    def inside(self, part: str) -> Location:
        """The location of a part of this entry or object, such as `mask`, or `[2]` for an item of a list."""
        between = "" if part.startswith("[") or not self.field else ", "
        return Location(self.path, f"{self.field}{between}{part}")

    def error(self, wrong: str, code: str, remedy: str = "", kind: type[DataError] = AnnotationError) -> DataError:
        """An error with the message `LOCATION: WRONG; REMEDY`; the default remedy is that of the code."""
        remedy = remedy or CODES[code].remedy
        return kind(f"{self}: {wrong}", code=code, path=self.path, field=self.field or None, remedy=remedy)


@checked_init
@dataclass(frozen=True)
class Sample:
    """One annotated image or frame on disk; its pixels and masks are not yet read.

    `masks[i]` are the objects of `prompts[i]`; their union is the target of this phrase. `masks` is None if the image is
    not annotated. `size` is the (h, w) that the annotation states, or None.
    """

    id: str
    image: Path
    prompts: tuple[str, ...]
    masks: tuple[tuple[MaskReference, ...], ...] | None
    source: Location | None = None
    """Location of the annotation: `annotations.json, entry 3`."""
    frame: int | None = None
    """Index of the frame in a cine, video or volume, from 0; None for a single image."""
    group: str | None = None
    """Patient or sequence; if None (unknown), the image is its own group."""
    sequence: str | None = None
    """Name of the frame's clip, if any; the frames of a clip are consecutive samples."""
    size: Size | None = None
    spacing_mm: tuple[float, float] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    window: Window = AUTO
    """How pixel values of more than 8 bits become gray levels."""

    def __post_init__(self) -> None:
        if self.masks is not None and len(self.masks) != len(self.prompts):
            raise ValueError(f"{self.id}: {len(self.prompts)} prompts but {len(self.masks)} masks")


Turn = tuple[str, str]
"""(question, answer) in a training conversation."""


@checked_init
@dataclass(frozen=True)
class Item:
    """One image or clip in memory, with its prompts and, if known, the mask of each prompt.

    SettingError (code `wrong_shape`) for frames, prompts or masks of another type or shape.

    >>> Item("frame", np.zeros((1, 40, 60, 3), np.uint8), ("vessel", "wire")).size
    (40, 60)
    """

    id: str
    frames: np.ndarray
    """uint8 (f, h, w, 3) RGB; f = 1 for an image."""
    prompts: tuple[str, ...]
    masks: np.ndarray | None = None
    """bool (n, f, h, w), one for each prompt."""
    absent: frozenset[int] = frozenset()
    """Indices of prompts that training answers in words, because the object is not in the image."""
    turns: tuple[Turn, ...] = ()
    """Training conversation about the image, independent of the prompts."""
    window: Range | None = None
    """Stored values that the first frame shows as black and white; None if they are gray levels already."""

    def __post_init__(self) -> None:
        frames, masks = self.frames, self.masks
        if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise self._wrong("frames", "frames must be uint8 (f, h, w, 3)", frames)
        if 0 in frames.shape:
            raise self._wrong("frames", "frames must have pixels", frames)
        listed = isinstance(self.prompts, Sequence) and not isinstance(self.prompts, str)
        if not listed or not all(isinstance(prompt, str) for prompt in self.prompts):
            raise self._wrong("prompts", "prompts must be a tuple of phrases", self.prompts)
        expected = (len(self.prompts), *frames.shape[:3])
        if masks is None:
            return
        if not isinstance(masks, np.ndarray) or masks.dtype != np.bool_ or masks.shape != expected:
            raise self._wrong("masks", f"masks must be bool {expected}", masks)
        if present := [index for index in self.absent if masks[index].any()]:
            raise ValueError(f"{self.id}: {self.prompts[present[0]]!r} is marked absent but has a mask")

    def _wrong(self, name: str, expected: str, value: Any) -> SettingError:
        got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else describe(value)
        return SettingError(f"{self.id}: {expected}; got {got}", code="wrong_shape", field=name)

    @property
    def size(self) -> Size:
        """(h, w) of the frames."""
        return self.frames.shape[1], self.frames.shape[2]


Cleaner = Callable[[Bool[np.ndarray, "h w"]], Bool[np.ndarray, "h w"]]
"""Post-processing of the mask of one object, such as a `Cleaning`."""


@checked_init
@dataclass(frozen=True)
class Prediction:
    """The prediction for one prompt about one image.

    `maps` are stored as the model returns them. Masks and probabilities at the original size are computed on demand;
    only `masks` are cached, because the probabilities of 25 prompts at 3504 x 2336 would take 0.8 GB.

    >>> prediction = Prediction("frame", "vessel", "no_seg", size=(40, 60))
    >>> prediction
    <Prediction 'vessel' in 'frame': 40 x 60, no_seg, 0 px (0.0%)>
    >>> prediction.overlay(np.zeros((40, 60), np.uint8)).size
    (60, 40)
    """

    id: str
    prompt: str
    """The prompt as given."""
    status: Status
    size: Size
    """(h, w) of the original image."""
    maps: Maps = NO_MAPS
    """One map for each [SEG]; empty unless the status is ok."""
    scores: tuple[float, ...] = ()
    """Predicted IoU of each mask, in [0, 1]; empty for stored masks and after clicks on logits."""
    text: str = ""
    """The model's answer."""
    says_seg: bool = True
    """Whether the model itself generates [SEG]; for a forced answer, whether greedy decoding agrees up to [SEG]."""
    answered: Literal["forced", "verified", "generated", ""] = ""
    """Origin of the answer: template, accepted draft, or decoding token by token; "" if unknown."""
    threshold: float = 0.5
    cleaning: Cleaner | None = None
    """Applied to the mask of each object, not to logits and probabilities."""
    error: str = ""
    """Reason for the status failed."""
    phrase: str = ""
    """The known phrase that the model was asked, if it is spelled otherwise than `prompt`: "blood vessel" for the prompt
    "Blood Vessels"."""
    unknown_phrase: bool = False
    """True if the model lists the phrases it was trained on and `prompt` is none of them: the mask may show another
    structure. Always False for a model with an open vocabulary."""
    points: tuple[Click, ...] = ()
    """Clicks that corrected the mask (`predictor.refine`), in their order."""
    color: Color = field(default=PHRASE_COLORS[0], repr=False, compare=False)
    """Color of the phrase in overlays, RGB; prompts of one call have different colors."""
    read_image: Callable[[], np.ndarray] | None = field(default=None, repr=False, compare=False)
    """Reads the image again, uint8 (h, w, 3); None for predictions of items and of jobs, which keep no image."""

    def __post_init__(self) -> None:
        n = len(self.maps)
        if (self.status == "ok") != (n > 0):
            raise ValueError(f"{self.id}: status {self.status} with {n} masks")
        if self.scores and len(self.scores) != n:
            raise ValueError(f"{self.id}: {n} masks with {len(self.scores)} scores")

    @classmethod
    def failure(cls, id: str, prompt: str, size: Size, reason: Exception | str) -> Prediction:
        """A prediction of status failed, for an image that could not be read or predicted."""
        # a path in the message may have bytes that are not UTF-8
        text = str(reason).encode(errors="backslashreplace").decode()
        error = " ".join(text.split()) or type(reason).__name__
        return cls(id, prompt, "failed", size, says_seg=False, error=error)

    def labeled(self, matched: Match) -> Prediction:
        """The same prediction as the answer to the prompt that was given, marked with the phrase that was asked."""
        if not matched.phrase and not matched.unknown:
            return self
        return replace(self, prompt=matched.prompt, phrase=matched.phrase, unknown_phrase=matched.unknown)

    @property
    def logits(self) -> np.ndarray:
        """float32 (n, g, g) from the mask decoder, or (n, h, w) from a baseline; SettingError for tiles and stored masks."""
        if not isinstance(self.maps, LowRes | Full):
            message = f"{self.id}: tiles and stored masks have no single map of logits; use probabilities"
            raise SettingError(message, code="not_supported", field="logits")
        return self.maps.logits

    @property
    def probabilities(self) -> np.ndarray:
        """float32 (n, h, w) in [0, 1] at the original size; SettingError for stored masks without probabilities."""
        if self.probability is None:
            message = f"{self.id}: only the mask was stored; predict again with --save masks,probs"
            raise SettingError(message, code="missing_probabilities", field="probabilities")
        return self.maps.probabilities(self.size)

    @property
    def probability(self) -> np.ndarray | None:
        """float32 (h, w): the maximum probability over the objects; 0 without [SEG], None if it was not stored."""
        return self.maps.probability(self.size)

    @cached_property
    def masks(self) -> np.ndarray:
        """bool (n, h, w) at the original size: thresholded probabilities, then cleaned."""
        masks = self.maps.masks(self.size, self.threshold)
        if self.cleaning is not None:
            masks = masks.copy()
            for mask in masks:
                mask[:] = self.cleaning(mask)
        return masks

    @property
    def mask(self) -> np.ndarray:
        """bool (h, w): the union of the objects; empty if the answer has no [SEG]."""
        return np.logical_or.reduce(self.masks, axis=0)

    @property
    def area_px(self) -> int:
        """Number of pixels of `mask`."""
        return int(np.count_nonzero(self.mask))

    @property
    def _area(self) -> str:
        return f"{self.area_px:,} px ({self.area_px / (self.size[0] * self.size[1]):.1%})"

    def __repr__(self) -> str:
        """Prompt, image, size, status and area: `<Prediction 'vessel' in 'frame': 512 x 512, ok, 9,731 px (3.7%)>`."""
        state = f"{self.status}, {self.error}" if self.status == "failed" else f"{self.status}, {self._area}"
        unknown = ", unknown phrase" if self.unknown_phrase else ""
        return f"<Prediction {self.prompt!r} in {self.id!r}: {self.size[0]} x {self.size[1]}, {state}{unknown}>"

    @property
    def label(self) -> str:
        """Name of the mask in legends: the prompt, marked in the current language if it is an unknown phrase."""
        return label("{prompt} (unknown phrase)", prompt=self.prompt) if self.unknown_phrase else self.prompt

    @checked
    def save(self, path: str | Path) -> Path:
        """Write `mask` as PNG (0 and 255), or `probabilities` as compressed NumPy file; the suffix decides.

        The file `.npz` has the array `probabilities`, float32 (n, h, w). Returns the path; missing folders are created,
        and an existing file is replaced. SettingError for another suffix and for a failed prediction; OutputError if
        the file cannot be written.
        """
        self._check_answered()
        check_kind(path, str | Path, "path", "a path ending in .png or .npz")
        path = Path(path)
        kind = path.suffix.lower()
        if kind not in (".png", ".npz"):
            raise SettingError(
                f"{path}: a mask is saved as .png, probabilities as .npz", code="bad_value", path=path, field="path"
            )
        with replacing(path) as temporary, temporary.open("wb") as stream:
            if kind == ".png":
                Image.fromarray(self.mask.astype(np.uint8) * np.uint8(255)).save(stream, format="PNG")
            else:
                np.savez_compressed(stream, probabilities=self.probabilities)
        return path

    @checked
    def overlay(self, image: Any = None) -> Image.Image:
        """The image with the mask as translucent fill and contour, at the original size.

        `image` is needed only for predictions of items and of jobs, which keep no image: a PIL image, array or tensor
        of the original size. SettingError without an image, for one of another size, and for a failed prediction.
        """
        return overlay(self._picture(image), self.mask, self.color)

    @checked
    def plot(self, image: Any = None) -> Figure:
        """A matplotlib figure of overlay and probabilities; `image` as for `overlay`.

        Save it with `figure.savefig("figure.png")`. A notebook shows it. No state of pyplot is used or changed.
        """
        title = f"{self.status}, {self._area}"
        return draw_figure(self._picture(image), self.label, self.mask, self.probability, title, self.color)

    def _repr_png_(self) -> bytes | None:
        """The overlay for notebooks, reduced to 768 pixels; without an image the mask; None for a failed prediction."""
        if self.status == "failed":
            return None
        if self.read_image is None:
            return encode_png(Image.fromarray(self.mask.astype(np.uint8) * np.uint8(255)))
        return encode_png(self.overlay())

    def _picture(self, image: Any) -> np.ndarray:
        self._check_answered()
        if image is None and self.read_image is None:
            raise SettingError(
                "this prediction keeps no image; give it, as in prediction.overlay(image)",
                code="no_image",
                field="image",
            )
        return check_picture(self.read_image() if image is None and self.read_image else image, self.size)

    def _check_answered(self) -> None:
        if self.status == "failed":
            raise SettingError(f"{self.id}: has no mask ({self.error})", code="prediction_failed")


@dataclass(frozen=True)
class Finding:
    """One error or warning of `vesalius check` about a dataset."""

    code: str
    severity: Literal["error", "warning"]
    file: str
    """Path of the affected image, mask, annotation file or folder."""
    location: str
    """Entry and object in the file, such as `entry 3 (a.png): 'vessel', object 1`; "" for the whole file."""
    message: str
    """What is wrong, with numbers."""
    remedy: str
    """What to do."""
    samples: tuple[str, ...] = ()
    """Ids of the affected samples; ids are unique within one split."""
