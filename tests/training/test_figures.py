"""Training curves for any loss names, and with missing values."""

from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from vesalius.training import figures
from vesalius.training.figures import draw_curves

STEPS = [
    {"step": i + 1, "loss": 1 / (i + 1), "loss_deep": 0.5, "loss_focal": None, "lr": 1e-4, "grad_norm": 1.0 + i % 3}
    for i in range(60)
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.figure.Figure]:
    """The matplotlib figures made in the test."""
    made: list[Any] = []

    def remember(*given: Any, **more: Any) -> matplotlib.figure.Figure:
        made.append(matplotlib.figure.Figure(*given, **more))
        return made[-1]

    monkeypatch.setattr(figures, "Figure", remember)
    return made


def texts(figure: matplotlib.figure.Figure) -> list[str]:
    legends = [axes.get_legend() for axes in figure.axes]
    named = [text.get_text() for legend in legends if legend for text in legend.get_texts()]
    return named + [axes.get_title() for axes in figure.axes]


def test_every_loss_and_metric_has_a_curve(tmp_path: Path, drawn: list[Any]) -> None:
    validations = [{"step": 30 * i, "dice": 0.2 * i, "hd95_px": 9.0 - i, "seg_rate": 1.0} for i in range(3)]
    draw_curves(STEPS, validations, tmp_path / "curves.png", "hd95_px")
    shown = texts(drawn[0])
    assert {"deep", "Dice", "HD95 (right)", "[SEG] rate", "learning rate"} <= set(shown)
    assert "focal" not in shown, "a loss without any value"
    assert "validation: best HD95 7 at step 60" in shown
    assert np.asarray(Image.open(tmp_path / "curves.png").convert("L")).std() > 10


def test_a_run_without_validation_says_so(tmp_path: Path, drawn: list[Any]) -> None:
    draw_curves(STEPS[:1], [], tmp_path / "curves.png")
    assert "validation: no data" in texts(drawn[0])
    assert (tmp_path / "curves.png").is_file()
