"""If memory runs out, the batch size is halved and no prediction is lost."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vesalius.data.image_files import find_images
from vesalius.inference.predictor import Predictor
from vesalius.jobs.folder import write_predictions
from vesalius.models.checkpoint import OpenedModel

from ..segmenters import draw_squares


@contextmanager
def memory_for(opened: OpenedModel, images: int, error: Exception) -> Iterator[list[int]]:
    """The segmenter's encoder raises `error` for more than `images` images; yields the batch sizes of its calls."""
    asked: list[int] = []

    def allocate(_: Any, arguments: tuple[torch.Tensor]) -> None:
        asked.append(len(arguments[0]))
        if asked[-1] > images:
            raise error

    hook = opened.model.sam.vision_encoder.backbone.register_forward_pre_hook(allocate)
    try:
        yield asked
    finally:
        hook.remove()


SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError(),
]


def write(opened: OpenedModel, folder: Path, out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    predictor = Predictor(opened, answer="force", batch_size=4, fingerprint="f" * 64)
    summary = write_predictions(predictor, find_images([folder]), ["vessel"], out)
    return summary, [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
def test_batch_size_is_halved_until_it_fits(
    opened: OpenedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    draw_squares(tmp_path / "in", 6)
    _, expected = write(opened, tmp_path / "in", tmp_path / "whole")
    with memory_for(opened, 1, error) as asked, caplog.at_level(logging.WARNING):
        summary, lines = write(opened, tmp_path / "in", tmp_path / "out")
    assert asked == [4, 2, 1, 1, 1, 1, 1, 1], "the batch size stays small"
    assert summary["coverage"] == {"ok": 6, "no_seg": 0, "failed": 0}
    assert json.loads((tmp_path / "out" / "run.json").read_text())["batch_halved"] == 2
    assert "memory ran out with 4 images in a batch" in caplog.text
    assert [(line["id"], line["rle"]) for line in lines] == [(line["id"], line["rle"]) for line in expected]


def test_image_that_does_not_fit_alone_fails_with_the_reason(opened: OpenedModel, tmp_path: Path) -> None:
    draw_squares(tmp_path / "in", 3)
    with memory_for(opened, 0, SHORTAGES[0]):
        summary, lines = write(opened, tmp_path / "in", tmp_path / "out")
    assert summary["coverage"] == {"ok": 0, "no_seg": 0, "failed": 3}
    for line in lines:
        assert line["status"] == "failed" and "CUDA out of memory" in line["error"] and "rle" not in line
    assert not (tmp_path / "out" / "masks").exists()


def test_other_errors_do_not_halve_the_batch_size(opened: OpenedModel) -> None:
    predictor = Predictor(opened, answer="force", batch_size=2)
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    frame = np.zeros((8, 8, 3), np.uint8)
    with memory_for(opened, 0, error), pytest.raises(RuntimeError, match="illegal"):
        predictor(frame, "x")
    assert predictor.batch_size == 2 and predictor.usage.batch_halved == 0
