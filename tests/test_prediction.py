"""A prediction in Python: repr, files, overlay, figure, and its picture in a notebook."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.codes import raises_code

from vesalius.colors import PHRASE_COLORS
from vesalius.errors import OutputError, SettingError
from vesalius.inference.baselines import FrangiFilter
from vesalius.mask_maps import Full, Stored
from vesalius.notebook import LONGEST_SIDE
from vesalius.types import Prediction

SIZE = (40, 60)
MASK = np.zeros(SIZE, bool)
MASK[10:20, 5:50] = True
IMAGE = np.full((*SIZE, 3), 90, np.uint8)


def predicted(**changes: object) -> Prediction:
    maps = Full(np.where(MASK, 3, -3).astype(np.float32)[None])
    return Prediction(**({"id": "frame", "prompt": "血管", "status": "ok", "size": SIZE, "maps": maps} | changes))


FAILED = Prediction.failure("frame", "vessel", SIZE, "out of memory")
NO_SEG = Prediction("frame", "vessel", "no_seg", SIZE)


def test_repr_is_one_short_line_with_the_facts() -> None:
    shown = repr(predicted())
    for fact in ("血管", "frame", "40 x 60", "ok", "450 px", "18.8%"):
        assert fact in shown
    assert "no_seg" in repr(NO_SEG)
    assert "0 px" in repr(NO_SEG)
    assert "out of memory" in repr(FAILED)
    assert predicted().area_px == 450


def test_mask_is_saved_as_png_and_probabilities_as_npz(tmp_path: Path) -> None:
    prediction = predicted()
    path = prediction.save(str(tmp_path / "new" / "a.PNG"))
    saved = Image.open(path)
    assert saved.mode == "L"
    np.testing.assert_array_equal(np.asarray(saved), MASK * 255)
    with np.load(prediction.save(tmp_path / "a.npz")) as stored:
        np.testing.assert_array_equal(stored["probabilities"], prediction.probabilities)
    NO_SEG.save(path)
    assert not np.asarray(Image.open(path)).any()
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["a.PNG", "a.npz", "new"]


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    for name in ("a.jpg", "a", ".png"):
        with raises_code(SettingError, "bad_value"):
            predicted().save(tmp_path / name)
    with raises_code(SettingError, "bad_value"):
        predicted().save(3)
    with raises_code(SettingError, "prediction_failed", "out of memory"):
        FAILED.save(tmp_path / "a.png")
    (tmp_path / "file").touch()
    with raises_code(OutputError, "write_failed"):
        predicted().save(tmp_path / "file" / "a.png")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_overlay_shows_the_mask_on_the_image() -> None:
    drawn = predicted().overlay(IMAGE)
    assert drawn.size == SIZE[::-1]
    changed = (np.asarray(drawn) != IMAGE).any(axis=2)
    assert changed[MASK].all()
    assert not changed[30:].any()
    np.testing.assert_array_equal(np.asarray(NO_SEG.overlay(Image.fromarray(IMAGE))), IMAGE)


def test_prompts_of_one_call_have_different_colors() -> None:
    predictions = FrangiFilter(threshold=0.01)(IMAGE, ["artery", "vein"])
    assert [each.color for each in predictions] == list(PHRASE_COLORS[:2])
    drawn = np.asarray(predicted(color=PHRASE_COLORS[1]).overlay(IMAGE))
    assert PHRASE_COLORS[1] in {tuple(pixel) for pixel in drawn.reshape(-1, 3).tolist()}


def test_overlay_needs_an_image_of_the_same_size() -> None:
    with raises_code(SettingError, "no_image"):
        predicted().overlay()
    with raises_code(SettingError, "size_mismatch", "20 x 60"):
        predicted().overlay(IMAGE[:20])
    for wrong in ("frame.png", 3):
        with raises_code(SettingError, "bad_value"):
            predicted().overlay(wrong)
    with raises_code(SettingError, "prediction_failed"):
        FAILED.overlay(IMAGE)


def test_a_called_predictor_remembers_where_the_image_is(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(IMAGE).save(path)
    for image in (path, IMAGE, Image.fromarray(IMAGE), path.read_bytes()):
        (prediction,) = FrangiFilter()([image], "vessel")
        np.testing.assert_array_equal(prediction.read_image(), IMAGE)
        assert prediction.overlay().size == SIZE[::-1]


def test_figure_has_overlay_and_probabilities_and_leaves_pyplot_alone(tmp_path: Path) -> None:
    figure = predicted().plot(IMAGE)
    assert len(figure.axes) == 3  # with the color bar
    assert figure._repr_png_().startswith(b"\x89PNG")
    stored = predicted(maps=Stored(MASK))
    assert len(stored.plot(IMAGE).axes) == 1
    code = (
        "import sys, numpy as np\nfrom vesalius import Prediction\n"
        "Prediction('a', 'p', 'no_seg', (9, 9)).plot(np.zeros((9, 9), np.uint8)).savefig(sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("size", [(40, 60), (2000, 1000)])
def test_notebook_shows_a_small_png(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    prediction = Prediction("a", "vessel", "no_seg", size, read_image=lambda: image)
    for each in (prediction, Prediction("a", "vessel", "no_seg", size)):
        shown = Image.open(io.BytesIO(each._repr_png_()))
        assert max(shown.size) <= LONGEST_SIDE
    assert FAILED._repr_png_() is None
