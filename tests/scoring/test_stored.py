"""Stored predictions get the same scores as the model's own, and every fault in them is reported."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.codes import raises_code

from vesalius.data.images import read_image
from vesalius.data.perceptual_hash import encode_texture, hash_image
from vesalius.errors import DataError, SettingError
from vesalius.jobs.folder import write_predictions
from vesalius.jobs.training_hashes import read_hashes, write_hashes
from vesalius.lineage import hash_pixels
from vesalius.models.cards import near_fields, read_card
from vesalius.models.reference import resolve_model
from vesalius.scoring import evaluate as scoring
from vesalius.scoring.stored import StoredPredictions
from vesalius.segmenter import ModelDescription

evaluate = partial(scoring.evaluate, num_workers=0, figures=False)


def logits(seed: int, n: int = 1) -> np.ndarray:
    """float32 (n, 16, 16): random maps of n objects."""
    return np.random.default_rng(seed).normal(0, 2, (n, 16, 16)).astype(np.float32)


@pytest.fixture
def answers() -> dict[str, Any]:
    return {"a": logits(1), "b": None, "c": logits(3, 2), "d": "out of memory"}


@pytest.fixture
def stored(tmp_path, FakeSegmenter, dataset, answers):
    """A function that predicts and stores, and returns the samples and the folder."""
    data = dataset(tmp_path / "data", ids=list("abcd"))

    def store(*save: str, prompts: tuple[str, ...] = ("vessel",)) -> tuple[Any, Path]:
        out = tmp_path / "predictions"
        write_predictions(FakeSegmenter(answers), data.samples, prompts, out, save=save)
        return data, out

    return store


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def write_lines(folder: Path, lines: list[Any]) -> None:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "predictions.jsonl").write_text(text)


@pytest.mark.parametrize("save", [("rle",), ("masks",), ("probs",), ("masks", "rle", "probs", "overlay")])
def test_prediction_folder_scores_as_the_model_itself(tmp_path, save, stored, answers, FakeSegmenter):
    data, folder = stored(*save)
    of_model = evaluate(FakeSegmenter(answers), data, tmp_path / "model")
    of_files = evaluate(StoredPredictions(folder, data.samples), data, tmp_path / "files")

    for one, other in zip(rows_of(tmp_path / "model"), rows_of(tmp_path / "files"), strict=True):
        assert one == other
    same = ["model", "threshold", "coverage", "mean", "ci95", "empty", "referring", "seg_rate"]
    assert {name: of_files[name] for name in same} == {name: of_model[name] for name in same}
    assert of_files["threshold_origin"] == {"how": "as predicted"}
    assert of_files["calibration"] == (of_model["calibration"] if "probs" in save else None)


def test_prediction_may_be_scored_at_another_threshold(tmp_path, stored, answers, FakeSegmenter):
    data, folder = stored("rle", "probs")
    model = FakeSegmenter(answers)
    model.describe(threshold=0.7)
    evaluate(model, data, tmp_path / "model")
    metrics = evaluate(StoredPredictions(folder, data.samples, threshold=0.7), data, tmp_path / "files")

    assert metrics["threshold"] == 0.7 and metrics["threshold_origin"] == {"how": "given"}
    assert rows_of(tmp_path / "model") == rows_of(tmp_path / "files")


def test_another_threshold_needs_probabilities(stored):
    data, folder = stored("rle")
    with raises_code(SettingError, "missing_probabilities", "2 of 4", "first: a"):
        StoredPredictions(folder, data.samples, threshold=0.7)
    with raises_code(SettingError, "bad_value", "1.7"):
        StoredPredictions(folder, data.samples, threshold=1.7)


@pytest.mark.parametrize("prompts", [("vessel",), ("vessel", "冠状动脉")])
@pytest.mark.parametrize("subfolder", [".", "masks"])
def test_folder_of_masks_named_by_id_is_scored(tmp_path, prompts, subfolder, dataset, square):
    data = dataset(tmp_path / "data", prompts=prompts)
    folder = tmp_path / "found"
    (folder / subfolder).mkdir(parents=True)
    names = ["a", "b", "c"] if len(prompts) == 1 else [f"{id}--{p}" for id in "abc" for p in prompts]
    for name in [*names, "somebody else's"]:
        Image.fromarray(square(2)).save(folder / subfolder / f"{name}.png")
    (folder / subfolder / "._a.png").write_bytes(b"macOS was here")
    metrics = evaluate(StoredPredictions(folder, data.samples), data, tmp_path / "files")

    assert metrics["mean"]["dice"] == 0.5 and metrics["coverage"]["ok"] == len(names)
    assert metrics["settings"]["predictions_of_other_images"] == 1
    assert metrics["model"] == {"name": "found", "kind": "predictions", "fingerprint": None, "step": None}
    assert metrics["threshold"] is None and metrics["threshold_origin"] == {"how": "unknown"}
    assert any("no probabilities" in note for note in metrics["notes"])
    assert any("does not record its training images" in note for note in metrics["notes"])


def test_masks_are_found_in_the_folders_that_their_images_have(tmp_path, dataset, square):
    data = dataset(tmp_path / "data", ids=["p1__a", "p2__a"])
    for patient in ("p1", "p2"):
        (tmp_path / "found" / patient).mkdir(parents=True)
        Image.fromarray(square(2)).save(tmp_path / "found" / patient / "a.png")
    assert evaluate(StoredPredictions(tmp_path / "found", data.samples), data, tmp_path / "o")["coverage"]["ok"] == 2
    Image.fromarray(square(2)).save(tmp_path / "found" / "p1__a.png")
    with raises_code(DataError, "duplicate_id", "p1__a"):
        StoredPredictions(tmp_path / "found", data.samples)


def test_missing_predictions_are_refused_and_the_first_ten_listed(tmp_path, dataset, square):
    data = dataset(tmp_path / "data", ids=[f"i{index:02}" for index in range(14)])
    folder = tmp_path / "found"
    folder.mkdir()
    for name in ("i00", "other"):
        Image.fromarray(square(2)).save(folder / f"{name}.png")
    names = ("13 of 14 predictions: i01 (vessel), i02", "i10 (vessel) and 3 more; it has 1 others (first: other)")
    with raises_code(DataError, "missing_prediction", *names) as caught:
        StoredPredictions(folder, data.samples)
    assert "i11" not in str(caught.value)


def test_predictions_of_other_images_are_counted(tmp_path, stored):
    data, folder = stored("rle")
    stored_ones = StoredPredictions(folder, data.samples[:1])
    assert stored_ones.description.settings["predictions_of_other_images"] == 3


def harmed(folder: Path, **changes: Any) -> None:
    """Change the first line."""
    lines = lines_of(folder)
    lines[0] = {name: value for name, value in {**lines[0], **changes}.items() if value is not None}
    write_lines(folder, lines)


def write_probabilities(folder: Path, values: np.ndarray) -> None:
    np.savez_compressed(folder / "probs" / "a.npz", probabilities=values)


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        (lambda folder: Image.new("L", (9, 16)).save(folder / "masks/a.png"), "is 16 x 9 pixels"),
        (lambda folder: (folder / "masks/a.png").write_bytes(b"\x89PNG corrupt"), "a.png: "),
        (lambda folder: (folder / "masks/a.png").unlink(), "masks/a.png"),
        (lambda folder: harmed(folder, mask="../outside.png"), "outside"),
        (lambda folder: harmed(folder, mask="/etc/passwd"), "outside"),
        (lambda folder: harmed(folder, mask=7), "cannot be used"),
        (lambda folder: harmed(folder, mask=None, rle={"size": [4, 4], "counts": "0"}), "cannot be used"),
        (lambda folder: harmed(folder, mask=None, rle="none"), "RLE"),
        (lambda folder: harmed(folder, mask=None, rle={"size": [4, 4], "counts": [16]}), "4 x 4 pixels"),
        (lambda folder: harmed(folder, mask=None, probabilities=None), "rle, mask"),
        (lambda folder: write_probabilities(folder, np.full((1, 16, 16), np.nan)), "a.npz"),
        (lambda folder: write_probabilities(folder, np.full((1, 16, 16), 1.5)), "a.npz"),
        (lambda folder: write_probabilities(folder, np.zeros((1, 9, 16))), "9 x 16 pixels"),
        (lambda folder: write_probabilities(folder, np.zeros((16, 16))), "(16, 16)"),
        (lambda folder: (folder / "probs/a.npz").write_bytes(b"PK"), "cannot be used"),
        (lambda folder: (folder / "probs/a.npz").write_bytes(b""), "cannot be used"),
    ],
)
def test_prediction_that_cannot_be_used_fails_alone_with_the_reason(tmp_path, harm, name, stored):
    data, folder = stored("masks", "probs")
    harm(folder)
    metrics = evaluate(StoredPredictions(folder, data.samples), data, tmp_path / "out")

    assert metrics["coverage"] == {"ok": 1, "failed": 2, "no_seg": 1}
    row = rows_of(tmp_path / "out")[0]
    assert row["dice"] is None and name in row["error"]


@pytest.mark.parametrize(
    ("code", "harm", "names"),
    [
        ("invalid_prediction", lambda lines: [*lines, '{"id": "e", "pro'], ("line 5",)),
        ("invalid_prediction", lambda lines: [lines[0], "", *lines[1:]], ("line 2",)),
        ("invalid_prediction", lambda lines: [*lines, "[1, 2]"], ("line 5", "list")),
        ("invalid_prediction", lambda lines: [*lines, {**lines[0], "status": "fine"}], ("line 5", "'fine'")),
        ("invalid_prediction", lambda lines: [*lines, {**lines[0], "id": ["e"]}], ("line 5: id", "['e']")),
        ("duplicate_id", lambda lines: [*lines, lines[0]], ("line 5: a (vessel)",)),
        ("mixed_models", lambda lines: [*lines, {**lines[0], "id": "e", "model": "beef"}], ()),
        ("mixed_models", lambda lines: [{**line, "model": "beef"} for line in lines], ()),
    ],
)
def test_invalid_list_of_predictions_is_refused(code, harm, names, stored):
    data, folder = stored("rle")
    write_lines(folder, harm(lines_of(folder)))
    with raises_code(DataError, code, *names):
        StoredPredictions(folder, data.samples)


def test_lines_that_name_the_model_of_the_folder_are_one_model(stored):
    data, folder = stored("rle")
    write_lines(folder, [{**line, "model": "f00d"} for line in lines_of(folder)])
    assert StoredPredictions(folder, data.samples).description.fingerprint == "f00d"


def test_lines_that_are_no_text_and_invalid_run_files_are_refused(stored):
    data, folder = stored("rle")
    (folder / "predictions.jsonl").write_bytes(b"\xff\xfe{}\n")
    with raises_code(DataError, "invalid_prediction", "line 1"):
        StoredPredictions(folder, data.samples)
    for text in ("{", "[1]", '{"model": 7}', '{"settings": {"threshold": "high"}}'):
        (folder / "run.json").write_text(text)
        with raises_code(DataError, "invalid_prediction", "run.json: "):
            StoredPredictions(folder, data.samples)


def test_line_separators_within_a_text_do_not_end_a_line(tmp_path, stored):
    data, folder = stored("rle")
    text = "one\u2028two\x85"
    lines = [json.dumps({**line, "text": text}, ensure_ascii=False) for line in lines_of(folder)]
    write_lines(folder, lines)
    evaluate(StoredPredictions(folder, data.samples), data, tmp_path / "out")
    assert json.loads((tmp_path / "out/samples.jsonl").read_text(encoding="utf-8").split("\n")[0])["text"] == text


def test_training_and_tuning_images_in_run_json_are_checked(tmp_path, stored):
    data, folder = stored("rle")
    run = json.loads((folder / "run.json").read_text())
    name = hash_pixels(read_image(data.samples[1].image))
    for kind, code in (("training_images", "training_leak"), ("tuning_images", "tuning_leak")):
        described = ModelDescription("m", "fake", **{"training_images": (), kind: (name,)})
        (folder / "run.json").write_text(json.dumps({**run, "lineage": write_hashes(folder, described)}))
        with raises_code(DataError, code):
            evaluate(StoredPredictions(folder, data.samples), data, tmp_path / "out")


def test_missing_or_damaged_hashes_of_training_images_are_refused(stored):
    data, folder = stored("rle")
    run = json.loads((folder / "run.json").read_text())
    entry = write_hashes(folder, ModelDescription("m", "fake", training_images=("0" * 64,)))
    for lineage, damage in (
        (entry, lambda path: path.write_bytes(b"no archive")),
        (entry, Path.unlink),
        ({**entry, "training_images": 2}, None),
        ({**entry, "hashes": None}, None),
    ):
        write_hashes(folder, ModelDescription("m", "fake", training_images=("0" * 64,)))
        (folder / "run.json").write_text(json.dumps({**run, "lineage": lineage}))
        if damage:
            damage(folder / "training_images.npz")
        with raises_code(DataError, "invalid_prediction"):
            StoredPredictions(folder, data.samples)


def test_hashes_are_stored_without_loss(tmp_path):
    near = hash_image(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    described = ModelDescription(
        "m",
        "fake",
        training_images=("f" * 64, "0" * 64),
        training_perceptual_hashes=(near.perceptual_hash, "1" * 64),
        training_texture_hashes=(encode_texture(near.texture_hash), ""),
        tuning_images=("a" * 64,),
    )
    entry = write_hashes(tmp_path, described)
    assert entry == {
        "training_images": 2,
        "trained_on_unknown": True,
        "tuning_images": 1,
        "hashes": "training_images.npz",
        "included": None,
    }
    found = read_hashes(tmp_path / "training_images.npz", None)
    assert found.training_images == ("0" * 64, "f" * 64) and found.tuning_images == ("a" * 64,)
    assert found.training_perceptual_hashes == described.training_perceptual_hashes
    assert found.training_texture_hashes == described.training_texture_hashes
    assert write_hashes(tmp_path / "none", ModelDescription("m", "fake"))["hashes"] is None


def test_models_trained_from_tiny_store_only_the_hashes_of_their_own_images(tmp_path):
    card = read_card(resolve_model("tiny").folder)
    near = {
        "training_perceptual_hashes": card.training_perceptual_hashes,
        "training_texture_hashes": card.training_texture_hashes,
    }
    tiny = ModelDescription("tiny", "textseg", training_images=card.training_images, **near)
    entry = write_hashes(tmp_path / "tiny", tiny)
    assert entry["hashes"] is None and entry["training_images"] == 3600 and not (tmp_path / "tiny").exists()
    assert set(read_hashes(None, entry["included"]).training_images) == set(card.training_images or ())

    own = near_fields([*card.near_hashes, ("1" * 64, "")])
    tuned = ModelDescription(
        "mine", "textseg", training_images=(*(card.training_images or ()), "f" * 64), tuning_images=("a" * 64,), **own
    )
    entry = write_hashes(tmp_path, tuned)
    path = tmp_path / "training_images.npz"
    assert path.stat().st_size < 2000 and entry["training_images"] == 3601
    found = read_hashes(path, entry["included"])
    assert set(found.training_images) == set(tuned.training_images or ()) and found.tuning_images == ("a" * 64,)
    assert found.near == {*card.near_hashes, ("1" * 64, "")} and found.complete
    other = read_hashes(path, "0" * 64)  # predicted with another version of tiny
    assert other.training_images == ("f" * 64,) and not other.complete


def test_fingerprint_changes_with_the_predictions(tmp_path, stored):
    data, folder = stored("masks")
    before = StoredPredictions(folder, data.samples).description.settings["predictions_fingerprint"]
    Image.new("L", (16, 16), 255).save(folder / "masks/a.png")
    assert StoredPredictions(folder, data.samples).description.settings["predictions_fingerprint"] != before


def test_copies_of_the_ground_truth_are_refused(tmp_path, dataset, square):
    data = dataset(tmp_path / "data", ids=list("abcdef"))
    folder = tmp_path / "copies"
    folder.mkdir()
    for sample in data.samples:
        Image.fromarray(square()).save(folder / f"{sample.id}.png")
    with raises_code(DataError, "copied_ground_truth", "6 of 6"):
        evaluate(StoredPredictions(folder, data.samples), data, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copies", "data"]


def test_tuning_images_of_views_count_at_another_threshold(stored):
    data, folder = stored("probs")
    run = json.loads((folder / "run.json").read_text())
    for views, known in (({}, ()), ({"tta": ["flip"]}, ("a" * 64,))):
        hashes = write_hashes(folder, ModelDescription("m", "fake", tuning_images=("a" * 64,)))
        told = {**run, "settings": {**run["settings"], **views}, "lineage": hashes}
        (folder / "run.json").write_text(json.dumps(told))
        assert StoredPredictions(folder, data.samples, threshold=0.3).description.tuning_images == known
