"""The table of codes: one stable word for each kind of error, and for each finding of `vesalius check`.

Codes are public: `--json` prints them, reports store them, and scripts may compare them. Sentences may change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Code:
    """What one code of an error or a finding stands for."""

    severity: Severity
    meaning: str
    remedy: str


def _error(meaning: str, remedy: str) -> Code:
    return Code("error", meaning, remedy)


def _warning(meaning: str, remedy: str) -> Code:
    return Code("warning", meaning, remedy)


CODES: dict[str, Code] = {
    # files
    "image": _error(
        "an image cannot be read: no bytes, cut short, no image, deeper than 8 bits, partly transparent",
        "copy it again from its source, or save it as 8-bit PNG without transparency",
    ),
    "missing_image": _error(
        "an entry names an image that is not there", "put the image there, or correct or remove the entry"
    ),
    "outside_path": _error(
        "an entry names an image outside of the dataset's folder",
        "move the image into the folder and give a path relative to the annotation file",
    ),
    "unreadable": _error(
        "a file or folder cannot be opened, or an annotation file is not JSON",
        "give yourself the right to read it, or write it again as UTF-8 JSON",
    ),
    "ambiguous_image": _error(
        "an entry names an image that may be any of several files", "rename all but one"
    ),
    "repeated_image": _error("two DICOM files hold the same image", "remove one of them"),
    "no_image": _error("an annotation file names no image, or its folder holds none", "export it again"),
    "unpaired": _error(
        "an image has no mask file of its name, or a mask file no image", "add the missing file, or remove it"
    ),
    "case_count": _error(
        "a dataset states another number of cases than it has", "copy the rest, or correct the number"
    ),
    "file_ending": _error(
        "files are of a kind that their format allows and that is not read", "write them as images"
    ),
    "several_channels": _error("the channels of an image are files of their own", "save them as one file"),
    "not_dicom": _error("a file is no DICOM file", "export it again, or take it out"),
    "damaged": _error("a DICOM file cannot be parsed", "copy it again from its source"),
    "truncated": _error("a file ends before its pixels do", "copy it again from its source"),
    "no_pixels": _error("a DICOM file holds no image", "take it out"),
    "missing_tag": _error("a DICOM file lacks a tag without which it cannot be shown", "export it again"),
    "frames": _error("a file has not the frames that it states, or that were asked for", "export it again"),
    "bits": _error("a DICOM file states a depth of pixels that cannot be", "export it again"),
    "photometric": _error("a DICOM file is in a kind of colors that is not read", "export it as gray or RGB"),
    "window": _error("the window of a DICOM file cannot be used", "export it again"),
    "lut": _error("a table of gray levels in a DICOM file cannot be used", "export it again"),
    "transfer_syntax": _error(
        "a DICOM file is compressed in a way that is not read", "export it uncompressed"
    ),
    "codec": _error("the compressed pixels of a DICOM file cannot be decoded", "export it uncompressed"),
    "equal_ids": _error(
        "two images get the same id",
        "put all objects of an image in one entry, and name images apart by more than the suffix",
    ),
    "image_rotation": _error(
        "an entry says that its image was turned while masks were drawn",
        "turn the image itself, or draw anew",
    ),
    # entries
    "annotation": _error(
        "an entry or a mask has not the form that its format asks for", "write it as its format asks"
    ),
    "data": _error("the data cannot be used for another reason, which the message tells", "see the message"),
    "unknown_id": _error("an annotation names an image or category that is not listed", "export it again"),
    "labels": _error("labels are no whole numbers, or have no phrase", "correct them as the message says"),
    "table": _error("the table of classes does not give each class a phrase and a value", "correct it"),
    "collision": _error("two names have the same pseudonym", "import again with a new key"),
    "several_annotations": _error(
        "an image has several annotations, and nothing says which counts",
        "mark one as ground truth, or cancel the others",
    ),
    "track_gap": _error("a track says nothing of some frames", "export all frames, not key frames alone"),
    "not_labelme": _error("a JSON file among those of LabelMe is none", "move it elsewhere"),
    "segmentation": _error(
        "a DICOM segmentation is none, or of a kind that is not read", "export it as a binary segmentation"
    ),
    "unequal_counts": _error("an entry has not as many phrases as masks", "give one phrase for each object"),
    "no_phrase": _error(
        "an object has no phrase", "name what it shows, with null as mask where it is not in the image"
    ),
    "unlabeled": _error(
        "an image has no annotation; nothing can be learned from it or scored on it",
        "annotate it, or take it out of the annotation file",
    ),
    # masks
    "empty_object": _error("an object is an empty list", "use null to say that the phrase is not there"),
    "no_mask": _error("an annotation is only a box, or nothing", "draw its mask or remove it"),
    "no_area": _error("a shape has no area, such as a point or a line", "draw a polygon, or remove it"),
    "unknown_shape": _error("a shape is of a kind that is not known", "draw it as a polygon"),
    "points": _error("the points of a shape are no pairs of numbers", "draw it again or remove it"),
    "unknown_value": _error(
        "a mask file has a value that is that of no class", "add it to the table of classes, or draw it again"
    ),
    "size": _error(
        "masks were drawn on a copy of another size",
        "scale coordinates and masks by the ratio, or put the image that was drawn on in its place",
    ),
    "outside": _error(
        "coordinates lie outside of the image by more than a pixel",
        "was it drawn on a copy of another size? scale the coordinates, or draw it again",
    ),
    "few_points": _error(
        "a polygon has fewer than 3 points, or an odd number of coordinates", "draw it again or remove it"
    ),
    "not_finite": _error("a polygon has a coordinate that is NaN or infinite", "draw it again or remove it"),
    "zero_area": _error(
        "all points of a polygon lie on one line, so it covers nothing", "draw it again or remove it"
    ),
    "rle": _error("an RLE does not describe a mask of its size", "encode the mask again"),
    "empty_mask": _error("a mask has no pixel", "draw it, or write null if the phrase is not in the image"),
    "border": _warning(
        "coordinates lie outside of the image by up to a pixel; the mask is cut there",
        "nothing is needed, unless it was drawn on a copy of another size",
    ),
    "self_crossing": _warning(
        "the outline of a polygon crosses itself; what is wound around twice counts as outside",
        "look at it, and draw it again where the mask has holes or tails",
    ),
    "overlap": _warning(
        "objects of one image cover the same pixels by more than 1 % of the smaller one",
        "draw each pixel for one object, unless they do lie over one another",
    ),
    "flat_mix": _warning(
        "some objects are one flat list of coordinates, others a list of such lists",
        "write all alike: a list of polygons for each object",
    ),
    "lossy_mask": _warning(
        "a mask is stored as JPEG, which blurs its border into the background",
        "save masks as PNG, from their source if it is still there",
    ),
    "gray_mask": _warning(
        "a mask file has more than two values; every value above 0 counts as the object",
        "save it with two values, 0 for background; save each object as a mask of its own",
    ),
    "thin": _warning(
        "much of the skeleton of the masks is thinner than one cell of the model's mask grid",
        "use tiles or a larger input",
    ),
    # phrases and groups
    "repeated_phrase": _warning(
        "an image has several objects under one phrase; their union is the target",
        "tell them apart in words if each should be found alone",
    ),
    "no_groups": _warning(
        "images without patient or sequence: each is its own group",
        "name a field or expression with --group, so that splits keep frames of one patient together",
    ),
    # images
    "turned_image": _warning(
        "a file asks viewers to turn it (EXIF), so masks drawn in one lie askew", "save it upright"
    ),
    "alpha": _warning(
        "an image has an alpha channel, though nothing in it is transparent", "save it without alpha"
    ),
    "duplicate": _warning(
        "images of one split have the same pixels", "keep one of them, with the better mask"
    ),
    "near_duplicate": _warning(
        "images of one split look nearly the same",
        "look at them: keep one, or give them the same group if they are frames of one patient",
    ),
    "unnamed_image": _warning(
        "images lie beside those of the annotation file and no entry names them",
        "add entries for them, or move them elsewhere",
    ),
    "personal_name": _warning(
        "a file name or DICOM tag looks like a person's name, birth date or record number",
        "rename the files, or bring them in with vesalius import --pseudonymize",
    ),
    # splits
    "leak": _error(
        "the same image, or one that looks nearly the same, is in two splits",
        "keep it in one split, or split again by patient with vesalius split",
    ),
    "group_leak": _error(
        "images of one patient or sequence are in two splits", "split again by patient with vesalius split"
    ),
    # general: settings, arguments, files
    "setting": _error("a setting, a recipe or an argument is wrong", "correct it as the message says"),
    "output": _error("a result cannot be written", "see the message"),
    "missing_extra": _error(
        "an optional library is not installed", "install the extra that the message names"
    ),
    "interrupted": _error(
        "a signal ended the job; finished work is saved", "run the same command again to continue"
    ),
    # models: opening, conversion
    "checkpoint": _error("a model cannot be found, opened or written", "see the message"),
    # prediction and memory planning
    # training
    "training": _error("a run cannot start, continue or be trusted", "see the message"),
    # evaluation and comparison
}
"""Every code of an error or a finding, in the order in which docs/errors.md lists them."""
