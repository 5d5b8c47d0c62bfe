"""Every HTML page is self-contained, safe with any text, and legible on a phone and in dark mode."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import jinja2
import numpy as np
import pytest
from PIL import Image
from tests.checks.datasets import write_broken
from tests.html_pages import ATTACK, Tags, measure_pages, needs_chromium, run_in_page
from tests.scoring.evaluations import awkward_comparison, awkward_report

from vesalius.checks.inspection import inspect
from vesalius.checks.report_page import write_page
from vesalius.pages import SCRIPT, as_data_url, render


def check_page(folder: Path) -> Path:
    """A dataset with every kind of picture, a phrase that holds HTML, and a phrase of 300 letters."""
    data = write_broken(folder, {"text": ["x" * 300]})
    return write_page(inspect(data, num_workers=0), folder / "out", num_workers=0)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "check": check_page,
    "evaluation": awkward_report,
    "comparison": awkward_comparison,
}
"""A page of each kind; its ids, phrases or messages hold `ATTACK` and very long words."""
SMALLEST_LETTERS = {"check": 9, "evaluation": 10, "comparison": 9}
"""Height of the letters in charts, in pixels, at any width."""
N_SECTIONS = {"check": 5, "evaluation": 12, "comparison": 0}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITERS.items()}


@pytest.mark.parametrize("name", WRITERS)
def test_a_page_needs_no_network_and_no_other_file(pages: dict[str, Path], name: str) -> None:
    text = pages[name].read_text(encoding="utf-8")
    page = Tags(text)
    assert page.named("img")
    assert all((picture["src"] or "").startswith("data:image/") for picture in page.named("img"))
    for link in page.named("a"):
        assert (link["href"] or "").startswith("#") or (pages[name].parent / str(link["href"])).exists()
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in text
    (viewport,) = (meta for meta in page.named("meta") if meta.get("name") == "viewport")
    assert viewport["content"] == "width=device-width, initial-scale=1"


@pytest.mark.parametrize("name", WRITERS)
def test_text_that_holds_html_stays_text(pages: dict[str, Path], name: str) -> None:
    page = Tags(pages[name].read_text(encoding="utf-8"))
    assert ATTACK in page.text
    assert len(page.named("script")) == 1 and not page.named("link")
    assert page.named("script") == [{}]  # the inline script of the package
    assert all(set(picture) <= {"src", "loading", "alt"} for picture in page.named("img"))
    assert not any(attribute.startswith("on") for _, attributes in page.tags for attribute in attributes)


@pytest.mark.parametrize("name", WRITERS)
def test_only_the_script_of_the_package_may_run(pages: dict[str, Path], name: str) -> None:
    text = pages[name].read_text(encoding="utf-8")
    script = text[text.index("<script>") + len("<script>") : text.index("</script>", text.index("<script>"))]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and script == SCRIPT.read_text(encoding="utf-8")


TABLE = """<div class="wide"><table class="sortable">
<thead><tr><th>id</th><th>value</th></tr></thead>
<tbody><tr><th scope="rowgroup" colspan="2">first</th></tr>{rows}</tbody><tbody>{rows}</tbody></table></div>"""
VALUES = {"a10": "0.500", "a9": "–", "b": "> 0.999", "c": "−1.5", "d": "1.000", "e": "< 0.001"}
SORT = """
  const page = document.querySelector("iframe").contentDocument, table = page.querySelector("table"), found = [];
  const heads = [...table.tHead.rows[0].cells], buttons = heads.map(head => head.querySelector("button"));
  for (const column of [1, 1, 0]) {
    buttons[column].focus();
    buttons[column].click();
    found.push({focused: page.activeElement === buttons[column], sorted: heads.map(head => head.getAttribute("aria-sort")),
      ids: [...table.tBodies].map(body => [...body.rows].map(row => row.cells[0].textContent))});
  }
  document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
"""


@needs_chromium
def test_a_table_is_sorted_by_its_headers(tmp_path: Path) -> None:
    rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in VALUES.items())
    (tmp_path / "a.html.jinja").write_text(
        f'{{% extends "page.html.jinja" %}}{{% block body %}}{TABLE.format(rows=rows)}{{% endblock %}}', "utf-8"
    )
    (tmp_path / "a.html").write_text(render(tmp_path / "a.html.jinja", {}), "utf-8")
    rising, falling, by_name = run_in_page(tmp_path / "a.html", SORT, tmp_path)

    order = ["c", "e", "a10", "b", "d"]
    assert rising["ids"] == [["first", *order, "a9"], [*order, "a9"]]
    assert falling["ids"] == [["first", *order[::-1], "a9"], [*order[::-1], "a9"]]
    assert by_name["ids"][1] == ["a9", "a10", "b", "c", "d", "e"]
    assert all(each["focused"] for each in (rising, falling, by_name))
    assert [each["sorted"] for each in (rising, falling, by_name)] == [
        [None, "ascending"],
        [None, "descending"],
        ["ascending", None],
    ]


VERDICT = """
  const page = document.querySelector("iframe").contentDocument, found = [];
  for (const table of page.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], column = heads.findIndex(head => head.textContent === "verdict");
    if (column < 0) continue;
    const box = table.closest(".wide").getBoundingClientRect();
    for (const row of table.tBodies[0].rows) {
      const cell = row.cells[column].getBoundingClientRect();
      found.push({inside: cell.left >= box.left && cell.right <= box.right, text: row.cells[column].textContent});
    }
  }
  document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
"""


@needs_chromium
def test_a_phone_shows_the_verdicts_of_a_comparison(pages: dict[str, Path], tmp_path: Path) -> None:
    cells = run_in_page(pages["comparison"], VERDICT, tmp_path, width=390)
    assert cells and all(cell["inside"] and cell["text"] for cell in cells)


@needs_chromium
def test_pages_fit_a_phone_and_follow_dark_mode(pages: dict[str, Path], tmp_path: Path) -> None:
    light, dark = (measure_pages(list(pages.values()), (390, 1200), tmp_path, dark=dark) for dark in (False, True))
    for name, by_width in zip(2 * [*WRITERS], (*light, *dark), strict=True):
        assert [each["width"] for each in by_width] == [390, 1200]
        for each in by_width:
            assert each["needed"] <= each["width"] and not each["broken"] and each["scripts"] == 1
            assert all(height >= SMALLEST_LETTERS[name] for height in each["letters"])
            assert each["sections"] == N_SECTIONS[name]
    for (bright, _), (dim, _) in zip(light, dark, strict=True):
        assert (bright["page"], bright["ink"]) == ("rgb(255, 255, 255)", "rgb(24, 24, 27)")
        assert dim["page"] == "rgb(24, 24, 27)"
        if bright["words"]:  # a page with charts
            assert bright["words"] in (bright["ink"], "rgb(95, 95, 104)") and dim["words"] != bright["words"]
            assert bright["bar"] != dim["bar"] and bright["bars"] == dim["bars"] > 0


def test_html_is_escaped_markdown_is_not_and_a_missing_value_raises(tmp_path: Path) -> None:
    (tmp_path / "a.html.jinja").write_text('{% extends "page.html.jinja" %}{% block body %}{{ x }}{% endblock %}')
    (tmp_path / "a.md.jinja").write_text("{{ x }}, {{ 2 | plural('image') }}, {{ 1 | twice }}")
    assert "<body>\n&lt;b&gt;<script>" in render(tmp_path / "a.html.jinja", {"x": "<b>"})
    assert render(tmp_path / "a.md.jinja", {"x": "<b>"}, twice=lambda n: 2 * n) == "<b>, images, 2"
    with pytest.raises(jinja2.UndefinedError):
        render(tmp_path / "a.html.jinja", {})


@pytest.mark.parametrize("format", ["jpeg", "png"])
def test_pictures_in_a_page_are_reduced_to_a_width(format: str) -> None:
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 50] = (213, 94, 0)
    coded = as_data_url(Image.fromarray(pixels), format=format).partition(f"data:image/{format};base64,")[2]  # type: ignore[arg-type]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(coded))), dtype=int)
    assert shown.shape == (40, 100, 3)
    assert np.abs(shown[:, 50] - (213, 94, 0)).max() < 40  # a line of one pixel keeps its color
    small = as_data_url(Image.fromarray(pixels), 20, format=format).partition(",")[2]  # type: ignore[arg-type]
    assert Image.open(io.BytesIO(base64.b64decode(small))).size == (20, 8)
