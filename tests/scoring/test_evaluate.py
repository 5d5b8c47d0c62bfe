"""Evaluation: the folder it writes, the input of the segmenter, and samples that fail."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.codes import raises_code

from vesalius import fonts
from vesalius.data.dataset import Dataset
from vesalius.data.images import read_image
from vesalius.errors import AnnotationError, DataError, OutputError, SettingError
from vesalius.evaluation.metrics import METRICS
from vesalius.files import check_replaceable
from vesalius.lineage import hash_pixels
from vesalius.scoring import evaluate as scoring
from vesalius.scoring.evaluate import FILES
from vesalius.scoring.results_log import HISTOGRAMS, ResultsLog
from vesalius.scoring.scored_prediction import PIXEL_COUNTS
from vesalius.types import Item, Prediction, Sample

evaluate = partial(scoring.evaluate, num_workers=0)
EMPTY = np.zeros((16, 16), dtype=bool)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_squares_that_share_two_pixels_are_evaluated_as_worked_out_on_paper(tmp_path, FakeSegmenter, dataset):
    out = tmp_path / "out"
    metrics = evaluate(FakeSegmenter(), dataset(tmp_path / "data", groups=["p", "p", "q"]), out)

    on_paper = {"dice": 0.5, "iou": 1 / 3, "precision": 0.5, "recall": 0.5, "accuracy": 252 / 256, "hd_px": 1.0}
    assert {name: metrics["mean"][name] for name in on_paper} == pytest.approx(on_paper)
    assert metrics["mean_answered"] == metrics["mean"]
    assert metrics["ci95"]["dice"] == [0.5, 0.5]
    assert metrics["coverage"] == {"ok": 3, "failed": 0, "no_seg": 0}
    assert metrics["model"] == {"name": "fake", "kind": "fake", "fingerprint": "f00d", "step": 7}
    data = metrics["data"]
    assert (data["name"], data["format"], data["n_samples"], data["n_groups"]) == ("squares", "maskfolder", 3, 2)
    assert len(data["fingerprint"]) == 64
    assert metrics["threshold"] == 0.4 and metrics["images_per_s"] > 0 and metrics["took_s"] > 0
    assert "numpy" in metrics["versions"] and "read by hand" in metrics["notes"]


def test_folder_holds_what_the_contract_says(tmp_path, FakeSegmenter, dataset):
    out = tmp_path / "deep" / "out"
    metrics = evaluate(FakeSegmenter(), dataset(tmp_path / "data"), out)

    names = {path.name for path in out.iterdir()}
    assert names >= {"figures", "metrics.json", "report.html", "samples.jsonl"} and names <= scoring.FILES
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert sorted(path.name for path in (out / "figures").iterdir()) == ["a.png", "b.png", "c.png"]
    rows = rows_of(out)
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    asked = ["id", "group", "prompt", "status", "says_seg", "answered", "figure"]
    assert list(rows[0]) == [*asked, *METRICS, *PIXEL_COUNTS, "text", "error"]
    assert rows[0]["group"] == "a" and rows[0]["figure"] == "figures/a.png" and rows[0]["dice"] == 0.5
    assert not list(out.parent.glob(".*"))


def test_segmenter_never_gets_the_masks_and_gets_images_in_batches(tmp_path, FakeSegmenter, dataset):
    segmenter = FakeSegmenter(batch_size=2)
    evaluate(segmenter, dataset(tmp_path / "data"), tmp_path / "out", figures=False)

    assert segmenter.calls == [["a", "b"], ["c"]]
    assert all(item.masks is None for item in segmenter.seen)


def test_answer_without_seg_is_scored_as_empty_and_counted(tmp_path, FakeSegmenter, dataset):
    metrics = evaluate(FakeSegmenter({"b": None}), dataset(tmp_path / "data"), tmp_path / "out")

    assert metrics["coverage"] == {"ok": 2, "failed": 0, "no_seg": 1}
    assert metrics["mean"]["dice"] == pytest.approx(1 / 3)
    assert metrics["mean_answered"]["dice"] == 0.5
    row = rows_of(tmp_path / "out")[1]
    assert (row["status"], row["dice"], row["text"]) == ("no_seg", 0.0, "I see nothing.")
    assert row["figure"] == "figures/b.png"


def test_answer_without_seg_is_correct_for_an_empty_target(tmp_path, FakeSegmenter, dataset):
    data = dataset(tmp_path / "data", target=EMPTY)
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
def test_sample_that_cannot_be_predicted_fails_alone_and_has_no_score(tmp_path, answer, reason, FakeSegmenter, dataset):
    metrics = evaluate(FakeSegmenter({"b": answer}), dataset(tmp_path / "data"), tmp_path / "out", figures=False)

    assert metrics["coverage"] == {"ok": 2, "failed": 1, "no_seg": 0}
    assert metrics["mean"]["dice"] == 0.5
    row = rows_of(tmp_path / "out")[1]
    assert row["status"] == "failed" and row["error"] == reason and row["figure"] is None
    assert {row[name] for name in METRICS} == {None}


@pytest.mark.parametrize("harm", [lambda path: path.write_bytes(b"no image"), Path.unlink], ids=["broken", "missing"])
def test_image_that_cannot_be_read_fails_with_its_name(tmp_path, harm, FakeSegmenter, dataset):
    data = dataset(tmp_path / "data")
    harm(data.samples[1].image)
    metrics = evaluate(FakeSegmenter(), data, tmp_path / "out", figures=False)

    assert metrics["coverage"] == {"ok": 2, "failed": 1, "no_seg": 0}
    assert "b.png" in rows_of(tmp_path / "out")[1]["error"]
    assert (metrics["data"]["fingerprint"] is None) == any("no fingerprint" in note for note in metrics["notes"])


def test_mask_of_another_size_is_a_failure(tmp_path, FakeSegmenter, dataset):
    class Smaller(FakeSegmenter):
        def answer(self, item: Item, prompt: str) -> Prediction:
            return replace(super().answer(item, prompt), size=(9, 16))

    metrics = evaluate(Smaller(), dataset(tmp_path / "data"), tmp_path / "out")

    assert metrics["coverage"]["failed"] == 3
    assert "(16, 16) and (9, 16)" in rows_of(tmp_path / "out")[0]["error"]


def test_answers_in_the_wrong_order_are_never_scored(tmp_path, FakeSegmenter, dataset):
    class Muddled(FakeSegmenter):
        def predict(self, items: Sequence[Item]) -> list[Prediction]:
            return super().predict(items)[::-1]

    metrics = evaluate(Muddled(batch_size=3), dataset(tmp_path / "data", prompts=("x", "y")), tmp_path / "out")
    assert metrics["coverage"] == {"ok": 0, "failed": 6, "no_seg": 0}


def test_report_is_written_when_all_failed(tmp_path, FakeSegmenter, dataset):
    metrics = evaluate(
        FakeSegmenter(dict.fromkeys("abc", ValueError("no"))), dataset(tmp_path / "data"), tmp_path / "o"
    )

    assert metrics["coverage"]["failed"] == 3
    assert metrics["mean"]["dice"] is None and metrics["images_per_s"] is None
    assert (tmp_path / "o" / "report.html").exists()


def test_several_prompts_have_a_row_and_a_figure_each(tmp_path, FakeSegmenter, dataset):
    data = dataset(tmp_path / "data", ids=["图1"], prompts=("blood vessel", "冠状动脉", "Blood-vessel"))
    metrics = evaluate(FakeSegmenter({"图1 冠状动脉": None}), data, tmp_path / "out")

    names = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert len(names) == 3 and "图1--冠状动脉.png" in names
    rows = rows_of(tmp_path / "out")
    assert [row["status"] for row in rows] == ["ok", "no_seg", "ok"]
    assert {Path(row["figure"]).name for row in rows} == set(names)
    assert metrics["prompts"]["冠状动脉"]["coverage"]["no_seg"] == 1
    assert "冠状动脉" in (tmp_path / "out" / "samples.jsonl").read_text(encoding="utf-8")
    assert "冠状动脉" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_id_that_looks_like_an_id_and_a_prompt_keeps_its_own_figure(tmp_path, FakeSegmenter, dataset):
    one, two = (
        dataset(tmp_path / name, ids=ids, prompts=prompts)
        for name, ids, prompts in (("1", ["a"], ("b", "c")), ("2", ["a--b"], ("b",)))
    )
    both = Dataset("both", "maskfolder", tmp_path, one.samples + two.samples)
    evaluate(FakeSegmenter(), both, tmp_path / "out")

    assert len({row["figure"] for row in rows_of(tmp_path / "out")}) == 3
    assert len(list((tmp_path / "out" / "figures").iterdir())) == 3


def test_missing_font_is_a_note(tmp_path, monkeypatch, FakeSegmenter, dataset):
    monkeypatch.setattr(fonts, "FONT_FOLDERS", ())
    metrics = evaluate(FakeSegmenter(), dataset(tmp_path / "data", prompts=("血管",)), tmp_path / "out")

    assert sum("No font on this machine" in note for note in metrics["notes"]) == 1
    assert "No font on this machine" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("groups", "words"),
    [(None, "Each image is treated as its own group"), (["p", "q", None], "With 3 groups the intervals are rough")],
)
def test_caveats_of_the_intervals_are_noted(tmp_path, groups, words, FakeSegmenter, dataset):
    metrics = evaluate(FakeSegmenter(), dataset(tmp_path / "data", groups=groups), tmp_path / "out", figures=False)
    assert any(words in note for note in metrics["notes"])


def test_limit_takes_the_first_samples_and_says_so(tmp_path, FakeSegmenter, dataset):
    done: list[int] = []
    data = dataset(tmp_path / "data")
    metrics = evaluate(FakeSegmenter(), data, tmp_path / "out", limit=2, figures=False, on_progress=done.append)

    assert (metrics["data"]["n_samples"], done) == (2, [1, 2])
    assert any("first 2 of 3" in note for note in metrics["notes"])
    assert not (tmp_path / "out" / "figures").exists()
    assert rows_of(tmp_path / "out")[0]["figure"] is None


def test_training_images_are_refused_unless_allowed(tmp_path, FakeSegmenter, dataset):
    data = dataset(tmp_path / "data")
    segmenter = FakeSegmenter()
    segmenter.describe(training_images={hash_pixels(read_image(data.samples[1].image))})

    with raises_code(DataError, "training_leak", "1 of 3 images", "first: b"):
        evaluate(segmenter, data, tmp_path / "out")
    assert segmenter.seen == [] and not (tmp_path / "out").exists()
    metrics = evaluate(segmenter, data, tmp_path / "out", allow_training_samples=True, figures=False)
    assert metrics["data"]["n_training_samples"] == 1
    assert any("unseen images" in note for note in metrics["notes"])


def test_predictions_that_are_the_ground_truth_are_refused(tmp_path, FakeSegmenter, dataset, square):
    data = dataset(tmp_path / "data", ids=list("abcdefgh"))
    copies = FakeSegmenter(dict.fromkeys("abcdef", square()))

    with raises_code(DataError, "copied_ground_truth", "6 of 8 predictions"):
        evaluate(copies, data, tmp_path / "out", figures=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_older_evaluation_stays_until_the_new_one_is_whole(tmp_path, FakeSegmenter, dataset):
    data, out = dataset(tmp_path / "data"), tmp_path / "results" / "out"
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
    names = sorted(path.name for path in out.parent.iterdir())
    assert names == [".out.unfinished", "out"]
    check_replaceable(out, "evaluation", FILES, "metrics.json")


def test_older_evaluation_is_replaced_as_a_whole(tmp_path, FakeSegmenter, dataset):
    out = tmp_path / "out"
    evaluate(FakeSegmenter(), dataset(tmp_path / "one", ids=["a", "b"]), out)
    evaluate(FakeSegmenter(), dataset(tmp_path / "two", ids=["c"]), out)

    assert [path.name for path in (out / "figures").iterdir()] == ["c.png"]


def test_only_an_evaluation_is_replaced(tmp_path, FakeSegmenter, dataset):
    data = dataset(tmp_path / "data")
    (tmp_path / "empty").mkdir()
    evaluate(FakeSegmenter(), data, tmp_path / "empty", figures=False)
    evaluate(FakeSegmenter(), data, tmp_path / "evaluation", figures=False)
    for name in ("mine/thesis.docx", "other/report.html", "evaluation/notes.md", "file"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("years of work")
        out = file if name == "file" else file.parent
        with raises_code(OutputError, "not_replaceable", out.name):
            evaluate(FakeSegmenter(), data, out)
        assert file.read_text() == "years of work"


def test_data_that_cannot_be_scored_is_refused_before_anything_is_predicted(tmp_path, FakeSegmenter, dataset):
    data, segmenter = dataset(tmp_path / "data"), FakeSegmenter()
    bare = Sample("d", data.samples[0].image, ("vessel",), None)
    twice = Sample("e", data.samples[0].image, ("x", "x"), data.samples[0].masks * 2)

    same_id = (*data.samples, data.samples[1])
    for samples, kind, code, name in [
        ((), DataError, "no_samples", ""),
        ((*data.samples, bare), AnnotationError, "unlabeled_image", "1 of 4"),
        ((twice,), DataError, "duplicate_prompt", "'x'"),
        (same_id, DataError, "duplicate_id", "2 samples have the id b"),
    ]:
        with raises_code(kind, code, name):
            evaluate(segmenter, Dataset("bad", "maskfolder", tmp_path, samples), tmp_path / "out")
    for setting in ({"limit": 0}, {"num_workers": -1}):
        with raises_code(SettingError, "bad_value", *setting):
            scoring.evaluate(segmenter, data, tmp_path / "out", **setting)
    assert segmenter.seen == [] and not (tmp_path / "out").exists()


TIMES = ("took_s", "images_per_s", "notes")


def without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name not in TIMES}


def interrupted_after(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt the next evaluation when it has this many rows."""
    add = ResultsLog.add

    def add_or_die(self: ResultsLog, outcome: Any) -> None:
        if len(self.rows) == rows:
            raise KeyboardInterrupt
        add(self, outcome)

    monkeypatch.setattr(ResultsLog, "add", add_or_die)


@pytest.mark.parametrize(
    ("rows", "harm"),
    [(0, "none"), (1, "none"), (7, "none"), (2, "a line without its record"), (3, "half a line"), (3, "half a record")],
)
def test_interrupted_evaluation_continues_to_the_same_result(tmp_path, monkeypatch, rows, harm, FakeSegmenter, dataset):
    data = dataset(tmp_path / "data", ids=["a", "a--x", "c", "d"], prompts=("x", "y"))
    answers = {"a": None, "c": RuntimeError("out of memory"), "d": np.linspace(-3, 3, 256).reshape(16, 16)}
    drawn = harm == "half a line"  # pictures take most of the time
    whole = evaluate(FakeSegmenter(answers), data, tmp_path / "whole", figures=drawn)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted_after(rows, patch)
        evaluate(FakeSegmenter(answers), data, tmp_path / "out", figures=drawn)
    unfinished = tmp_path / ".out.unfinished"
    with (unfinished / "samples.jsonl").open("ab") as lines, (unfinished / HISTOGRAMS).open("ab") as counts:
        if harm == "half a line":
            lines.write(b'{"id": "a", "dic')
        if harm == "half a record":
            counts.write(b"half")
        if harm == "a line without its record":
            lines.write(b'{"id": "z", "prompt": "none"}\n')

    segmenter = FakeSegmenter(answers)
    continued = evaluate(segmenter, data, tmp_path / "out", figures=drawn)

    asked = [name for call in segmenter.calls for name in call]
    assert sorted(set(asked)) == ["a", "a--x", "c", "d"][rows // 2 :]
    assert without_times(continued) == without_times(whole) and continued["notes"] == whole["notes"]
    for name in ("samples.jsonl", *(f"figures/{path.name}" for path in (tmp_path / "whole").glob("figures/*"))):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }
    assert not unfinished.exists()


def fill(path: Path) -> None:
    Image.new("L", (16, 16), 255).save(path)


CHANGES: dict[str, Any] = {
    "another model": lambda segmenter, samples, roi: segmenter.describe(fingerprint="beef"),
    "another threshold": lambda segmenter, samples, roi: segmenter.describe(threshold=0.6),
    "another mask": lambda segmenter, samples, roi: fill(samples[2].image.with_name("c.mask.png")),
    "another order": lambda segmenter, samples, roi: samples.reverse(),
    "another group": lambda segmenter, samples, roi: samples.insert(0, replace(samples.pop(0), group="p")),
    "another region": lambda segmenter, samples, roi: fill(roi / "c.png"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_evaluation_starts_anew(tmp_path, monkeypatch, change, FakeSegmenter, dataset):
    samples, roi = list(dataset(tmp_path / "data").samples), tmp_path / "roi"
    roi.mkdir()
    for name in "abc":
        Image.fromarray(np.eye(16, dtype=np.uint8)).save(roi / f"{name}.png")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted_after(2, patch)
        evaluate(FakeSegmenter(), samples, tmp_path / "out", roi=roi, figures=False)

    segmenter = FakeSegmenter()
    change(segmenter, samples, roi)
    evaluate(segmenter, samples, tmp_path / "out", roi=roi, figures=False)

    assert len(segmenter.seen) == 3
    assert [row["id"] for row in rows_of(tmp_path / "out")] == [sample.id for sample in samples]


def test_report_that_fails_costs_no_score(tmp_path, monkeypatch, FakeSegmenter, dataset):
    data = dataset(tmp_path / "data")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(scoring, "write_report", lambda *_: 1 / 0)
        evaluate(FakeSegmenter(), data, tmp_path / "out", figures=False)

    segmenter = FakeSegmenter()
    evaluate(segmenter, data, tmp_path / "out", figures=False)
    assert segmenter.seen == [] and len(rows_of(tmp_path / "out")) == 3


def test_out_that_cannot_be_replaced_keeps_the_new_evaluation(tmp_path, monkeypatch, FakeSegmenter, dataset):
    data, out = dataset(tmp_path / "data"), tmp_path / "out"
    evaluate(FakeSegmenter(), data, out, figures=False)
    move = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if self.name == ".out.unfinished":
            raise OSError(16, "Device or resource busy")
        return move(self, target)

    with monkeypatch.context() as patch, raises_code(OutputError, "write_failed", "busy", ".out.unfinished"):
        patch.setattr(Path, "replace", refuse)
        evaluate(FakeSegmenter(), data, out, figures=False)
    assert (out / "metrics.json").exists() and (tmp_path / ".out.unfinished" / "metrics.json").exists()
    segmenter = FakeSegmenter()
    evaluate(segmenter, data, out, figures=False)
    assert segmenter.seen == [] and [path.name for path in tmp_path.glob(".*")] == []


def test_second_evaluation_into_the_same_place_is_refused(tmp_path, FakeSegmenter, dataset):
    data = dataset(tmp_path / "data")

    class Greedy(FakeSegmenter):
        def predict(self, items: Sequence[Item]) -> list[Prediction]:
            with raises_code(OutputError, "folder_in_use"):
                evaluate(FakeSegmenter(), data, tmp_path / "out", figures=False)
            return super().predict(items)

    assert evaluate(Greedy(), data, tmp_path / "out", figures=False)["coverage"]["ok"] == 3


def test_pixels_outside_of_the_region_of_interest_are_not_scored(tmp_path, FakeSegmenter, dataset, square):
    data, roi = dataset(tmp_path / "data", ids=["a", "b", "c", "d", "e"]), tmp_path / "roi"
    roi.mkdir()
    for name in "abcde":
        region = np.zeros((16, 16), np.uint8)
        region[:, 2:8] = 255
        Image.fromarray(region).save(roi / f"{name}.png")
    logits = np.where(square(2), 9.0, -9.0)
    logits[9:, 9:] = 9
    asked = FakeSegmenter(dict.fromkeys("abcde", logits))
    metrics = evaluate(asked, data, tmp_path / "out", roi=roi)

    # in the region the ground truth is one column of 2 pixels, the prediction two columns
    assert metrics["mean"]["dice"] == pytest.approx(2 / 3) and metrics["mean"]["accuracy"] == 94 / 96
    row = rows_of(tmp_path / "out")[0]
    assert [row[name] for name in PIXEL_COUNTS] == [2, 4, 2]
    assert sum(each["pixels"] for each in metrics["calibration"]["reliability"]) == 5 * 96
    assert metrics["referring"]["ciou"] == 0.5
    assert metrics["settings"]["roi"] == str(roi) and len(metrics["settings"]["roi_fingerprint"]) == 64
    metrics = evaluate(FakeSegmenter(dict.fromkeys("abcde", logits)), data, tmp_path / "out")
    assert metrics["mean"]["dice"] < 0.1


def test_region_that_is_missing_is_refused_and_one_that_does_not_fit_fails(tmp_path, FakeSegmenter, dataset):
    data, roi = dataset(tmp_path / "data"), tmp_path / "roi"
    with raises_code(DataError, "not_found"):
        evaluate(FakeSegmenter(), data, tmp_path / "out", roi=roi)
    roi.mkdir()
    Image.new("L", (16, 16), 255).save(roi / "a.png")
    with raises_code(DataError, "missing_roi", "2 of 3 images", "(b, c)"):
        evaluate(FakeSegmenter(), data, tmp_path / "out", roi=roi)
    Image.new("L", (9, 16), 255).save(roi / "b.png")
    Image.new("L", (16, 16), 0).save(roi / "c.png")
    metrics = evaluate(FakeSegmenter(), data, tmp_path / "out", roi=roi, figures=False)

    assert metrics["coverage"] == {"ok": 1, "failed": 2, "no_seg": 0}
    errors = [row["error"] for row in rows_of(tmp_path / "out")]
    assert "16 x 9 pixels" in errors[1] and "c.png" in errors[2]


def test_empty_masks_are_counted_by_case_and_scored(tmp_path, FakeSegmenter, dataset, square):
    present = dataset(tmp_path / "present", ids=["a", "b", "c"]).samples
    absent = dataset(tmp_path / "absent", ids=["d", "e"], target=EMPTY).samples
    segmenter = FakeSegmenter({"a": EMPTY, "b": None, "d": EMPTY})
    metrics = evaluate(segmenter, present + absent, tmp_path / "out", figures=False)

    assert metrics["empty"] == {"both_empty": 1, "false_alarm": 1, "total_miss": 2, "both": 1}
    rows = {row["id"]: row for row in rows_of(tmp_path / "out")}
    diagonal = np.hypot(16, 16)
    for name in "ab":
        assert (rows[name]["dice"], rows[name]["cldice"], rows[name]["nsd_2px"]) == (0, 0, 0)
        assert rows[name]["hd95_px"] == pytest.approx(diagonal)
    assert (rows["d"]["dice"], rows["e"]["dice"], rows["d"]["hd95_px"]) == (1, 0, None)
    assert metrics["mean"]["dice"] == pytest.approx((0 + 0 + 0.5 + 1 + 0) / 5)
    assert metrics["undefined"]["hd95_px"] == 1
    for text in ((tmp_path / "out" / name).read_text() for name in ("metrics.json", "samples.jsonl")):
        assert "NaN" not in text and "Infinity" not in text


def test_text_of_an_answer_may_hold_any_character(tmp_path, monkeypatch, FakeSegmenter, dataset):
    data, text = dataset(tmp_path / "data"), "one\u2028two\x85three\nfour"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted_after(2, patch)
        evaluate(FakeSegmenter({"a": text}), data, tmp_path / "out", figures=False)
    segmenter = FakeSegmenter({"a": text})
    evaluate(segmenter, data, tmp_path / "out", figures=False)
    assert [item.id for item in segmenter.seen] == ["c"]
