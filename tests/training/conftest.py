"""What tests of training share."""

from __future__ import annotations

import pytest

from vesalius.models import presets


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """New weights of `tiny` see a quarter of its pixels: for runs of which no stored number depends on that."""
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
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: spec.model_copy(update={"sam": sam}))
