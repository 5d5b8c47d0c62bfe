"""Report of an evaluation: self-contained, safe with any id, and complete."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.html_pages import Tags, browse, needs_chromium
from tests.scoring.evaluations import NAMES, awkward_report, metrics, row, with_figures

from vesalius.evaluation.metrics import METRICS
from vesalius.scoring import charts
from vesalius.scoring.examples import PHRASES_SHOWN, choose_examples
from vesalius.scoring.report import BEST, GROUPS_SHOWN, MEDIAN, ROWS_SHOWN, WORST, sections, write_report
from vesalius.scoring.tables import by_kind, number, title


def report(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> str:
    return write_report(folder, metrics(rows, **changes), rows).read_text(encoding="utf-8")


def test_report_holds_numbers_and_provenance(tmp_path):
    text = Tags(report(tmp_path, [row(index, index / 10) for index in range(10)])).text

    for expected in ("tiny", "a1b2c3", "400", "arcade/test", "d4e5", "0.35", "0.450", "3.46", "3.11.7"):
        assert expected in text
    assert "each image is its own group" in text


def test_file_names_become_addresses(tmp_path):
    rows = with_figures(tmp_path, [row(0, 0.5, id="患者 1#50%?", prompt="冠状动脉血管")])
    page = Tags(report(tmp_path, rows))

    assert "figures/%E6%82%A3%E8%80%85%201%2350%25%3F.png" in [link["href"] for link in page.named("a")]
    assert "患者 1#50%?" in page.text and "冠状动脉血管" in page.text


def test_failures_come_first_with_their_reasons(tmp_path):
    rows = [row(0, 0.9), row(1, None, "failed", error="image_001.png: is cut short"), row(2, 0.0, "no_seg")]
    text = Tags(report(tmp_path, rows)).text

    assert text.index("1 of 3 predictions failed") < text.index("Metrics")
    assert "image_001.png: is cut short" in text
    assert "no [SEG]" in text


def test_report_can_be_written_when_everything_failed(tmp_path):
    rows = [row(0, None, "failed")]
    text = Tags(report(tmp_path, rows, images_per_s=None)).text

    assert "1 of 1 predictions failed" in text
    assert "no value" in text and text.count("No prediction has a score.") == 4
    assert "No prediction has a score." in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_one_group_has_no_interval_and_says_why(tmp_path):
    assert "no interval: fewer than 2 groups" in Tags(report(tmp_path, [row(0, 0.5)])).text


def test_prompts_have_a_table_when_there_are_several(tmp_path):
    one = report(tmp_path, [row(0, 0.5)])
    prompts = ("blood vessel", "catheter", "冠状动脉血管")
    three = report(tmp_path, [row(index, 0.5, prompt=prompt) for index, prompt in enumerate(prompts)])

    assert "By prompt" not in one and "By prompt" in three
    assert all(prompt in Tags(three).text for prompt in prompts)
    assert "| 冠状动脉血管 | 1 | 0 | 0 | 0.500 |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_unknown_phrases_are_marked_in_both_reports(tmp_path):
    rows = [row(index, 0.5, prompt=prompt) for index, prompt in enumerate(("blood vessel", "unicorn"))]
    text = " ".join(Tags(report(tmp_path, rows, unknown_phrases={"unicorn": 1})).text.split())

    assert "unicorn unknown phrase" in text and "blood vessel unknown" not in text
    assert "| unicorn (unknown phrase) |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_long_lists_say_what_they_leave_out(tmp_path):
    rows = [row(index, 0.5, group=f"p{index:03}") for index in range(ROWS_SHOWN + 5)]
    text = Tags(report(tmp_path, rows)).text

    assert f"The worst {ROWS_SHOWN} of {ROWS_SHOWN + 5}." in text
    assert f"and {ROWS_SHOWN + 5 - GROUPS_SHOWN} more groups." in text
    assert len(read_csv(tmp_path / "groups.csv")) == len(read_csv(tmp_path / "samples.csv")) == ROWS_SHOWN + 5


def test_every_section_is_there_in_order_in_both_reports(tmp_path):
    page = report(tmp_path, [row(index, index / 40, prompt=f"prompt {index % 2}") for index in range(40)])
    order = "examples prompts coverage headline metrics distributions widths groups calibration cases empty settings"

    assert [each["id"] for each in Tags(page).named("section")] == order.split()
    told = re.findall("^## (.*)$", (tmp_path / "report.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert told == [
        "By prompt",
        "Metrics",
        "By group, worst first",
        "Calibration and thresholds",
        "Cases by Dice",
        "Empty masks",
        "Settings and provenance",
    ]


def test_every_metric_has_its_row_with_direction_interval_and_count(tmp_path):
    rows = [row(index, index / 10) for index in range(10)]
    rows[3]["hd95_px"] = None
    page = report(tmp_path, rows)

    for name in NAMES:
        assert f"<tr><td>{title(name)}</td>" in page
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page[page.index("<tr><td>HD95, px</td>") :])[:7]
    assert cells[1] == "0.467" and cells[3:6] == ["↓ lower", "0.467", "1"]
    assert "HD95, mm" not in page


def test_kinds_hold_every_metric_once():
    kinds = by_kind(METRICS)

    assert [kind for kind, _ in kinds] == ["Overlap", "Lines and topology", "Distances between boundaries"]
    assert [name for _, part in kinds for name, _ in part] == list(METRICS)
    assert [kind for kind, _ in by_kind(["nsd_1px"])] == ["Distances between boundaries"]


def test_numbers_never_look_perfect_when_they_are_not():
    assert [number(value) for value in (0.99996, 1.0, 0.0004, 0.0)] == ["> 0.999", "1.000", "< 0.001", "0.000"]


def test_settings_show_threshold_origin_and_near_copies_of_training_images(tmp_path):
    text = " ".join(Tags(report(tmp_path, [row(0, 0.5)])).text.split())

    assert "0.35 · how: tuned, metric: dice" in text
    assert "near-duplicates: 1 (twin_007)" in text


def test_empty_masks_are_counted_by_what_they_mean(tmp_path):
    page = report(tmp_path, [row(0, 0.5)])

    for count, meaning in ((34, "its metrics"), (33, "total miss"), (32, "false alarm"), (31, "correct")):
        assert re.search(rf"<td>{count}</td><td class=\"text\">{meaning}", page)
    text = Tags(page).text
    assert re.search(r"Total misses [^:]*: 33\.", text) and re.search(r"False alarms [^:]*: 32\.", text)


def test_better_threshold_is_mentioned_with_a_warning(tmp_path):
    far = report(tmp_path, [row(0, 0.5)], threshold=0.5)
    assert (
        "At a threshold of 0.30 the mean Dice would be 0.600" in far and "tune the threshold on validation data" in far
    )
    assert "At a threshold of 0.30" in (tmp_path / "report.md").read_text(encoding="utf-8")
    near = report(tmp_path, [row(0, 0.5)], threshold=0.31)
    assert "At a threshold of" not in near


def test_without_probabilities_there_is_a_sentence_and_no_chart(tmp_path):
    page = report(tmp_path, [row(0, 0.5)], calibration=None)

    assert "have no probabilities" in page and "Reliability diagram" not in page
    assert "have no probabilities" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_every_chart_has_a_text_alternative(tmp_path):
    rows = [row(index, index / 10) for index in range(11)]
    drawings = Tags(report(tmp_path, rows)).named("svg")
    words = [drawing["aria-label"] or "" for drawing in drawings]

    assert all(drawing["role"] == "img" for drawing in drawings)
    assert words[0] == (
        "Histogram of Dice of 11 predictions: mean 0.500, median 0.500, half of them between 0.250 and 0.750"
    )
    assert any(said.startswith("Skeleton recall to 2 px: 0.500 (") for said in words)
    assert any("Dice is highest at 0.30 with 0.600" in said for said in words)
    assert any("predicted 0.95, observed 0.90" in said for said in words)


def test_figures_of_the_cases_are_embedded(tmp_path):
    rows = with_figures(tmp_path, [row(index, index / 32) for index in range(32)])
    pictures = Tags(report(tmp_path, rows)).named("img")
    assert len(pictures) == 3 + WORST + MEDIAN + BEST  # three examples
    assert all(picture["src"].startswith("data:image/jpeg;base64,") for picture in pictures)


def test_a_report_opens_with_one_sentence_and_the_worst_median_and_best_of_each_phrase(tmp_path):
    rows = [row(index, index / 20, prompt=("vein", "artery")[index % 2]) for index in range(20)]
    text = " ".join(Tags(report(tmp_path, with_figures(tmp_path, rows))).text.split())

    assert "Mean Dice 0.475 (95 % CI" in text and "over 20 predictions" in text
    assert "highest for “artery” (0.500), lowest for “vein” (0.450)." in text
    opening = text[: text.index("By prompt")]
    for phrase, worst, median, best in (("vein", 0, 10, 18), ("artery", 1, 11, 19)):
        shown = opening[opening.index(f"{phrase} Worst") :]
        assert re.match(
            rf"{phrase} Worst: .*image_{worst:03}.* Median: .*image_{median:03}.* Best: .*image_{best:03}", shown
        )


def test_examples_of_many_phrases_are_those_of_the_lowest_dice():
    rows = [row(index, index / 40, prompt=f"phrase {9 - index % 10}") for index in range(40)]
    assert [phrase for phrase, _ in choose_examples(rows)] == [f"phrase {9 - k}" for k in range(PHRASES_SHOWN)]
    few = choose_examples([row(0, 0.2), row(1, 0.4), row(2, None, "failed"), row(3, 0.3, prompt="vein")])
    assert [[(label, each["dice"]) for label, each in cases] for _, cases in few] == [
        [("Worst", 0.2), ("Best", 0.4)],
        [("Only prediction", 0.3)],
    ]


def test_cases_are_worst_median_and_best_without_overlap():
    rows = [row(0, None, "failed"), *(row(index, index / 100) for index in range(1, 41))]
    shown = [(name, [each["id"][-2:] for each in its]) for name, its in sections(rows)]

    assert shown == [
        ("Worst 12", [f"{index:02}" for index in range(1, 13)]),
        ("Median 4", ["19", "20", "21", "22"]),
        ("Best 4", ["40", "39", "38", "37"]),
    ]


@pytest.mark.parametrize("count", range(30))
def test_cases_of_few_rows_show_none_twice(count):
    shown = [each["id"] for _, its in sections([row(index, index / 30) for index in range(count)]) for each in its]

    assert len(shown) == len(set(shown))
    assert len(shown) == count if count <= WORST else len(shown) > WORST - 1


def test_histogram_bars_hold_every_value_and_both_ends():
    drawing = charts.histogram([0.0, 0.04, 0.06, 0.999, 1.0], "dice")
    tips = re.findall(r"<title>(.*?)</title>", drawing)

    assert tips == ["0.000 to 0.050: 2", "0.050 to 0.100: 1", "0.950 to 1.000: 2"]
    assert "no values" in charts.histogram([], "hd95_px")
    assert (
        sum(
            int(tip.split(": ")[1])
            for tip in re.findall(r"<title>(.*?)</title>", charts.histogram([0, 3, 176.2], "hd95_px"))
        )
        == 3
    )


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_samples_csv_parses_back_to_the_rows(tmp_path):
    rows = [
        row(0, 1 / 3, prompt='冠状动脉, "left"', text="Sure,\nit is [SEG]."),
        row(1, 0.1 + 0.2, id="a;b"),
        row(2, None, "failed"),
    ]
    report(tmp_path, rows)
    read = read_csv(tmp_path / "samples.csv")

    assert [list(each) for each in read] == [list(each) for each in rows]
    for was, came in zip(rows, read, strict=True):
        for key, value in was.items():
            same = float(came[key]) if isinstance(value, float) else came[key]
            assert same == (value if isinstance(value, float) else "" if value is None else str(value))
    assert (tmp_path / "samples.csv").read_bytes().startswith(b"\xef\xbb\xbfid,")  # for Excel


def test_groups_csv_has_the_means_of_every_metric(tmp_path):
    rows = [row(index, value, group="p") for index, value in enumerate((0.2, 0.4, None))]
    rows[0]["hd95_px"] = None
    report(tmp_path, rows)
    (group,) = read_csv(tmp_path / "groups.csv")

    assert list(group) == ["group", "predictions", "failed", *NAMES]
    assert (group["group"], group["predictions"], group["failed"]) == ("p", "3", "1")
    assert float(group["iou"]) == pytest.approx(0.3) and float(group["hd95_px"]) == 0.4


def test_markdown_keeps_markup_in_ids_and_prompts_as_text(tmp_path):
    report(tmp_path, [row(0, 0.5, id="a|b_c", prompt="[x](http://y) <b>"), row(1, 0.4)])
    text = (tmp_path / "report.md").read_text(encoding="utf-8")

    assert "a\\|b\\_c" in text and "\\[x\\](http://y) \\<b\\>" in text


@needs_chromium
def test_browser_draws_the_page(tmp_path):
    page = awkward_report(tmp_path)
    browse(f"--screenshot={tmp_path / 'page.png'}", "--window-size=1200,3000", page.as_uri())
    shown = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))

    assert shown.shape == (3000, 1200, 3)
    blue = (shown == (0x00, 0x72, 0xB2)).all(axis=2)  # of bars
    red = (shown == (0xB3, 0x26, 0x1E)).all(axis=2)  # of the failure
    assert blue.sum() > 2000 and red[:600].sum() > 100
    assert (shown[:, -8:] == 255).all()
