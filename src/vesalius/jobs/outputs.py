"""The files and lines of one image in a prediction folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vesalius.colors import Color, phrase_colors
from vesalius.data.pixel_spacing import find_spacing
from vesalius.errors import SettingError
from vesalius.evaluation.same_masks import SAME_MASK, PackedMask, find_same
from vesalius.files import replacing
from vesalius.jobs.prediction_log import FILES, Line
from vesalius.masks import encode_rle
from vesalius.names import result_stems
from vesalius.types import Item, Prediction, Sample
from vesalius.visualization import overlay, overlay_phrases
from vesalius.window import Range

OUTPUT_KINDS = ("masks", "probs", "overlay", "labelmap", "rle", "table", "dicom", "nifti", "video")
"""masks: PNG 0/255; probs: float32 .npz; overlay: PNG of the image with its mask, and for
several prompts a PNG with all masks and a legend; labelmap: one PNG per image with a value per prompt; rle: COCO RLE in
`predictions.jsonl`; table: `areas.csv`; dicom: one segmentation object per DICOM file; nifti: one label volume per NIfTI
file; video: overlay (MP4) and masks (MKV) of each clip."""
MAX_LABELS = 255
"""Maximum number of prompts of a label map, which has 8 bits."""

PredictedSample = tuple[Sample, Item | None, list[Prediction]]
"""A sample, its item (None if it cannot be read), and one prediction per prompt."""


def check_labels(prompts: Sequence[str], save: Sequence[str]) -> None:
    """Raise SettingError if a label map or label volume is asked for more than `MAX_LABELS` prompts."""
    for kind in sorted({"labelmap", "nifti"} & set(save)):
        if len(prompts) > MAX_LABELS:
            raise SettingError(
                f"--save {kind}: {len(prompts)} prompts do not fit into the {MAX_LABELS} values of 8 bits; give fewer "
                "prompts, or save masks",
                code="bad_value",
                field="save",
            )


def label_map(predictions: Sequence[Prediction]) -> UInt8[np.ndarray, "h w"]:
    """Value n where the mask of the n-th prompt lies, counted from 1; 0 elsewhere.

    A pixel in several masks gets the prompt of the highest probability there, and of the first among equals. Failed
    predictions have no pixels; ValueError if all failed.
    """
    size = next((each.size for each in predictions if each.status != "failed"), None)
    if size is None:
        raise ValueError("no prediction has a mask")
    labels = np.zeros(size, dtype=np.uint8)
    times = np.zeros(size, dtype=np.uint8)
    for value, prediction in enumerate(predictions, start=1):
        if prediction.status == "ok":
            labels[prediction.mask] = value
            times += prediction.mask
    shared = times > 1
    if shared.any():
        highest = np.full(int(np.count_nonzero(shared)), -1, dtype=np.float32)
        for value, prediction in enumerate(predictions, start=1):
            if prediction.status != "ok" or (probability := prediction.probability) is None:
                continue
            here = np.where(prediction.mask[shared], probability[shared], np.float32(-1))
            won = here > highest
            highest[won] = here[won]
            labels[shared] = np.where(won, value, labels[shared])
    return labels


def write_outputs(out: Path, save: Sequence[str], predicted: PredictedSample) -> list[Line]:
    """Write the files of one sample into `out`; returns its lines, one for each prompt.

    A line has the mask as `rle` if `save` has `rle` or `dicom`, and as `label_rle` without the pixels that other
    prompts won if it has `nifti`.
    """
    sample, item, predictions = predicted
    colors = phrase_colors(sample.prompts)
    answered = item is not None and any(each.status != "failed" for each in predictions)
    labels = label_map(predictions) if answered and {"labelmap", "nifti"} & set(save) else None
    mapped = {} if labels is None or "labelmap" not in save else {"labelmap": _write_label_map(labels, sample.id, out)}
    if answered and item is not None and "overlay" in save and len(predictions) > 1:
        mapped["combined_overlay"] = _write_combined_overlay(item, predictions, colors, out)
    lines = []
    stems = result_stems(sample.id, sample.prompts)
    for value, (prediction, name) in enumerate(zip(predictions, stems, strict=True), start=1):
        line = _line(prediction, None if item is None else item.window)
        if item is not None and prediction.status != "failed":
            color = colors[prediction.prompt]
            line |= {**_write_files(prediction, item, out, name, save, color), **mapped}
            if {"rle", "dicom"} & set(save):
                line["rle"] = encode_rle(prediction.mask)
            if "nifti" in save and labels is not None:
                line["label_rle"] = encode_rle(labels == value)
            if "table" in save:
                line["geometry"] = _measure(prediction, sample)
        lines.append(line)
    if len(predictions) > 1:
        _mark_same(lines, predictions)
    return lines


def _mark_same(lines: Sequence[Line], predictions: Sequence[Prediction]) -> None:
    """List in each line the earlier prompts of the image with the same mask."""
    earlier: dict[str, PackedMask] = {}
    for line, prediction in zip(lines, predictions, strict=True):
        if prediction.status == "ok":
            packed = PackedMask.of(prediction.mask)
            if found := find_same(packed, earlier):
                line[SAME_MASK] = found
            earlier[prediction.prompt] = packed


def _line(prediction: Prediction, window: Range | None) -> Line:
    line: Line = {
        "id": prediction.id,
        "prompt": prediction.prompt,
        "status": prediction.status,
        **({"phrase": prediction.phrase} if prediction.phrase else {}),
        **({"unknown_phrase": True} if prediction.unknown_phrase else {}),
        "text": prediction.text,
        "says_seg": prediction.says_seg,
        "answered": prediction.answered,
        "score": max(prediction.scores, default=None),
        "size": list(prediction.size),
        "window": None if window is None else list(window),
    }
    if prediction.status == "failed":
        return {**line, "error": prediction.error}
    return {**line, "area_px": int(np.count_nonzero(prediction.mask))}


def _measure(prediction: Prediction, sample: Sample) -> Line:
    """Geometry of the mask, with spacing and its source."""
    from vesalius.evaluation.geometry import measure  # scikit-image takes 0.3 s

    spacing, source = find_spacing(sample)
    measured = {name: _rounded(value) for name, value in asdict(measure(prediction.mask, spacing)).items()}
    return {**measured, "spacing_mm": None if spacing is None else list(spacing), "spacing_from": source}


def _rounded(value: float | None) -> float | None:
    """Six significant digits, which are more than a mask determines; whole numbers stay as they are."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _write_label_map(labels: UInt8[np.ndarray, "h w"], id: str, out: Path) -> str:
    name = f"{FILES['labelmap']}/{result_stems(id, ['labels'])[0]}.png"
    with replacing(out / name) as path:
        Image.fromarray(labels).save(path, format="PNG")
    return name


def _write_combined_overlay(
    item: Item, predictions: Sequence[Prediction], colors: Mapping[str, Color], out: Path
) -> str:
    """Write the overlay of all prompts that did not fail, with a legend; returns its path relative to `out`."""
    name = f"{FILES['combined_overlay']}/{result_stems(item.id, ['all'])[0]}.png"
    shown = [each for each in predictions if each.status != "failed"]
    masks = {each.label: each.mask for each in shown}
    by_label = {each.label: colors[each.prompt] for each in shown}
    with replacing(out / name) as path:
        overlay_phrases(item.frames[0], masks, by_label).save(path, format="PNG", compress_level=1)
    return name


def _write_files(
    prediction: Prediction, item: Item, out: Path, name: str, save: Sequence[str], color: Color
) -> dict[str, str]:
    """Write the outputs in `save` of one prompt, and return their paths relative to `out` by kind."""
    written: dict[str, str] = {}

    def new_file(kind: str, suffix: str) -> AbstractContextManager[Path]:
        written[kind] = f"{FILES[kind]}/{name}{suffix}"
        return replacing(out / written[kind])

    if "masks" in save:
        with new_file("mask", ".png") as path:
            Image.fromarray(prediction.mask.astype(np.uint8) * 255).save(path, format="PNG")
    if "probs" in save:
        with new_file("probabilities", ".npz") as path, path.open("wb") as stream:
            np.savez_compressed(stream, probabilities=prediction.probabilities)
    if "overlay" in save:
        with new_file("overlay", ".png") as path:
            # compression level 1 takes a third of the time and adds a third to the file size
            shown = overlay(item.frames[0], prediction.mask, color)
            if prediction.unknown_phrase:  # the legend marks the phrase
                shown = overlay_phrases(item.frames[0], {prediction.label: prediction.mask}, {prediction.label: color})
            shown.save(path, format="PNG", compress_level=1)
    return written
