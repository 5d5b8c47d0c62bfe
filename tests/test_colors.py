"""Colors of phrases: distinct, stable, visible on angiograms and retinas, and distinguishable for color-blind readers."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab
from tests.test_visualization import DEFICIENCIES, _lab, _linear

from vesalius.colors import FN_COLOR, FP_COLOR, PHRASE_COLORS, TP_COLOR, as_css, phrase_colors
from vesalius.synth.series import draw


@pytest.mark.parametrize("n", [0, 1, 8, 9, 60])
def test_each_phrase_has_its_own_color(n):
    phrases = [f"phrase {i}" for i in range(n)]
    colors = phrase_colors([*phrases, *phrases[::-1]])
    assert list(colors) == phrases and len(set(colors.values())) == n
    assert not {TP_COLOR, FP_COLOR, FN_COLOR} & set(colors.values())
    assert colors.items() <= phrase_colors([*phrases, "one more"]).items()


@pytest.mark.parametrize("kind", ["coronary", "retina"])
def test_colors_are_visible_on_synthetic_images(kind):
    pixels = np.concatenate([draw(3, i, 128, kind=kind).frames[0][::5, ::5].reshape(-1, 3) for i in range(3)])
    background = rgb2lab(pixels / 255)
    for color in PHRASE_COLORS:
        distance = deltaE_ciede2000(rgb2lab(np.array([[color]]) / 255)[0], background)
        assert np.percentile(distance, 10) > 20, color  # 2.3 is a just noticeable difference


@pytest.mark.parametrize("kind", ["normal", "protanopia", "deuteranopia"])
def test_colors_differ_for_colorblind_readers(kind):
    matrix = np.array(DEFICIENCIES.get(kind, np.eye(3)))
    seen = [_lab(matrix @ _linear(color)) for color in PHRASE_COLORS]
    assert min(float(deltaE_ciede2000(one, two)) for one, two in combinations(seen, 2)) > 9


def test_css():
    assert as_css((0, 225, 255)) == "#00e1ff"
