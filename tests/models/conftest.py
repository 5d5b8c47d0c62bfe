"""The segmenters that several tests share: those of the stored official numbers, and a small one."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Sam2VideoConfig, Sam2VideoModel

from vesalius.models.layout_mapping import to_bundle
from vesalius.models.pixels import normalize, resize_bicubic
from vesalius.models.presets import find_spec
from vesalius.models.sam_config import sam2


@pytest.fixture(scope="session")
def oracle(shared: Path) -> Path:
    """The folder of numbers that the official code gave."""
    return shared / "oracle"


@pytest.fixture
def official_sam(oracle: Path) -> Callable[[str], Sam2VideoModel]:
    """The segmenter of a family of the stored numbers, by its folder's name."""
    return lambda family: _official_sam(oracle / family / "model.safetensors")


@cache
def _official_sam(path: Path) -> Sam2VideoModel:
    config = sam2(
        image_size=1024,
        hiera={
            "hidden_size": 16,
            "num_attention_heads": 1,
            "blocks_per_stage": [1, 2, 2, 1],
            "embed_dim_per_stage": [16, 32, 64, 128],
            "num_attention_heads_per_stage": [1, 2, 4, 8],
            "window_size_per_stage": [8, 4, 16, 8],
            "global_attention_blocks": [4],
        },
        width=256,
        memory={"layers": 4, "mlp": 256, "fuser_layers": 2},
        decoder={"mlp_dim": 256, "num_attention_heads": 8},
    )
    weights = {
        name: w.float() for name, w in load_file(path).items() if name.startswith("grounding_encoder.")
    }
    # the names of the segmenter are the same in every family
    assemblies, dropped = to_bundle(
        find_spec("Sa2VA-1B"), {name: tuple(w.shape) for name, w in weights.items()}
    )
    assert dropped == {}
    sam = _make(config)
    sam.load_state_dict(
        {
            name.removeprefix("sam."): torch.cat(
                [weights[part.source][part.first : part.first + part.count] for part in assembly.rows]
            ).reshape(assembly.shape)
            for name, assembly in assemblies.items()
        }
    )
    return sam


@pytest.fixture
def square() -> Callable[[Path], torch.Tensor]:
    """float (1, 3, 1024, 1024) of an image file, as the segmenter takes it."""
    return lambda path: normalize(resize_bicubic(Image.open(path).convert("RGB"), (1024, 1024)))[None]


@pytest.fixture
def small_sam() -> Sam2VideoModel:
    """A segmenter of 128 x 128 pixels with random weights that make different masks of different prompts."""
    config = sam2(
        image_size=128,
        hiera={
            "hidden_size": 16,
            "num_attention_heads": 1,
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [16, 32, 64, 128],
            "num_attention_heads_per_stage": [1, 2, 4, 8],
            "window_size_per_stage": [8, 4, 8, 4],
            "global_attention_blocks": [3],
        },
        width=128,
        memory={"layers": 2, "mlp": 128, "fuser_layers": 1},
        decoder={"mlp_dim": 128, "num_attention_heads": 4},
    )
    torch.manual_seed(0)
    sam = _make(config)
    sam.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if parameter.ndim > 1:
                # PyTorch's own scale loses two thirds of the variance in each layer
                parameter.mul_(3**0.5)
            if name.startswith(("no_", "memory_temporal_")):
                parameter.normal_()
        # objects are there, so that pointers are their own
        sam.mask_decoder.pred_obj_score_head.proj_out.bias.add_(1)
    return sam


def _make(config: dict) -> Sam2VideoModel:
    return Sam2VideoModel(
        Sam2VideoConfig(**{key: config[key] for key in config if key != "model_type"})
    ).eval()
