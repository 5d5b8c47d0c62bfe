"""`load_predictor`: open a model of any kind as a segmenter. This module imports torch only inside functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vesalius.calls import check_kind, checked, describe
from vesalius.errors import SettingError
from vesalius.models.reference import ModelRef, resolve_model
from vesalius.segmenter import AnswerMode

if TYPE_CHECKING:
    from vesalius.cleaning import Cleaning
    from vesalius.inference.baselines import Baseline
    from vesalius.inference.ensemble import Ensemble
    from vesalius.inference.feature_cache import CacheSettings
    from vesalius.inference.official import OfficialPredictor
    from vesalius.inference.tiles import TileSettings
    from vesalius.models.quantization import Quantized


@checked
def load_predictor(
    model: str | Path | ModelRef,
    *,
    answer: AnswerMode = "verify",
    threshold: float | None = None,
    tiles: TileSettings | None = None,
    cleaning: Cleaning | None = None,
    batch_size: int = 4,
    tta: bool = False,
    cache: CacheSettings | None = None,
    device: str | None = None,
    gpus: str | None = None,
    quantization: Quantized | None = None,
    strict_phrases: bool = False,
    window: Any = None,
) -> OfficialPredictor | Baseline | Ensemble:
    """Open MODEL (a bundle, a run, folds, an official folder, or `tiny`) for prediction: float32 on CPU, bfloat16 on GPU.

    `threshold` defaults to the bundle's, `device` to a GPU if available. `answer`, `tiles`, `cleaning`, `batch_size`,
    `tta` and `cache` are documented in `Predictor`. `gpus`, such as 2x24GiB, splits one model over several GPUs as
    `vesalius plan` proposes. `quantization` stores the matrices of the vision-language model with 8 or 4 bits per value
    and needs the extra `quantization`. `strict_phrases` refuses prompts that are none of the phrases in the model's
    card; without it they are asked, logged once and marked (`Prediction.unknown_phrase`). `window` ("auto", (low, high)
    or ("percentile", p, q)) is that of images of more than 8 bits; by default that of training. The baselines, U-Net and
    `frangi`, always predict in float32 and ignore `answer`. The runs of several folds open as an ensemble, without `tta`
    and `gpus`. SettingError for a baseline with `tiles`, `tta`, `cache`, `gpus` or `quantization`, for a device that
    this machine lacks, and for GPUs that cannot hold the model.

    >>> load_predictor("tiny", device="cpu").description.phrases
    ('blood vessel', 'catheter', 'optic disc')
    """
    ref = resolve_model(model)
    _check_kinds(gpus, quantization)
    asked: dict[str, Any] = {"threshold": threshold, "cleaning": cleaning, "batch_size": batch_size}
    asked |= {"strict_phrases": strict_phrases, "window": window}
    if ref.kind == "ensemble":
        shared = {"answer": answer, "tiles": tiles, "cache": cache, "device": device, "quantization": quantization}
        return _open_ensemble(ref, {"tta": tta, "gpus": gpus}, shared, asked)
    if ref.is_baseline:
        refused = {"tiles": tiles, "tta": tta, "cache": cache, "gpus": gpus, "quantization": quantization}
        return _open_baseline(ref, refused, device, asked)
    from vesalius.inference.official import OfficialPredictor
    from vesalius.models.checkpoint import open_model
    from vesalius.models.stored_model import fingerprint_model

    if gpus is None:
        where, dtype = _device_and_dtype(device)
    else:
        where, dtype = _planned(ref, device, gpus, batch_size, quantization)
    return OfficialPredictor(
        open_model(ref, where, dtype, quantization),
        answer=answer,
        tiles=tiles,
        tta=tta,
        cache=cache,
        name=ref.name,
        fingerprint=fingerprint_model(ref),
        **asked,
    )


def _check_kinds(gpus: object, quantization: object) -> None:
    check_kind(gpus, str | None, "gpus", "text such as 2x24GiB")
    if quantization not in (None, "8bit", "4bit"):
        message = f"quantization is one of 8bit, 4bit; got {describe(quantization)}"
        raise SettingError(message, code="bad_value", field="quantization")


def _open_baseline(ref: ModelRef, refused: Mapping[str, Any], device: str | None, asked: Mapping[str, Any]) -> Baseline:
    for setting in (name for name, value in refused.items() if value):
        raise SettingError(
            f"{ref.name}: {setting} is for text-prompted models; leave it out",
            code="conflicting_settings",
            field=setting,
        )
    from vesalius.inference.baselines import load_baseline

    return load_baseline(ref, device=_usable(device), **asked)


def _open_ensemble(
    ref: ModelRef, refused: Mapping[str, Any], shared: Mapping[str, Any], asked: Mapping[str, Any]
) -> Ensemble:
    """The models of several folds as one; `shared` settings are those of each model, `asked` those of the ensemble."""
    for setting in (name for name, value in refused.items() if value):
        raise SettingError(
            f"{ref.name}: {setting} is for single models; leave it out, or name one of the folds, such as "
            f"{ref.members[0].name}",
            code="conflicting_settings",
            field=setting,
        )
    from vesalius.inference.ensemble import Ensemble

    members = [load_predictor(each, batch_size=asked["batch_size"], **shared) for each in ref.members]
    return Ensemble(members, name=ref.name, **asked)


def _device_and_dtype(device: str | None) -> tuple[str, Any]:
    import torch

    device = _usable(device)
    return device, torch.float32 if device == "cpu" else torch.bfloat16


def _planned(
    ref: ModelRef, device: str | None, gpus: str, batch_size: int, quantization: Quantized | None
) -> tuple[Any, Any]:
    """Device or device map, and dtype, as planned for these GPUs."""
    if device is not None:
        raise SettingError(
            f"give a device ({device}) or gpus ({gpus}), not both", code="conflicting_settings", field="gpus"
        )
    from vesalius.inference.plan import device_and_dtype, make_plan

    changes = [f"batch_size={batch_size}", *([f"quantization={quantization}"] if quantization else [])]
    return device_and_dtype(make_plan(ref, gpus, changes=changes))


def _usable(device: str | None) -> str:
    """The device, by default a GPU if available; SettingError if it cannot be used."""
    import torch

    device = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))  # a torch.device is accepted too
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError(
            f"the device {device!r} cannot be used ({reason}); choose cpu, cuda or cuda:1",
            code="no_device",
            field="device",
        ) from error
    return device
