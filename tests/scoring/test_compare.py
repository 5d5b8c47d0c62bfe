"""Comparison of evaluations: numbers, files, refusals, and rows without a score."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest
from PIL import Image
from tests.codes import raises_code
from tests.scoring.evaluations import NEW, OLD, pair, rows_of, scored_row, write_evaluation

from vesalius.errors import DataError, OutputError, SettingError
from vesalius.scoring.compare import compare

FILES = ["comparison.csv", "comparison.json", "comparison.md", "comparison.png", "report.html"]


def test_numbers_are_those_worked_out_on_paper(tmp_path):
    result = compare(pair(tmp_path), tmp_path / "out")
    [found] = result["comparisons"]

    # differences of the groups: a 0.1 and 0.1, b 0.3 and 0.1, c -0.1 and -0.1
    assert (found["evaluation"], found["prompt"], found["metric"]) == ("new", None, "dice")
    assert (found["n"], found["n_groups"], found["undefined"]) == (6, 3, 0)
    assert (found["mean_reference"], found["mean"]) == (pytest.approx(0.6), pytest.approx(2 / 3))
    assert found["difference"] == pytest.approx(0.4 / 6)
    assert found["ci95"] == pytest.approx([-0.1, 0.2]) and found["ci_method"] == "percentile"
    # group means 0.1, 0.2, -0.1: ranks 1.5 and 3 against 1.5, which 3 of 8 signs reach on either side
    assert (found["p"], found["p_holm"]) == (0.75, 0.75)
    assert found["rank_biserial"] == pytest.approx(0.5)
    assert found["d_z"] == pytest.approx((0.2 / 3) / (7 / 300) ** 0.5)
    assert found["verdict"] == "unclear"


def test_folder_holds_what_the_result_says(tmp_path):
    out = tmp_path / "deep" / "out"
    result = compare(pair(tmp_path), out)

    assert sorted(path.name for path in out.iterdir()) == FILES
    assert json.loads((out / "comparison.json").read_text(encoding="utf-8")) == result
    with (out / "comparison.csv").open(encoding="utf-8-sig", newline="") as file:
        [line] = csv.DictReader(file)
    assert (line["metric"], line["prompt"], float(line["ci95_high"])) == ("dice", "", pytest.approx(0.2))
    page = (out / "report.html").read_text(encoding="utf-8")
    text = (out / "comparison.md").read_text(encoding="utf-8")
    for each in (page, text):
        assert all(number in each for number in ("0.600", "0.667", "+0.067", "−0.100 to +0.200", "0.750"))
    with Image.open(out / "comparison.png") as picture:
        assert picture.width > 1000
    assert not list(out.parent.glob(".*"))


def test_first_folder_is_the_reference_and_the_other_way_round_has_other_signs(tmp_path):
    folders = pair(tmp_path)
    one = compare(folders, tmp_path / "out")["comparisons"][0]
    two = compare(folders[::-1], tmp_path / "out")["comparisons"][0]

    assert two["difference"] == -one["difference"] and two["p"] == one["p"]
    assert two["ci95"] == [-one["ci95"][1], -one["ci95"][0]]
    assert (two["rank_biserial"], two["evaluation"]) == (-one["rank_biserial"], "old")


def test_order_of_lines_and_line_separators_within_texts_do_not_matter(tmp_path):
    old, new = pair(tmp_path)
    shuffled = write_evaluation(tmp_path / "shuffled" / "new", rows_of(*NEW, text="one\u2028two")[::-1])

    assert (
        compare([old, shuffled], tmp_path / "2")["comparisons"] == (compare([old, new], tmp_path / "1")["comparisons"])
    )


@pytest.mark.parametrize(("metric", "verdict"), [("dice", "better"), ("hd95_px", "worse"), ("odd", "different")])
def test_direction_of_a_metric_decides_what_is_better(tmp_path, metric, verdict):
    old, new = (
        [scored_row(f"{each}1", 0.5) | {metric: at + i / 100} for i, each in enumerate("abcdefgh")] for at in (0.2, 0.4)
    )
    result = compare(pair(tmp_path, old, new), tmp_path / "out", only=[metric])

    assert result["comparisons"][0]["verdict"] == verdict
    assert result["metrics"][metric]["better"] == {"better": "higher", "worse": "lower"}.get(verdict)


def test_mean_and_ranks_that_disagree_have_no_direction(tmp_path):
    old = [scored_row(f"{each}1", 0.9) for each in "abcdefghijkl"]
    new = [scored_row(f"{each}1", 0.91 + i / 1000 if i else 0.0) for i, each in enumerate("abcdefghijkl")]
    found = compare(pair(tmp_path, old, new), tmp_path / "out")["comparisons"][0]

    assert found["difference"] < 0 < found["rank_biserial"]
    assert found["verdict"] == "different"


def test_several_evaluations_and_prompts_are_corrected_together(tmp_path):
    def answers(*values: float) -> list[dict[str, Any]]:
        return [
            scored_row(f"{each}1", value + i / 100, prompt=prompt)
            for prompt, value in zip(("vessel", "导管"), values, strict=True)
            for i, each in enumerate("abcdefgh")
        ]

    folders = [
        write_evaluation(tmp_path / name / "eval", answers(*values))
        for name, values in (("1", (0.5, 0.5)), ("2", (0.6, 0.5)), ("3", (0.4, 0.7)))
    ]
    result = compare(folders, tmp_path / "out")

    assert [each["name"] for each in result["evaluations"]] == ["1/eval", "2/eval", "3/eval"]
    found = {(each["evaluation"][0], each["prompt"]): each for each in result["comparisons"]}
    assert list(found) == [(name, prompt) for name in "23" for prompt in (None, "vessel", "导管")]
    assert found["2", "导管"]["p"] == 1.0 and found["2", "vessel"]["p"] == 2 / 256
    assert found["2", "vessel"]["p_holm"] == 6 * 2 / 256  # the least of six
    assert "导管" in (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")


def test_failed_rows_are_listed_and_compared_nowhere(tmp_path):
    rows = rows_of(*NEW)
    rows[0] |= {"dice": None, "status": "failed", "error": "out of memory"}
    result = compare(pair(tmp_path, new=rows), tmp_path / "out")

    assert result["coverage"] == {"rows": 6, "compared": 5, "failed": 1}
    assert result["failed_rows"] == [{"id": "a1", "prompt": "vessel", "errors": {"new": "out of memory"}}]
    assert result["comparisons"][0]["n"] == 5
    assert result["comparisons"][0]["mean_reference"] == pytest.approx(3.1 / 5)
    for name in ("comparison.md", "report.html"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert text.index("1 predictions failed") < text.index("0.620") and "out of memory" in text


def test_row_undefined_in_one_evaluation_is_left_out_of_all(tmp_path):
    folders = pair(tmp_path)
    rows = rows_of(*NEW)
    rows[5]["dice"] = None
    folders.append(write_evaluation(tmp_path / "third", rows))
    result = compare(folders, tmp_path / "out")

    assert [(each["n"], each["undefined"]) for each in result["comparisons"]] == [(5, 1), (5, 1)]


def test_metric_that_no_pair_defines_is_named(tmp_path):
    old, new = ([{**each, "hd_mm": None} for each in rows_of(*dice)] for dice in (OLD, NEW))
    found = compare(pair(tmp_path, old, new), tmp_path / "out")["comparisons"][1]

    assert (found["n"], found["undefined"]) == (0, 6)
    assert {found[name] for name in ("mean", "p", "verdict")} == {None}
    assert "Undefined in all pairs: hd\\_mm." in (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")


def test_caveats_and_different_settings_are_noted(tmp_path):
    old = write_evaluation(tmp_path / "old", rows_of(*OLD), settings={"roi": "fov"}, data={"n_training_samples": 2})
    new = write_evaluation(
        tmp_path / "new",
        [{**each, "iou": 0.5} for each in rows_of(*NEW)],
        threshold=0.35,
        settings={"batch_size": 8},
        model={"name": "new", "kind": "fake", "fingerprint": "old", "step": 7},
    )
    result = compare([old, new], tmp_path / "out")

    assert result["different_settings"] == [
        {"setting": "threshold", "evaluation": "new", "reference": 0.5, "value": 0.35},
        {"setting": "roi", "evaluation": "new", "reference": "fov", "value": None},
    ]
    assert "<td" in (page := (tmp_path / "out" / "report.html").read_text(encoding="utf-8")) and "&#34;fov&#34;" in page
    assert result["notes"] == [
        "iou is not compared: it is missing in old.",
        "Settings that differ between old and new: 2 (threshold, roi); the report has their values.",
        "new has the same weights as old.",
        "The model of old was trained on 2 of the images.",
        "With 3 groups the intervals are rough and too narrow (docs/metrics.md).",
        "No corrected p-value can fall below 0.05 here (groups: 3, tests: 1); "
        "compare fewer metrics, or evaluate more groups.",
    ]


def test_picture_holds_thousands_of_groups(tmp_path):
    old, new = ([scored_row(f"{i}", value + i / 9000, group=f"p{i}") for i in range(3000)] for value in (0.5, 0.6))
    compare(pair(tmp_path, old, new), tmp_path / "out")
    with Image.open(tmp_path / "out" / "comparison.png") as picture:
        assert len(picture.getcolors(1 << 20)) > 10


def test_images_without_a_group_are_noted(tmp_path):
    old, new = ([{**each, "group": each["id"]} for each in rows_of(*dice)] for dice in (OLD, NEW))
    assert "its own group" in compare(pair(tmp_path, old, new), tmp_path / "out")["notes"][0]


def test_one_group_has_no_interval_and_no_test(tmp_path):
    old, new = ([{**each, "group": "one"} for each in rows_of(*dice)] for dice in (OLD, NEW))
    result = compare(pair(tmp_path, old, new), tmp_path / "out")
    assert result["comparisons"][0]["ci95"] is None and result["comparisons"][0]["p"] is None
    assert [note for note in result["notes"] if "interval" in note] == [
        "With one group there are no intervals and no tests; use data of several groups (patients)."
    ]


def test_many_prompts_are_compared_together_only(tmp_path):
    old, new = ([scored_row(f"a{i}", value, prompt=f"p{i}") for i in range(51)] for value in (0.5, 0.6))
    result = compare(pair(tmp_path, old, new), tmp_path / "out")

    assert [each["prompt"] for each in result["comparisons"]] == [None]
    assert any("51 different prompts" in note for note in result["notes"])


def test_markup_in_names_is_escaped_in_markdown(tmp_path):
    attack = "<b>$x_1$|y"
    old, new = (
        write_evaluation(tmp_path / f"{name}{attack}", rows_of(*dice, prompt=attack))
        for name, dice in (("old", OLD), ("新", NEW))
    )
    compare([old, new], tmp_path / "out")

    text = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert "\\<b\\>$x\\_1$\\|y" in text and "<b>" not in text.replace("\\<b\\>", "")


def test_differences_of_the_samples_are_refused_and_listed(tmp_path):
    rows = rows_of(*NEW)
    rows[0]["id"], rows[1]["prompt"] = "z1", "catheter"
    rows += [scored_row(f"m{i}", 0.5) for i in range(12)]
    rows[2]["group"] = "q"

    with raises_code(DataError, "different_samples") as refused:
        compare(pair(tmp_path, new=rows, data={"fingerprint": "ffff"}), tmp_path / "out")
    assert str(refused.value).partition(": ")[2] == (
        "2 only in old: a1 (vessel), a2 (vessel); "
        "14 only in new: z1 (vessel), a2 (catheter), m0 (vessel), m1 (vessel), m2 (vessel), m3 (vessel), "
        "m4 (vessel), m5 (vessel), m6 (vessel), m7 (vessel) and 4 more; "
        "1 in different groups (evaluate with the same --group): b1 (vessel) in b and q; "
        "images, masks or prompts differ: data fingerprints d4e5 and ffff"
    )
    assert not (tmp_path / "out").exists()


def test_data_without_a_fingerprint_cannot_be_known_to_be_the_same(tmp_path):
    with raises_code(DataError, "different_samples", "new has no data fingerprint"):
        compare(pair(tmp_path, data={"fingerprint": None}), tmp_path / "out")


def test_nothing_in_common_is_refused(tmp_path):
    old, _ = pair(tmp_path)
    failed = write_evaluation(tmp_path / "failed", rows_of(*[None] * 6, status="failed"))
    others = [{key: value for key, value in each.items() if key != "dice"} | {"iou": 1} for each in rows_of(*NEW)]
    metrics = {"mean": {"iou": 1.0}}
    apart = write_evaluation(tmp_path / "apart", [{**each, "dice": None} for each in others], **metrics)

    undefined = write_evaluation(tmp_path / "undefined", rows_of(*[None] * 6))

    for other, word in ((undefined, "dice"), (failed, "6 predictions"), (apart, "no metric")):
        with raises_code(DataError, "nothing_to_compare", word):
            compare([old, other], tmp_path / "out")


def test_wrong_arguments_are_refused(tmp_path):
    old, new = pair(tmp_path)

    with raises_code(SettingError, "bad_value"):
        compare([old], tmp_path / "out")
    with raises_code(SettingError, "bad_value", str(old)):
        compare([old, new, tmp_path / "new" / ".." / "old"], tmp_path / "out")
    with raises_code(SettingError, "unknown_metric", "recall", "dice"):
        compare([old, new], tmp_path / "out", only=["recall"])


def test_only_a_comparison_is_replaced(tmp_path):
    old, new = pair(tmp_path)
    compare([old, new], tmp_path / "out")
    before = (tmp_path / "out" / "comparison.json").read_bytes()
    compare([new, old], tmp_path / "out")
    assert (tmp_path / "out" / "comparison.json").read_bytes() != before

    (tmp_path / "file").touch()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "report.html").touch()
    for name, word in (("file", ""), ("new", "metrics.json"), ("odd", "comparison.json")):
        with raises_code(OutputError, "not_replaceable", word):
            compare([old, new], tmp_path / name)


def test_interrupted_comparison_leaves_the_old_one(tmp_path, monkeypatch):
    folders = pair(tmp_path)
    compare(folders, tmp_path / "out")
    before = (tmp_path / "out" / "comparison.json").read_bytes()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vesalius.scoring.compare.write_comparison", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compare(folders[::-1], tmp_path / "out")
    assert (tmp_path / "out" / "comparison.json").read_bytes() == before
    assert not list(tmp_path.glob(".*"))
