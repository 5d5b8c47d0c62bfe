"""Storing a threshold changes the card and not the weights."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tests.codes import raises_code

from vesalius.errors import CheckpointError, DataError, OutputError
from vesalius.models.cards import CARD, ThresholdOrigin, read_card
from vesalius.models.reference import resolve_model
from vesalius.models.stored_model import fingerprint_model
from vesalius.models.threshold_store import check_target, store_threshold

ORIGIN = ThresholdOrigin(how="tuned", data="val", data_fingerprint="d4e5", metric="dice", value=0.8, n_samples=3)


@pytest.fixture
def bundle(tmp_path) -> Path:
    return Path(shutil.copytree(resolve_model("tiny").folder, tmp_path / "bundle"))


def test_copy_has_the_threshold_its_origin_and_the_same_weights(tmp_path, bundle):
    out = tmp_path / "tuned"
    for name in ("optimizer.safetensors", "average.pt", "README.md", "recipe.yaml"):
        (bundle / name).write_bytes(b"much")
    (bundle / "source").mkdir(exist_ok=True)
    (bundle / "source" / "README.md").write_text("of the official folder")
    before = (bundle / CARD).read_bytes()
    store_threshold(bundle, check_target(bundle, out), 0.37, ORIGIN, ["b", "a"])

    card = read_card(out)
    assert (card.threshold, card.threshold_origin, card.tuning_images) == (0.37, ORIGIN, ("a", "b"))
    same = {"threshold": None, "threshold_origin": None, "tuning_images": None}
    assert card.model_dump() | same == read_card(bundle).model_dump() | same
    assert fingerprint_model(out) == fingerprint_model(bundle)
    assert (bundle / CARD).read_bytes() == before
    left = {Path("optimizer.safetensors"), Path("average.pt"), Path("README.md")}
    names = {path.relative_to(bundle) for path in bundle.rglob("*")} - left
    assert {path.relative_to(out) for path in out.rglob("*")} == names


def test_in_place_only_the_card_changes(bundle):
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*") if path.is_file()}
    store_threshold(bundle, check_target(bundle, None), 0.37, ORIGIN, ["a"])
    after = {path: path.stat().st_mtime_ns for path in bundle.rglob("*") if path.is_file()}
    assert {path.name for path in after if after[path] != before.get(path)} == {CARD}
    assert json.loads((bundle / CARD).read_text())["threshold"] == 0.37


def test_a_target_that_cannot_be_written_is_refused_before_tuning(tmp_path, bundle):
    with raises_code(OutputError, "wrong_model_kind", "--out"):
        check_target("tiny", None)
    (tmp_path / "run").mkdir()
    bundle.rename(tmp_path / "run" / "best")
    with raises_code(OutputError, "wrong_model_kind"):
        check_target(tmp_path / "run", None)
    with raises_code(OutputError, "output_exists"):
        check_target(tmp_path / "run", tmp_path / "run")
    with raises_code(OutputError, "not_replaceable"):
        check_target(tmp_path / "run", tmp_path / "run", overwrite=True)
    with raises_code(OutputError, "not_replaceable", "README.md"):
        check_target("tiny", tmp_path / "run" / "best", overwrite=True)
    (tmp_path / "run" / "best" / "README.md").unlink()
    assert check_target("tiny", tmp_path / "run" / "best", overwrite=True) == tmp_path / "run" / "best"
    (tmp_path / "file").write_text("")
    with raises_code(OutputError, "write_failed"):
        check_target(tmp_path / "run", tmp_path / "file" / "bundle")
    with raises_code(CheckpointError, "no_model"):
        check_target(tmp_path / "nothing", None)


def test_bundle_that_cannot_be_written_is_refused(bundle, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with raises_code(OutputError, "write_failed", "--out"):
        check_target(bundle, None)


def test_evaluation_uses_the_tuned_threshold_and_refuses_the_images_it_was_tuned_on(tmp_path, bundle):
    from vesalius.data.dataset import open_dataset
    from vesalius.jobs.opening import load_predictor
    from vesalius.scoring.evaluate import evaluate
    from vesalius.scoring.tune import find_threshold
    from vesalius.synth import write_dataset

    for name, seed in (("val", 1), ("test", 2)):
        write_dataset(tmp_path / name, 2, seed=seed, size=64)
    val, test = (open_dataset(tmp_path / name) for name in ("val", "test"))
    tuned = find_threshold(load_predictor(bundle), val)
    origin = ThresholdOrigin(how="tuned", data=tuned.data, metric=tuned.metric, value=tuned.value)
    store_threshold(bundle, bundle, 0.41, origin, tuned.images)

    predictor = load_predictor(bundle)
    with pytest.raises(DataError, match="tuned on 2 of 2 images"):
        evaluate(predictor, val, tmp_path / "out", figures=False, num_workers=0)
    assert not (tmp_path / "out").exists()
    metrics = evaluate(predictor, test, tmp_path / "out", figures=False, num_workers=0)
    assert metrics["threshold"] == 0.41
    assert metrics["threshold_origin"] == {"how": "tuned", "data": "val", "metric": "dice", "value": tuned.value}
    other = load_predictor(bundle, threshold=0.6)
    assert evaluate(other, val, tmp_path / "out", figures=False, num_workers=0)["threshold_origin"] == {"how": "given"}
