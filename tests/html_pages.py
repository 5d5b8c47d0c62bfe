"""HTML pages for tests: tags and text of a page, and its rendering in Chromium."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

ATTACK = '<script>alert("x")</script><img src=x onerror=y>'
"""A phrase, id or message that must stay text."""

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")

MEASURE = """
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement, style = frame.contentWindow.getComputedStyle;
    const words = page.querySelector("svg text"), bar = page.querySelector("svg rect");
    return {width: root.clientWidth, needed: root.scrollWidth, scripts: page.scripts.length,
      sections: page.querySelectorAll("section").length,
      broken: [...page.images].filter(each => each.complete && !each.naturalWidth).length,
      page: style(page.body).backgroundColor, ink: style(page.body).color,
      words: words && style(words).fill, bar: bar && style(bar).fill,
      bars: [...page.querySelectorAll("svg rect")].filter(each => each.getBoundingClientRect().height > 1).length,
      letters: [...page.querySelectorAll("svg text")].map(each => each.getBoundingClientRect().height)};
  });
  document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
"""


class Tags(HTMLParser):
    """All tags of a page with their attributes, and all text."""

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


def browse(*arguments: str) -> str:
    """The output of headless Chromium."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def measure_pages(
    pages: Sequence[Path], widths: Sequence[int], folder: Path, dark: bool = False
) -> list[list[dict[str, Any]]]:
    """For each page and each width in pixels: what `MEASURE` finds in Chromium."""
    flags = ["--blink-settings=preferredColorScheme=0"] if dark else []
    frames = [_frame(page, width) for page in pages for width in widths]
    found = _run(frames, MEASURE, folder, flags)
    return [found[i : i + len(widths)] for i in range(0, len(found), len(widths))]


def run_in_page(page: Path, script: str, folder: Path, width: int = 800) -> list[dict[str, Any]]:
    """What a script finds in Chromium; it reads the page in the only `iframe` and ends as `MEASURE` does."""
    return _run([_frame(page, width)], script, folder)


def _frame(page: Path, width: int) -> str:
    text = html.escape(page.read_text("utf-8"))
    return f'<iframe style="width:{width}px;height:800px;border:0" srcdoc="{text}"></iframe>'


def _run(frames: Sequence[str], script: str, folder: Path, flags: Sequence[str] = ()) -> list[dict[str, Any]]:
    wrapper = folder / "wrapper.html"
    wrapper.write_text(
        f'<meta charset="utf-8"><meta name="color-scheme" content="light dark"><body>{"".join(frames)}'
        f"<script>onload = () => {{{script}}}</script>",
        encoding="utf-8",
    )
    told = browse(*flags, "--dump-dom", wrapper.as_uri())
    found: list[dict[str, Any]] = json.loads(
        html.unescape(told[told.index("FOUND") + 5 : told.index("END", told.index("FOUND"))])
    )
    return found
