"""The report: complete without a network, safe with any id, and silent about nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vesalius.evaluation.overlap import METRICS
from vesalius.evaluation.statistics import summarise
from vesalius.scoring.report import BEST, ROWS_SHOWN, WORST, extremes, histogram, write_report


def row(index: int, dice: float | None, status: str = "ok", **changes: Any) -> dict[str, Any]:
    scores = dict.fromkeys(METRICS, dice)
    base = {"id": f"image_{index:03}", "group": f"p{index % 4}", "prompt": "blood vessel", "status": status}
    error = "cannot be read" if status == "failed" else None
    return {**base, "figure": None, **scores, "text": "", "error": error, **changes}


def metrics(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    prompts = dict.fromkeys(each["prompt"] for each in rows)
    return {
        "model": {"name": "tiny", "kind": "textseg", "fingerprint": "a1b2c3", "step": 400},
        "data": {"name": "arcade/test", "format": "sa2va_json", "fingerprint": "d4e5", "n_samples": len(rows)}
        | {"n_groups": 4, "n_training_samples": 0},
        "threshold": 0.35,
        **summarise(rows, METRICS),
        "prompts": {
            each: summarise([one for one in rows if one["prompt"] == each], METRICS) for each in prompts
        },
        "took_s": 12.34,
        "images_per_s": 3.456,
        "notes": ["no groups are stated: each image is its own group"],
        "settings": {"limit": None, "batch": 4},
        "versions": {"python": "3.11.7"},
        **changes,
    }


def report(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> str:
    return write_report(folder, metrics(rows, **changes), rows).read_text(encoding="utf-8")


class Tags(HTMLParser):
    """All tags with their attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def with_figures(folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    (folder / "figures").mkdir()
    for each in rows:
        each["figure"] = f"figures/{each['id']}.png"
        Image.new("RGB", (1200, 40), "navy").save(folder / each["figure"])
    return rows


def test_report_holds_the_numbers_and_where_they_come_from(tmp_path):
    text = Tags(report(tmp_path, [row(index, index / 10) for index in range(10)])).text

    for expected in ("tiny", "a1b2c3", "400", "arcade/test", "d4e5", "0.35", "0.450", "3.46", "3.11.7"):
        assert expected in text
    assert "each image is its own group" in text


def test_report_needs_no_other_file_and_no_network(tmp_path):
    rows = with_figures(tmp_path, [row(index, index / 12) for index in range(12)])
    page = Tags(report(tmp_path, rows))

    pictures = page.named("img")
    assert len(pictures) == WORST + BEST
    assert all(picture["src"].startswith("data:image/jpeg;base64,") for picture in pictures)
    assert not page.named("script") and not page.named("link")
    links = [link["href"] for link in page.named("a")]
    assert links and all(link.startswith(("figures/", "#")) for link in links)
    assert not re.search(r"url\(|@import|https?://", (tmp_path / "report.html").read_text(encoding="utf-8"))


def test_phone_gets_its_own_width(tmp_path):
    views = [
        meta for meta in Tags(report(tmp_path, [row(0, 0.5)])).named("meta") if meta.get("name") == "viewport"
    ]
    assert views[0]["content"] == "width=device-width, initial-scale=1"


def test_ids_prompts_and_errors_that_hold_html_stay_text(tmp_path):
    attack = '<script>alert("x")</script><img src=x onerror=y>'
    rows = with_figures(tmp_path, [row(0, 0.5, prompt=attack), row(1, 0.7, prompt='" onload="z')])
    rows.append(row(2, None, "failed", id="<b>bold</b>", error=attack, prompt="'><svg onload=q>"))
    page = Tags(report(tmp_path, rows, notes=[attack]))

    assert not page.named("script")
    assert all(set(picture) == {"src", "loading", "alt"} for picture in page.named("img"))
    assert not any("onload" in attributes or "onerror" in attributes for _, attributes in page.tags)
    assert attack in page.text and "<b>bold</b>" in page.text


def test_file_names_become_addresses(tmp_path):
    rows = with_figures(tmp_path, [row(0, 0.5, id="患者 1#50%?", prompt="冠状动脉血管")])
    page = Tags(report(tmp_path, rows))

    assert "figures/%E6%82%A3%E8%80%85%201%2350%25%3F.png" in [link["href"] for link in page.named("a")]
    assert "患者 1#50%?" in page.text and "冠状动脉血管" in page.text


def test_failures_are_told_first_and_listed_with_their_reason(tmp_path):
    rows = [row(0, 0.9), row(1, None, "failed", error="image_001.png: is cut short"), row(2, 0.0, "no_seg")]
    text = Tags(report(tmp_path, rows)).text

    assert text.index("1 of 3 answers failed") < text.index("Metrics")
    assert "image_001.png: is cut short" in text
    assert "no [SEG]" in text


def test_report_can_be_written_when_everything_failed(tmp_path):
    rows = [row(0, None, "failed")]
    text = Tags(report(tmp_path, rows, images_per_s=None)).text

    assert "1 of 1 answers failed" in text
    assert "no interval: fewer than 2 groups" in text


def test_prompts_have_a_table_when_there_are_several(tmp_path):
    one = report(tmp_path, [row(0, 0.5)])
    two = report(tmp_path, [row(0, 0.5), row(1, 0.7, prompt="catheter")])

    assert "By prompt" not in one and "By prompt" in two


def test_long_lists_say_what_they_leave_out(tmp_path):
    text = Tags(report(tmp_path, [row(index, 0.5) for index in range(ROWS_SHOWN + 5)])).text
    assert f"The worst {ROWS_SHOWN} of {ROWS_SHOWN + 5}; all are in samples.jsonl." in text


def test_worst_and_best_share_no_row_and_leave_failures_out():
    rows = [row(0, 0.2), row(1, None, "failed"), *(row(index, index / 10) for index in range(3, 10))]
    worst, best = extremes(rows)

    assert [each["dice"] for each in worst] == [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert [each["dice"] for each in best] == [0.9, 0.8]


def test_histogram_counts_both_ends():
    result = histogram([0.0, 0.04, 0.05, 0.999, 1.0])

    assert result["counts"] == [2, 1, *[0] * 16, 0, 2]
    assert (result["top"], result["mean"]) == (2, pytest.approx(0.4178))
    assert histogram([])["top"] == 1
