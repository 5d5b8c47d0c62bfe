"""The curves of a run as one picture: losses, learning rate and validation over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vesalius.files import replacing


def draw_curves(
    steps: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Write a PNG with three panels; without validation the third stays empty and says so."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    losses, rate, scores = figure.subplots(1, 3)
    at = [line["step"] for line in steps]
    for name in ("loss", "loss_mask", "loss_dice", "loss_text"):
        losses.plot(at, [line[name] for line in steps], label=name, linewidth=2 if name == "loss" else 1)
    losses.set(title="training loss", xlabel="step", yscale="log")
    losses.legend()
    rate.plot(at, [line["lr"] for line in steps])
    rate.set(title="learning rate", xlabel="step")
    for name in ("dice", "iou", "precision", "recall", "seg_rate"):
        points = [(line["step"], line[name]) for line in validations if line.get(name) is not None]
        if points:
            scores.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    scores.set(title="validation" if validations else "no validation data", xlabel="step", ylim=(0, 1))
    if validations:
        scores.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
