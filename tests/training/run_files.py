"""For the training tests: readers of run folders, and a smaller `tiny`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vesalius.models import presets
from vesalius.training import validation
from vesalius.training.settings import RunSettings

MakeSettings = Callable[..., RunSettings]


@contextmanager
def small_and_quick() -> Iterator[None]:
    """New `tiny` models use 256 x 256 pixels, and no curves are drawn, which would take as long as the training."""
    spec = presets.find_spec("tiny")
    side = spec.sam_size // 2
    vision = spec.sam["vision_config"]
    sam = spec.sam | {
        "image_size": side,
        "vision_config": vision
        | {
            "backbone_config": vision["backbone_config"] | {"image_size": [side, side]},
            "backbone_feature_sizes": [[side // stride] * 2 for stride in (4, 8, 16)],
        },
        "prompt_encoder_config": spec.sam["prompt_encoder_config"] | {"image_size": side},
        "memory_attention_rope_feat_sizes": [side // 16] * 2,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "tiny", lambda: spec.model_copy(update={"sam": sam}))
        patch.setattr(validation, "draw_curves", lambda *_: None)
        yield


def lines(run: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    """The lines of one of a run's logs."""
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def losses(run: Path) -> list[float]:
    """The loss of each step, from `log.jsonl`."""
    return [line["loss"] for line in lines(run)]


class StopAfter:
    """Callback `on_step` that raises KeyboardInterrupt, as Ctrl-C does, after the step following `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, line: dict[str, Any]) -> None:
        if line["step"] > self.step:
            raise KeyboardInterrupt
