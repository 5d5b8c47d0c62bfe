"""Evaluations of real data reproduce stored numbers."""

from pathlib import Path

import pytest

from vesalius.data.dataset import open_dataset
from vesalius.scoring.evaluate import evaluate
from vesalius.scoring.stored import StoredPredictions


def test_second_observer_of_chase_against_the_first(shared: Path, tmp_path: Path) -> None:
    # both eyes of a child are one group, by the digits of the name
    root = shared / "data" / "chase_db1"
    dataset = open_dataset(root, prompt="blood vessel", group=r"^Image_(\d+)")
    stored = StoredPredictions(root / "masks_2nd", dataset.samples)
    metrics = evaluate(stored, dataset, tmp_path / "out", roi=root / "fov", figures=False, num_workers=0)
    assert metrics["mean"]["dice"] == pytest.approx(0.777, abs=5e-4)
    assert (metrics["data"]["n_samples"], metrics["data"]["n_groups"]) == (28, 14)
    assert metrics["coverage"] == {"ok": 28, "failed": 0, "no_seg": 0}
    low, high = metrics["ci95"]["dice"]
    assert low < metrics["mean"]["dice"] < high
