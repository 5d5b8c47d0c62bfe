"""Validation scores against values by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vesalius.evaluation.metrics import METRICS
from vesalius.mask_maps import LowRes
from vesalius.segmenter import ModelDescription, Segmenter
from vesalius.training.validation import _score, _similarity, average, score_samples, summarize
from vesalius.types import Item, MaskFile, Prediction, Sample


def square(low: int, high: int) -> np.ndarray:
    mask = np.zeros((40, 40), dtype=bool)
    mask[low:high, low:high] = True
    return mask


def test_any_metric_can_be_added_to_the_overlap_metrics() -> None:
    scores = _score(square(10, 20), square(10, 22), "hd95_px", None)
    assert list(scores) == ["dice", "iou", "precision", "recall", "accuracy", "hd95_px"]
    assert scores["dice"] == pytest.approx(2 * 100 / (100 + 144))
    assert scores["hd95_px"] == pytest.approx(2 * 2**0.5, abs=0.9)
    assert _score(square(10, 20), square(10, 22), "hd95_mm", None)["hd95_mm"] is None
    in_mm = _score(square(10, 20), square(10, 22), "hd95_mm", (0.5, 0.5))["hd95_mm"]
    assert in_mm == pytest.approx((scores["hd95_px"] or 0) / 2)


def row(name: str, dice: float | None, logits: str, says_seg: bool = True) -> dict[str, object]:
    about = {"id": name, "prompt": "vessel", "says_seg": says_seg, "absent": not says_seg, "logits": logits}
    return {**about, "similarity": None, "dice": dice, "iou": None}


def test_means_ignore_undefined_values() -> None:
    means = average([row("a", 0.5, "x"), row("b", None, "y", says_seg=False), row("c", 0.7, "z")])
    assert means["dice"] == pytest.approx(0.6)
    assert means["iou"] is None
    assert (means["seg_rate"], means["absent_seg_rate"], means["n"]) == (pytest.approx(2 / 3), 0, 3)
    assert average([row("a", 0.5, "x")])["absent_seg_rate"] is None


def test_similarity_between_phrases_by_hand() -> None:
    one, other, none = square(0, 10), square(0, 20), square(0, 0)
    assert _similarity((one, one), (one, other)) == (1.0, pytest.approx(2 * 100 / 500))
    assert _similarity((one, one), (none, other)) == (0.0, pytest.approx(0.4))
    assert _similarity((none, one), (none, one)) is None
    assert _similarity((one, none), (one, none)) is None
    pairs = [
        row("a", 0.5, "x"),
        row("a", 0.5, "x") | {"similarity": (1.0, 0.2)},
        row("b", 0.5, "x") | {"similarity": (0.5, 0)},
    ]
    means = average(pairs)
    assert (means["prediction_similarity"], means["target_similarity"]) == (0.75, 0.1)
    alone = average(pairs[:1])
    assert (alone["prediction_similarity"], alone["target_similarity"]) == (None, None)


def test_the_fingerprint_does_not_depend_on_the_order() -> None:
    rows = [row("a", 0.5, "x"), row("b", 0.5, "y")]
    same = average(rows)["fingerprint"]
    assert average(rows[::-1])["fingerprint"] == same
    assert average([rows[0], row("b", 0.5, "other")])["fingerprint"] != same


def test_the_summary_shows_the_chosen_metric() -> None:
    line = {"step": 500, "dice": 0.5, "accuracy": 0.9, "cldice": 0.25, "seg_rate": 1.0, "best": True}
    line |= {"absent_seg_rate": None, "prediction_similarity": 0.75, "target_similarity": None}
    assert (
        summarize(line) == "validation at step 500: dice 0.500  cldice 0.250  seg_rate 1.000  (best checkpoint so far)"
    )
    assert "cldice" in METRICS


class Answering(Segmenter):
    """Segmenter that predicts a square per phrase, and would not answer [SEG] to the phrase `denies`."""

    description = ModelDescription("squares", "test", batch_size=2)

    def __init__(self, squares: dict[str, tuple[int, int]], denies: str = "") -> None:
        self.squares, self.denies = squares, denies

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        return [
            Prediction(
                item.id,
                prompt,
                "ok",
                item.size,
                LowRes(np.where(square(*self.squares[prompt]), 9, -9).astype(np.float32)[None], 40),
                says_seg=prompt != self.denies,
            )
            for item in items
            for prompt in item.prompts
        ]


def test_similarity_uses_the_scored_masks_within_an_image(tmp_path: Path) -> None:
    """Three images with the phrases "low" and "high"; "high" is absent in the last."""
    samples = []
    for number in range(3):
        Image.new("L", (40, 40)).save(tmp_path / f"{number}.png")
        masks = []
        for name, span in (("low", (0, 10)), ("high", (20, 30))):
            path = tmp_path / f"{number}-{name}.png"
            there = square(*span) if (number, name) != (2, "high") else square(0, 0)
            Image.fromarray(there.astype(np.uint8) * 255).save(path)
            masks.append((MaskFile(path),))
        samples.append(Sample(str(number), tmp_path / f"{number}.png", ("low", "high"), tuple(masks)))

    def similarities(**answers: Any) -> list[Any]:
        segmenter: Any = Answering(**answers)
        return [row["similarity"] for row in score_samples(segmenter, samples)]

    same = {"low": (0, 10), "high": (0, 10)}
    assert similarities(squares=same) == [None, (1.0, 0.0)] * 3
    right = {"low": (0, 10), "high": (20, 30)}
    assert similarities(squares=right) == [None, (0.0, 0.0)] * 3
    # a phrase that is absent and not answered with [SEG] is scored with an empty mask
    assert similarities(squares=same, denies="high")[-1] == (0.0, 0.0)
    assert similarities(squares=same, denies="high")[1] == (1.0, 0.0)
