"""evaluate: what it writes, what the segmenter sees, and what becomes of samples that go wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vesalius import visualisation
from vesalius.data.dataset import DataSet
from vesalius.data.images import read_image
from vesalius.errors import DataError, OutputError, SettingError
from vesalius.lineage import hash_pixels
from vesalius.scoring.evaluate import evaluate
from vesalius.types import Item, MaskFile, Prediction, Sample

SIDE = 16
METRIC_NAMES = ["dice", "iou", "precision", "recall", "accuracy"]


def square(left: int = 1) -> np.ndarray:
    """A square of 2 x 2 pixels; two that are a pixel apart share 2 pixels and have a Dice of 0.5."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[1:3, left : left + 2] = True
    return mask


EMPTY = np.zeros((SIDE, SIDE), dtype=bool)


class FakeSegmenter:
    """Answers by id and prompt: a mask, None for no [SEG], a status `failed` for text, an error to raise."""

    threshold = 0.4
    settings: Mapping[str, Any] = MappingProxyType({"answer": "generate"})
    training_images: set[str] | None = None

    def __init__(self, answers: dict[str, Any] | None = None, batch: int = 2) -> None:
        self.answers = answers or {}
        self.batch = batch
        self.seen: list[Item] = []
        self.calls: list[list[str]] = []

    @property
    def card(self) -> dict[str, Any]:
        return {"name": "fake", "kind": "fake", "fingerprint": "f00d", "step": 7}

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        self.seen += items
        self.calls.append([item.id for item in items])
        return [self.answer(item, prompt) for item in items for prompt in item.prompts]

    def answer(self, item: Item, prompt: str) -> Prediction:
        answer = self.answers.get(f"{item.id} {prompt}", self.answers.get(item.id, square(2)))
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, str):
            return self.prediction(item, prompt, "failed", np.zeros((0, 1, 1), np.float32), error=answer)
        if answer is None:
            return self.prediction(
                item, prompt, "no_seg", np.zeros((0, 1, 1), np.float32), text="I see nothing."
            )
        return self.prediction(item, prompt, "ok", np.where(answer, 9, -9).astype(np.float32)[None])

    def prediction(self, item: Item, prompt: str, status: Any, logits: np.ndarray, **more: Any) -> Prediction:
        scores = (0.9,) * len(logits)
        return Prediction(
            item.id, prompt, status, item.size, logits, SIDE, scores, threshold=self.threshold, **more
        )


def data_set(
    folder: Path,
    ids: Sequence[str] = ("a", "b", "c"),
    prompts: tuple[str, ...] = ("vessel",),
    truth: np.ndarray | None = None,
    groups: Sequence[str | None] | None = None,
) -> DataSet:
    """Grey images of their own brightness, all with the same true mask."""
    folder.mkdir()
    samples = []
    for index, name in enumerate(ids):
        image, mask = folder / f"{name}.png", folder / f"{name}.mask.png"
        Image.fromarray(np.full((SIDE, SIDE, 3), 90 + index, dtype=np.uint8)).save(image)
        Image.fromarray((square() if truth is None else truth).astype(np.uint8) * 255).save(mask)
        objects = tuple((MaskFile(mask),) for _ in prompts)
        group = groups[index] if groups else None
        samples.append(Sample(name, image, prompts, objects, group=group))
    return DataSet("squares", "maskfolder", folder, tuple(samples), ("read by hand",))


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_squares_that_share_two_pixels_are_evaluated_as_worked_out_on_paper(tmp_path):
    out = tmp_path / "out"
    metrics = evaluate(FakeSegmenter(), data_set(tmp_path / "data", groups=["p", "p", "q"]), out)

    assert metrics["mean"] == pytest.approx(
        {"dice": 0.5, "iou": 1 / 3, "precision": 0.5, "recall": 0.5, "accuracy": 252 / 256}
    )
    assert metrics["mean_answered"] == metrics["mean"]
    assert metrics["ci95"]["dice"] == [0.5, 0.5]
    assert metrics["coverage"] == {"ok": 3, "failed": 0, "no_seg": 0}
    assert metrics["model"] == {"name": "fake", "kind": "fake", "fingerprint": "f00d", "step": 7}
    data = metrics["data"]
    assert (data["name"], data["format"], data["n_samples"], data["n_groups"]) == (
        "squares",
        "maskfolder",
        3,
        2,
    )
    assert len(data["fingerprint"]) == 64
    assert metrics["threshold"] == 0.4 and metrics["images_per_s"] > 0 and metrics["took_s"] > 0
    assert "numpy" in metrics["versions"] and "read by hand" in metrics["notes"]


def test_folder_holds_what_the_contract_says(tmp_path):
    out = tmp_path / "deep" / "out"
    metrics = evaluate(FakeSegmenter(), data_set(tmp_path / "data"), out)

    assert sorted(path.name for path in out.iterdir()) == [
        "figures",
        "metrics.json",
        "report.html",
        "samples.jsonl",
    ]
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert sorted(path.name for path in (out / "figures").iterdir()) == ["a.png", "b.png", "c.png"]
    rows = rows_of(out)
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert list(rows[0]) == ["id", "group", "prompt", "status", "figure", *METRIC_NAMES, "text", "error"]
    assert rows[0]["group"] == "a" and rows[0]["figure"] == "figures/a.png" and rows[0]["dice"] == 0.5
    assert not list(out.parent.glob(".*"))


def test_segmenter_never_gets_the_masks_and_gets_images_in_batches(tmp_path):
    segmenter = FakeSegmenter(batch=2)
    evaluate(segmenter, data_set(tmp_path / "data"), tmp_path / "out", figures=False)

    assert segmenter.calls == [["a", "b"], ["c"]]
    assert all(item.masks is None for item in segmenter.seen)


def test_answer_without_seg_is_scored_as_empty_and_counted(tmp_path):
    metrics = evaluate(FakeSegmenter({"b": None}), data_set(tmp_path / "data"), tmp_path / "out")

    assert metrics["coverage"] == {"ok": 2, "failed": 0, "no_seg": 1}
    assert metrics["mean"]["dice"] == pytest.approx(1 / 3)
    assert metrics["mean_answered"]["dice"] == 0.5
    row = rows_of(tmp_path / "out")[1]
    assert (row["status"], row["dice"], row["text"]) == ("no_seg", 0.0, "I see nothing.")
    assert row["figure"] == "figures/b.png"


def test_answer_without_seg_is_right_where_nothing_is(tmp_path):
    data = data_set(tmp_path / "data", truth=EMPTY)
    found = evaluate(FakeSegmenter({"a": None}), data, tmp_path / "out", figures=False)

    assert [row["dice"] for row in rows_of(tmp_path / "out")] == [1.0, 0.0, 0.0]
    assert (found["mean"]["recall"], found["undefined"]["recall"]) == (1.0, 2)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (KeyError("pixel_values"), "KeyError: 'pixel_values'"),
        ("the model broke", "the model broke"),
    ],
)
def test_sample_that_cannot_be_predicted_fails_alone_and_has_no_score(tmp_path, answer, reason):
    metrics = evaluate(
        FakeSegmenter({"b": answer}), data_set(tmp_path / "data"), tmp_path / "out", figures=False
    )

    assert metrics["coverage"] == {"ok": 2, "failed": 1, "no_seg": 0}
    assert metrics["mean"]["dice"] == 0.5
    row = rows_of(tmp_path / "out")[1]
    assert row["status"] == "failed" and row["error"] == reason and row["figure"] is None
    assert [row[name] for name in METRIC_NAMES] == [None] * 5


@pytest.mark.parametrize(
    "harm", [lambda path: path.write_bytes(b"no image"), Path.unlink], ids=["broken", "missing"]
)
def test_image_that_cannot_be_read_fails_with_its_name(tmp_path, harm):
    data = data_set(tmp_path / "data")
    harm(data.samples[1].image)
    metrics = evaluate(FakeSegmenter(), data, tmp_path / "out", figures=False)

    assert metrics["coverage"] == {"ok": 2, "failed": 1, "no_seg": 0}
    assert "b.png" in rows_of(tmp_path / "out")[1]["error"]
    assert (metrics["data"]["fingerprint"] is None) == any(
        "no fingerprint" in note for note in metrics["notes"]
    )


def test_mask_of_another_size_is_a_failure(tmp_path):
    class Smaller(FakeSegmenter):
        def prediction(self, item: Item, *rest: Any, **more: Any) -> Prediction:
            return super().prediction(Item(item.id, item.frames[:, :9], item.prompts), *rest, **more)

    metrics = evaluate(Smaller(), data_set(tmp_path / "data"), tmp_path / "out")

    assert metrics["coverage"]["failed"] == 3
    assert "one size; got (16, 16) and (9, 16)" in rows_of(tmp_path / "out")[0]["error"]


def test_answers_in_the_wrong_order_are_never_scored(tmp_path):
    class Muddled(FakeSegmenter):
        def predict(self, items: Sequence[Item]) -> list[Prediction]:
            return super().predict(items)[::-1]

    metrics = evaluate(Muddled(batch=3), data_set(tmp_path / "data", prompts=("x", "y")), tmp_path / "out")
    assert metrics["coverage"] == {"ok": 0, "failed": 6, "no_seg": 0}


def test_report_is_written_when_all_failed(tmp_path):
    metrics = evaluate(
        FakeSegmenter(dict.fromkeys("abc", ValueError("no"))), data_set(tmp_path / "data"), tmp_path / "o"
    )

    assert metrics["coverage"]["failed"] == 3
    assert metrics["mean"]["dice"] is None and metrics["images_per_s"] is None
    assert (tmp_path / "o" / "report.html").exists()


def test_several_prompts_have_a_row_and_a_figure_each(tmp_path):
    data = data_set(tmp_path / "data", ids=["图1"], prompts=("blood vessel", "冠状动脉", "Blood-vessel"))
    metrics = evaluate(FakeSegmenter({"图1 冠状动脉": None}), data, tmp_path / "out")

    names = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert len(names) == 3 and "图1--冠状动脉.png" in names
    rows = rows_of(tmp_path / "out")
    assert [row["status"] for row in rows] == ["ok", "no_seg", "ok"]
    assert {Path(row["figure"]).name for row in rows} == set(names)
    assert metrics["prompts"]["冠状动脉"]["coverage"]["no_seg"] == 1
    assert "冠状动脉" in (tmp_path / "out" / "samples.jsonl").read_text(encoding="utf-8")
    assert "冠状动脉" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_id_that_looks_like_an_id_and_a_prompt_keeps_its_own_figure(tmp_path):
    one, two = (
        data_set(tmp_path / name, ids=ids, prompts=prompts)
        for name, ids, prompts in (("1", ["a"], ("b", "c")), ("2", ["a--b"], ("b",)))
    )
    both = DataSet("both", "maskfolder", tmp_path, one.samples + two.samples)
    evaluate(FakeSegmenter(), both, tmp_path / "out")

    assert len({row["figure"] for row in rows_of(tmp_path / "out")}) == 3
    assert len(list((tmp_path / "out" / "figures").iterdir())) == 3


def test_missing_font_is_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(visualisation, "FONT_FOLDERS", ())
    metrics = evaluate(FakeSegmenter(), data_set(tmp_path / "data", prompts=("血管",)), tmp_path / "out")

    assert sum("No font on this machine" in note for note in metrics["notes"]) == 1
    assert "No font on this machine" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (None, "take each image for a group of its own"),
        (["p", "q", None], "With 3 groups the intervals are rough"),
    ],
)
def test_doubts_about_the_intervals_are_noted(tmp_path, groups, words):
    metrics = evaluate(
        FakeSegmenter(), data_set(tmp_path / "data", groups=groups), tmp_path / "out", figures=False
    )
    assert any(words in note for note in metrics["notes"])


def test_limit_takes_the_first_samples_and_says_so(tmp_path):
    done: list[int] = []
    data = data_set(tmp_path / "data")
    metrics = evaluate(
        FakeSegmenter(), data, tmp_path / "out", limit=2, figures=False, on_progress=done.append
    )

    assert (metrics["data"]["n_samples"], done) == (2, [1, 2])
    assert any("first 2 of 3" in note for note in metrics["notes"])
    assert not (tmp_path / "out" / "figures").exists()
    assert rows_of(tmp_path / "out")[0]["figure"] is None


def test_training_images_are_refused_unless_allowed(tmp_path):
    data = data_set(tmp_path / "data")
    segmenter = FakeSegmenter()
    segmenter.training_images = {hash_pixels(read_image(data.samples[1].image))}

    with pytest.raises(
        DataError, match=r"1 of 3 images are among those the model was trained on \(first: b\)"
    ):
        evaluate(segmenter, data, tmp_path / "out")
    assert segmenter.seen == [] and not (tmp_path / "out").exists()
    metrics = evaluate(segmenter, data, tmp_path / "out", allow_training_samples=True, figures=False)
    assert metrics["data"]["n_training_samples"] == 1
    assert any("not tell how it does on images that it has not seen" in note for note in metrics["notes"])


def test_model_that_does_not_tell_its_training_images_is_noted(tmp_path):
    metrics = evaluate(FakeSegmenter(), data_set(tmp_path / "data"), tmp_path / "out", figures=False)

    assert metrics["data"]["n_training_samples"] is None
    assert any("does not say which images it was trained on" in note for note in metrics["notes"])


def test_predictions_that_are_the_ground_truth_are_refused(tmp_path):
    data = data_set(tmp_path / "data", ids=list("abcdefgh"))
    copies = FakeSegmenter(dict.fromkeys("abcdef", square()))

    with pytest.raises(DataError, match="6 of 8 predictions equal the ground truth"):
        evaluate(copies, data, tmp_path / "out", figures=False)
    assert not (tmp_path / "out").exists()


def test_interrupted_evaluation_leaves_nothing_and_keeps_the_old_one(tmp_path):
    data, out = data_set(tmp_path / "data"), tmp_path / "results" / "out"
    evaluate(FakeSegmenter(), data, out, figures=False)
    before = (out / "metrics.json").read_bytes()

    class Interrupted(FakeSegmenter):
        def predict(self, items: Sequence[Item]) -> list[Prediction]:
            if self.calls:
                raise KeyboardInterrupt
            return super().predict(items)

    with pytest.raises(KeyboardInterrupt):
        evaluate(Interrupted(), data, out, figures=False)
    assert (out / "metrics.json").read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_older_evaluation_is_replaced_as_a_whole(tmp_path):
    out = tmp_path / "out"
    evaluate(FakeSegmenter(), data_set(tmp_path / "one", ids=["a", "b"]), out)
    evaluate(FakeSegmenter(), data_set(tmp_path / "two", ids=["c"]), out)

    assert [path.name for path in (out / "figures").iterdir()] == ["c.png"]


@pytest.mark.parametrize("name", ["thesis.docx", "report.html"])
def test_folder_that_is_no_evaluation_is_left_alone(tmp_path, name):
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text("years of work")

    with pytest.raises(OutputError, match="mine: h"):
        evaluate(FakeSegmenter(), data_set(tmp_path / "data"), out)
    assert (out / name).read_text() == "years of work"


def test_evaluation_with_something_of_the_users_in_it_is_left_alone(tmp_path):
    data, out = data_set(tmp_path / "data"), tmp_path / "out"
    evaluate(FakeSegmenter(), data, out, figures=False)
    (out / "notes.md").write_text("mine")

    with pytest.raises(OutputError, match=r"notes\.md"):
        evaluate(FakeSegmenter(), data, out)
    assert (out / "notes.md").exists()


def test_out_that_is_a_file_is_refused_and_an_empty_folder_is_used(tmp_path):
    data = data_set(tmp_path / "data")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()

    with pytest.raises(OutputError, match="is a file"):
        evaluate(FakeSegmenter(), data, tmp_path / "file")
    evaluate(FakeSegmenter(), data, tmp_path / "empty", figures=False)
    assert (tmp_path / "empty" / "metrics.json").exists()


def test_data_that_cannot_be_scored_is_refused_before_anything_is_predicted(tmp_path):
    data, segmenter = data_set(tmp_path / "data"), FakeSegmenter()
    bare = Sample("d", data.samples[0].image, ("vessel",), None)
    twice = Sample("e", data.samples[0].image, ("x", "x"), data.samples[0].masks * 2)

    for samples, words in [
        ((), "has no samples"),
        ((*data.samples, bare), r"1 of 4 samples have no masks \(first: d\)"),
        ((twice,), "'x' is there twice"),
    ]:
        with pytest.raises(DataError, match=words):
            evaluate(segmenter, DataSet("bad", "maskfolder", tmp_path, samples), tmp_path / "out")
    with pytest.raises(SettingError, match="limit must be 1 or more"):
        evaluate(segmenter, data, tmp_path / "out", limit=0)
    assert segmenter.seen == [] and not (tmp_path / "out").exists()
