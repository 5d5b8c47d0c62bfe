"""Vesalius: text-prompted segmentation of your own images.

The names below are the public API. Each is imported on first use, so `import vesalius` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vesalius.data.dataset import load_item, load_samples
    from vesalius.data.images import read_image
    from vesalius.errors import VesaliusError
    from vesalius.inference.predictor import Predictor
    from vesalius.jobs.opening import load_predictor
    from vesalius.mask_maps import LowRes
    from vesalius.scoring.evaluate import evaluate
    from vesalius.segmenter import ModelDescription, Segmenter
    from vesalius.training.calls import resume, train
    from vesalius.types import Item, Prediction, Sample

    __version__: str

_HOME = {
    "Item": "vesalius.types",
    "LowRes": "vesalius.mask_maps",
    "ModelDescription": "vesalius.segmenter",
    "Prediction": "vesalius.types",
    "Predictor": "vesalius.inference.predictor",
    "Sample": "vesalius.types",
    "Segmenter": "vesalius.segmenter",
    "VesaliusError": "vesalius.errors",
    "evaluate": "vesalius.scoring.evaluate",
    "load_item": "vesalius.data.dataset",
    "load_predictor": "vesalius.jobs.opening",
    "load_samples": "vesalius.data.dataset",
    "read_image": "vesalius.data.images",
    "resume": "vesalius.training.calls",
    "train": "vesalius.training.calls",
}

__all__ = [
    "Item",
    "LowRes",
    "ModelDescription",
    "Prediction",
    "Predictor",
    "Sample",
    "Segmenter",
    "VesaliusError",
    "evaluate",
    "load_item",
    "load_predictor",
    "load_samples",
    "read_image",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("vesalius")
    if name not in _HOME:
        raise AttributeError(f"module 'vesalius' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """The public names, and those that every module has."""
    return sorted([*__all__, "__version__", *(name for name in globals() if name.startswith("__"))])
