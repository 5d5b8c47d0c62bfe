"""SAM 2 models shared by several tests: those with stored official outputs, and a small one."""

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
from vesalius.models.sam_config import read_sam, sam2


@pytest.fixture(scope="session")
def oracle(shared: Path) -> Path:
    """Folder with the results of the official code."""
    return shared / "oracle"


@pytest.fixture
def official_sam(oracle: Path) -> Callable[[str], Sam2VideoModel]:
    """Returns the segmenter of a stored official model by the name of its folder."""
    return lambda family: _official_sam(oracle / family / "model.safetensors")


@cache
def _official_sam(path: Path) -> Sam2VideoModel:
    weights = {name: w.float() for name, w in load_file(path).items() if name.startswith("grounding_encoder.")}
    shapes = {name: tuple(w.shape) for name, w in weights.items()}
    # the names of the segmenter are the same in every family
    assemblies, dropped = to_bundle(find_spec("Sa2VA-1B"), shapes)
    assert dropped == {}
    sam = _make(read_sam(shapes, path.parent))
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
    """Reads an image file as float (1, 3, 1024, 1024), the input of the segmenter."""
    return lambda path: normalize(resize_bicubic(Image.open(path).convert("RGB"), (1024, 1024)))[None]


@pytest.fixture
def small_sam() -> Sam2VideoModel:
    """A segmenter of 128 x 128 pixels with random weights that gives different masks for different prompts."""
    config = sam2(
        128,
        hidden=16,
        heads=1,
        blocks=(1, 1, 2, 1),
        windows=(8, 4, 8, 4),
        global_blocks=(3,),
        width=128,
        memory=(2, 128, 1),
        decoder=(128, 4),
    )
    torch.manual_seed(0)
    sam = _make(config)
    sam.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if parameter.ndim > 1:
                # PyTorch's own initialization loses two thirds of the variance in each layer
                parameter.mul_(3**0.5)
            if name.startswith(("no_", "memory_temporal_")):
                parameter.normal_()
        # objects are present, so that they have their own pointers
        sam.mask_decoder.pred_obj_score_head.proj_out.bias.add_(1)
    return sam


def _make(config: dict) -> Sam2VideoModel:
    return Sam2VideoModel(Sam2VideoConfig(**{key: config[key] for key in config if key != "model_type"})).eval()
