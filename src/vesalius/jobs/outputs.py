"""The files and lines of one image in a prediction folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from PIL import Image

from vesalius.colors import Color, phrase_colors
from vesalius.files import replacing
from vesalius.jobs.prediction_log import FILES, Line
from vesalius.masks import encode_rle
from vesalius.names import result_stems
from vesalius.types import Item, Prediction, Sample
from vesalius.visualization import overlay

OUTPUT_KINDS = ("masks", "probs", "overlay", "rle", "dicom", "video")
"""masks: PNG 0/255; probs: float32 .npz; overlay: PNG of the image with its mask; rle: COCO RLE in `predictions.jsonl`;
dicom: one segmentation object per DICOM file; video: overlay (MP4) and masks (MKV) of each clip."""

PredictedSample = tuple[Sample, Item | None, list[Prediction]]
"""A sample, its item (None if it cannot be read), and one prediction per prompt."""


def write_outputs(out: Path, save: Sequence[str], predicted: PredictedSample) -> list[Line]:
    """Write the files of one sample into `out`; returns its lines, one for each prompt."""
    sample, item, predictions = predicted
    colors = phrase_colors(sample.prompts)
    lines = []
    for prediction, name in zip(predictions, result_stems(sample.id, sample.prompts), strict=True):
        color = colors[prediction.prompt]
        written = {} if item is None else _write_files(prediction, item, out, name, save, color)
        lines.append(_line(prediction, written, save))
    return lines


def _line(prediction: Prediction, written: dict[str, str], save: Sequence[str]) -> Line:
    line: Line = {
        "id": prediction.id,
        "prompt": prediction.prompt,
        "status": prediction.status,
        "text": prediction.text,
        "says_seg": prediction.says_seg,
        "answered": prediction.answered,
        "score": max(prediction.scores, default=None),
        "size": list(prediction.size),
    }
    if prediction.status == "failed":
        return {**line, "error": prediction.error}
    line["area_px"] = int(np.count_nonzero(prediction.mask))
    if {"rle", "dicom"} & set(save):
        line["rle"] = encode_rle(prediction.mask)
    return {**line, **written}


def _write_files(
    prediction: Prediction, item: Item, out: Path, name: str, save: Sequence[str], color: Color
) -> dict[str, str]:
    """Write the outputs in `save`, and return their paths relative to `out` by kind."""
    if prediction.status == "failed":
        return {}
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
            overlay(item.frames[0], prediction.mask, color).save(path, format="PNG", compress_level=1)
    return written
