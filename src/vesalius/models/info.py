"""Facts about a model for `vesalius info`, read from its files: parameter counts, sizes, dtypes and provenance."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from vesalius.lineage import locate_bundle_tensors
from vesalius.models.cards import ADAPTER, Card, ModelCard, UNetCard
from vesalius.models.config_files import CONFIG
from vesalius.models.ensemble_info import describe_ensemble, summarize_ensemble
from vesalius.models.official_config import read_spec
from vesalius.models.presets import PRESETS, identify
from vesalius.models.reference import ModelRef, resolve_model
from vesalius.models.specs import ModelSpec
from vesalius.models.stored_model import bundle_view, check_fit, fingerprint_model, shapes_of
from vesalius.models.weights import FileWeights, Weights, open_weights
from vesalius.window import Window

PART_NAMES = {
    "vlm": "vision-language model",
    "projector": "projector",
    "sam": "segmenter",
    "adapter": "LoRA adapter of the vision-language model",
}
LINE = 100
"""Maximum length of a mapping printed on one line, in characters; a longer one is printed one entry per line."""


def describe(model: str | Path | ModelRef) -> dict[str, Any]:
    """Facts about MODEL, without loading its weights; `warnings` lists wrong sizes in the folder's name."""
    ref = resolve_model(model)
    if ref.kind == "ensemble":
        return describe_ensemble(ref, describe)
    folder = ref.folder
    if isinstance(ref.card, UNetCard):
        return _describe_unet(folder, ref.card)
    card, weights, layout = _open(ref)
    parts, dtypes = _count(weights)
    spec = card.spec
    return {
        "folder": str(folder),
        "layout": layout,
        "name": spec.name,
        "family": spec.family,
        "published_size": identify(spec),
        "parameters": {**parts, "total": parts.total()},
        "dtypes": dict(dtypes),
        **_sizes(spec),
        "chat": spec.prompt.chat,
        "adapter": (folder / ADAPTER).is_dir(),
        **_history(card, folder),
        "warnings": _false_claims(folder, spec, parts.total()),
    }


def _count(weights: Weights) -> tuple[Counter[str], Counter[str]]:
    """Number of parameters by component and by dtype."""
    parts: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for name, tensor in weights.tensors.items():
        count = math.prod(tensor.shape)
        parts[name.partition(".")[0]] += count
        dtypes[tensor.dtype] += count
    return parts, dtypes


def _describe_unet(folder: Path, card: UNetCard) -> dict[str, Any]:
    _, dtypes = _count(FileWeights(locate_bundle_tensors(folder)))
    return {
        "folder": str(folder),
        "layout": "bundle",
        "name": card.kind,
        "parameters": {"total": dtypes.total()},
        "dtypes": dict(dtypes),
        "unet": card.spec.model_dump(mode="json"),
        **_history(card, folder),
        "warnings": [],
    }


def _history(card: ModelCard, folder: Path) -> dict[str, Any]:
    return {
        "phrases": None if card.phrases is None else list(card.phrases),
        "window": None if card.window is None else card.window.plain,
        "threshold": card.threshold,
        "threshold_origin": card.threshold_origin.model_dump(),
        "step": card.step,
        "trained_on_images": None if card.training_images is None else len(card.training_images),
        "trained_on_unknown": card.saw_unknown_images,
        "lineage": card.lineage,
        "fingerprint": fingerprint_model(folder),
    }


def _open(ref: ModelRef) -> tuple[Card, Weights, str]:
    """The card, the tensors under canonical names, and the layout on disk."""
    folder = ref.folder
    if (card := ref.text_card) is not None:
        return card, FileWeights(locate_bundle_tensors(folder)), "bundle"
    files = open_weights(folder)
    spec = read_spec(folder, shapes_of(files))
    weights = bundle_view(spec, files, folder)[0]
    check_fit(spec, shapes_of(weights), folder)
    return Card(spec=spec, training_images=None), weights, f"official ({CONFIG})"


def _sizes(spec: ModelSpec) -> dict[str, Any]:
    vision, text = spec.vlm["vision_config"], spec.text
    trunk = spec.sam["vision_config"]["backbone_config"]
    return {
        "language_model": {
            "type": text["model_type"],
            "layers": text["num_hidden_layers"],
            "hidden_size": text["hidden_size"],
            "vocabulary": text["vocab_size"],
        },
        "vision_encoder": {
            "layers": vision.get("num_hidden_layers", vision.get("depth")),
            "hidden_size": vision["hidden_size"],
        },
        "segmenter": {
            "encoder_blocks": sum(trunk["blocks_per_stage"]),
            "hidden_size": trunk["hidden_size"],
            "input_size": spec.sam["image_size"],
        },
    }


def _false_claims(folder: Path, spec: ModelSpec, parameters: int) -> list[str]:
    """Warnings if the folder's name states a model size that contradicts its tensors."""
    name = folder.resolve().name
    real = spec.name if identify(spec) else f"{spec.name} ({parameters / 1e9:.2f} B parameters)"
    claimed = re.findall(r"(?<![0-9.])(\d+(?:\.\d+)?)B(?![a-z])", name)
    own = re.findall(r"(\d+(?:\.\d+)?)B", spec.name)
    # a stated size may differ from the number of parameters by 20 %
    wrong = [
        f"{size}B" for size in claimed if size not in own and abs(parameters / 1e9 - float(size)) > 0.2 * float(size)
    ]
    warnings = [f"the folder is called {name}, but it holds {real}, not {size}" for size in wrong]
    known = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.9)
    if not warnings and known and identify(spec) not in (None, known[0]):
        warnings.append(f"the folder is called {name}, but it holds {real}")
    return warnings


def summarize(facts: dict[str, Any], all: bool = False) -> list[str]:
    """The facts as ten or fewer text lines for the terminal, and the warnings; with `all`, also the whole ancestry."""
    if "members" in facts:
        return summarize_ensemble(facts)
    lines = [
        *(_summarize_unet(facts) if "unet" in facts else _summarize_textseg(facts)),
        "stored as " + ", ".join(f"{dtype} ({count:,})" for dtype, count in facts["dtypes"].items()),
        f"folder: {facts['folder']} ({facts['layout']})",
        f"threshold: {facts['threshold']} ({facts['threshold_origin']['how']})",
        "phrases: " + ("any (open vocabulary)" if facts["phrases"] is None else ", ".join(facts["phrases"]) or "none"),
    ]
    if facts["step"] is not None:
        images = facts["trained_on_images"]
        known = "unknown images" if images is None else f"{images} images"
        window = f", window {Window.parse(facts['window'])}" if facts["window"] else ""
        lines.append(f"training: step {facts['step']}, {known}{window}")
    known_origin = {name: value for name, value in facts["lineage"].items() if value is not None}
    if all:
        for name, value in known_origin.items():
            if name != "fingerprint":
                lines += _unfold(name, value)
    elif known_origin:
        lines.append(f"provenance: {_ancestry(known_origin)}; --all shows all")
    lines.append(f"fingerprint: {facts['fingerprint']}")
    return lines + [f"WARNING: {warning}" for warning in facts["warnings"]]


def _ancestry(lineage: dict[str, Any]) -> str:
    """The models from which the weights were trained, oldest first, in one line; else what else is recorded."""
    starts = []
    known: Any = lineage
    while isinstance(known, dict) and "start" in known:
        starts.append(str(known["start"]))
        known = known.get("start_lineage")
    if starts:
        return " > ".join([*reversed(starts), "this model"])
    text = ", ".join(f"{name} {value}" for name, value in lineage.items() if not isinstance(value, dict))
    return text if len(text) <= LINE else f"{text[:LINE]}…"


def _unfold(name: str, value: Any, indent: str = "") -> list[str]:
    """A value as one line; a long mapping as one line per entry."""
    if not isinstance(value, dict) or len(str(value)) < LINE:
        return [f"{indent}{name}: {value}"]
    held = [line for key, each in value.items() if each is not None for line in _unfold(key, each, f"{indent}  ")]
    return [f"{indent}{name}:", *held]


def _summarize_textseg(facts: dict[str, Any]) -> list[str]:
    parts = {name: count for name, count in facts["parameters"].items() if name != "total"}
    total = facts["parameters"]["total"]
    language, vision, segmenter = facts["language_model"], facts["vision_encoder"], facts["segmenter"]
    return [
        f"{facts['name']}, {facts['family']}, {total:,} parameters ("
        + ", ".join(f"{PART_NAMES[name]} {count:,}" for name, count in parts.items())
        + ")",
        f"language model: {language['type']}, {language['layers']} layers of {language['hidden_size']}, "
        f"{language['vocabulary']:,} tokens; vision encoder: {vision['layers']} layers of {vision['hidden_size']}",
        f"segmenter: {segmenter['encoder_blocks']} blocks from {segmenter['hidden_size']}, "
        f"{segmenter['input_size']} x {segmenter['input_size']} pixels",
    ]


def _summarize_unet(facts: dict[str, Any]) -> list[str]:
    shape = facts["unet"]
    return [
        f"{facts['name']}, {facts['parameters']['total']:,} parameters, no text",
        f"channels at each level: {', '.join(map(str, shape['widths']))}; patches of {shape['patch']} pixels",
    ]
