"""`README.md` and `recipe.yaml` of a checkpoint: a model card in Hugging Face Hub format, and the recipe of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vesalius.evaluation.metrics import METRICS
from vesalius.files import write_text
from vesalius.models.cards import ModelCard
from vesalius.models.presets import PRESETS
from vesalius.names import list_names
from vesalius.pages import render
from vesalius.training.settings import Datasets, RunSettings, paths_of

PHRASES_SHOWN = 10
RECIPE_HEADER = (
    "# Absolute paths are reduced to their last component to hide user and machine names. To repeat the run:\n"
    "# vesalius train recipe.yaml --set data.train=... data.val=... model=... out=...\n"
)


def write_model_card(
    folder: Path,
    card: ModelCard,
    settings: RunSettings,
    manifest: Mapping[str, Any],
    images: int,
    phrases: Sequence[str],
    validation: Mapping[str, Any] | None,
) -> None:
    """Write or replace `README.md` and `recipe.yaml` in a bundle.

    `manifest` gives the versions and the commit, `images` the number of training images, `phrases` their phrases, and
    `validation` the line of `validation.jsonl` for these weights; None if they were not validated.
    """
    recipe = without_absolute_paths(settings.model_dump(mode="json"))
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    write_text(folder / "recipe.yaml", RECIPE_HEADER + text)
    lineage = card.lineage
    values = {
        "front_matter": yaml.safe_dump(_front_matter(settings), sort_keys=False),
        "name": Path(settings.out).name,
        "card": card,
        "settings": settings,
        "images": images,
        "phrases": phrases,
        "shown_phrases": list_names((f"`{phrase}`" for phrase in phrases), PHRASES_SHOWN),
        "start": _without_folder(str(lineage.get("start", settings.model))),
        "start_fingerprint": str(lineage.get("start_fingerprint", ""))[:16],
        "data_fingerprint": str(lineage.get("data", ""))[:16],
        "train": _names(settings.data.train),
        "val": _names(settings.data.val) or "none",
        "overfit": lineage.get("overfit"),
        "validation": validation,
        "chosen_by": METRICS[settings.validate_.metric].title,
        "scores": [
            (METRICS[name].title, f"{value:.4g} {METRICS[name].unit}".rstrip())
            for name, value in (validation or {}).items()
            if name in METRICS and value is not None
        ],
        "versions": ", ".join(
            f"{name} {version}" for name, version in manifest["versions"].items() if version != "not installed"
        ),
        "commit": manifest["commit"],
    }
    write_text(folder / "README.md", render(Path(__file__).with_name("model_card.md.jinja"), values))


def _names(data: Datasets | None) -> str:
    return ", ".join(_without_folder(str(path)) for path in paths_of(data))


def without_absolute_paths(value: Any) -> Any:
    """A copy of `value` with absolute paths reduced to their last component; relative paths and names stay."""
    if isinstance(value, Mapping):
        return {name: without_absolute_paths(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_absolute_paths(each) for each in value]
    return _without_folder(value) if isinstance(value, str) else value


def _without_folder(text: str) -> str:
    path = Path(text).expanduser()
    return path.name if path.is_absolute() else text


def _front_matter(settings: RunSettings) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "library_name": "vesalius",
        "pipeline_tag": "image-segmentation",
        "tags": ["vesalius", "image-segmentation", "referring-segmentation"],
    }
    if settings.model in PRESETS and settings.model != "tiny":
        facts["base_model"] = f"ByteDance/{settings.model}"
    elif settings.model.startswith("ByteDance/"):
        facts["base_model"] = settings.model
    return facts
