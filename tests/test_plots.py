"""Charts: positions of the marks, and text descriptions."""

from __future__ import annotations

import re

import pytest

from vesalius.plots import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Plot, histogram, ticks_to


def test_data_ranges_span_the_plot_area() -> None:
    plot = Plot((0, 10), (0, 2), height=100)
    assert plot.at(0, 0) == (LEFT, TOP + 100)
    assert plot.at(10, 2) == (WIDTH - RIGHT, TOP)
    assert f'viewBox="0 0 {WIDTH} {TOP + 100 + BOTTOM}"' in plot.svg("words")


def test_markup_in_texts_is_escaped() -> None:
    plot = Plot((0, 1), (0, 1))
    plot.text(0, 0, "<b>&")
    plot.bar((0, 1), (0, 1), "#000000", "<script>")
    drawing = plot.svg('"><script>')
    assert "&lt;b&gt;&amp;" in drawing and "<script>" not in drawing
    assert 'aria-label="&#34;&gt;&lt;script&gt;"' in drawing


@pytest.mark.parametrize(("most", "last", "n"), [(0.3, 1, 6), (1, 1, 6), (7, 8, 5), (30, 30, 4), (176.2, 200, 5)])
def test_ticks_end_at_or_slightly_above_the_largest_value(most: float, last: float, n: int) -> None:
    ticks = ticks_to(most)
    assert ticks[0] == (0, "0") and ticks[-1][0] == pytest.approx(last) and len(ticks) == n


def test_a_histogram_counts_every_value_once() -> None:
    drawing = histogram([0, 3, 3, 10], "width, px", ticks_to(10), of="masks", written=lambda value: f"{value:.1f}")
    tips = [int(tip.split(": ")[1]) for tip in re.findall("<title>(.*?)</title>", drawing)]
    assert sum(tips) == 4 and max(tips) == 2
    assert "Histogram of width, px of 4 masks: mean 4.0, median 3.0, half of them between 2.2 and 4.8" in drawing
    assert "width, px: no values" in histogram([], "width, px", ticks_to(1), of="masks", written=str)
