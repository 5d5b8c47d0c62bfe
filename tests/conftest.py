"""Fixtures shared by several test folders, and settings of the test session."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from vesalius.inference.official import OfficialPredictor

# two test processes share two cores: more threads would only slow each other down
os.environ.setdefault("OMP_NUM_THREADS", "1")
# the stored numbers were computed on a CPU
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# the language does not depend on the locale
os.environ["VESALIUS_LANG"] = "en"

# tests keep their fingerprint cache out of the home folder
CACHE = tempfile.TemporaryDirectory(prefix="vesalius-test-cache-")
os.environ["XDG_CACHE_HOME"] = CACHE.name

# no deadline, because the machine may be busy; the same examples each time, so that a failure can be repeated
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real datasets beside the repository; the test is skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"real datasets are not at {SHARED / 'data'}")
    return SHARED.resolve()


@pytest.fixture(scope="session")
def small_predictor() -> OfficialPredictor:
    """A predictor with random weights: the language model of `tiny` and a SAM 2 of 128 x 128 pixels.

    Its object scores are high, so that every prompt gets a mask, and masks of different prompts differ.
    """
    import torch

    from vesalius.inference.official import OfficialPredictor
    from vesalius.models.cards import Card
    from vesalius.models.checkpoint import OpenedModel
    from vesalius.models.families.tokenizers import byte_tokenizer
    from vesalius.models.presets import find_spec
    from vesalius.models.processor import Processor
    from vesalius.models.sam_config import sam2
    from vesalius.models.textseg import build

    sam = sam2(
        128,
        hidden=16,
        heads=1,
        blocks=(1, 1, 2, 1),
        windows=(8, 4, 8, 4),
        global_blocks=(3,),
        width=128,
        memory=(1, 128, 1),
        decoder=(128, 4),
    )
    spec = find_spec("tiny").changed(name="small", sam=sam)
    processor = Processor(spec, byte_tokenizer())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(spec, processor.seg_id).eval()
        with torch.no_grad():
            model.sam.mask_decoder.pred_obj_score_head.proj_out.bias.add_(100)
            for name, parameter in model.sam.named_parameters():
                if name.startswith(("no_", "memory_temporal_")):
                    parameter.normal_()
            for layer in model.sam.memory_attention.layers:
                layer.cross_attn_image.o_proj.weight.mul_(10)
    return OfficialPredictor(OpenedModel(model, processor, Card(spec=spec)), answer="force", batch_size=2)
