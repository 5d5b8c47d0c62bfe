"""`README.md` and `recipe.yaml` of a saved bundle: what a person should know before using it, in the form that the hub shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vesalius.evaluation.metrics import METRICS
from vesalius.files import write_text
from vesalius.lineage import commit, versions
from vesalius.models.cards import ModelCard
from vesalius.models.presets import PRESETS
from vesalius.names import list_names
from vesalius.training.settings import RunSettings

PHRASES_SHOWN = 10
CUT = (
    "# Absolute paths are cut to their last part, as they tell of a machine and its people. To repeat the run:\n"
    "# vesalius train recipe.yaml --set data.train=... data.val=... model=... out=...\n"
)


def write_model_card(
    folder: Path,
    card: ModelCard,
    settings: RunSettings,
    images: int,
    phrases: Sequence[str],
    validation: Mapping[str, Any] | None,
) -> None:
    """Write both files into a bundle, in place of older ones.

    `images` and `phrases` are those of the training set, `validation` the line of `validation.jsonl` of these weights, None
    where they were not validated.
    """
    recipe = without_absolute_paths(settings.model_dump(mode="json"))
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    write_text(folder / "recipe.yaml", CUT + text)
    lines = [
        *_front_matter(settings),
        *_body(card, settings, images, phrases),
        *_scores(settings, validation),
    ]
    write_text(folder / "README.md", "\n".join([*lines, *_limits(card), *_versions()]) + "\n")


def without_absolute_paths(value: Any) -> Any:
    """The same settings with absolute paths cut to their last part; relative paths and names stay."""
    if isinstance(value, Mapping):
        return {name: without_absolute_paths(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_absolute_paths(each) for each in value]
    return _shown(value) if isinstance(value, str) else value


def _shown(place: str) -> str:
    path = Path(place).expanduser()
    return path.name if path.is_absolute() else place


def _front_matter(settings: RunSettings) -> Iterator[str]:
    facts: dict[str, Any] = {
        "library_name": "vesalius",
        "pipeline_tag": "image-segmentation",
        "tags": ["vesalius", "image-segmentation", "referring-segmentation"],
    }
    if settings.model in PRESETS and settings.model != "tiny":
        facts["base_model"] = f"ByteDance/{settings.model}"
    elif settings.model.startswith("ByteDance/"):
        facts["base_model"] = settings.model
    yield f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n"


def _body(card: ModelCard, settings: RunSettings, images: int, phrases: Sequence[str]) -> Iterator[str]:
    start = _shown(str(card.lineage.get("start", settings.model)))
    begun = str(card.lineage.get("start_fingerprint", ""))[:16]
    named = list_names((f"`{phrase}`" for phrase in phrases), PHRASES_SHOWN)
    train, val = (_shown(str(each)) if each else "none" for each in (settings.data.train, settings.data.val))
    yield f"# {Path(settings.out).name}, step {card.step}\n"
    yield "Segments what a phrase names in an image. Trained with Vesalius; `recipe.yaml` has every setting.\n"
    yield "## Use\n"
    yield "```"
    yield f'vesalius predict BUNDLE IMAGES --prompt "{phrases[0] if phrases else "blood vessel"}" --out masks'
    yield "vesalius evaluate BUNDLE DATA --out evaluation"
    yield "```\n"
    yield "BUNDLE is this folder. `vesalius evaluate` refuses images that it was trained on.\n"
    yield "## Training\n"
    yield f"- started from: {start}" + (f" (fingerprint {begun})" if begun else "")
    yield f"- what trained: {settings.trainable.preset}"
    yield f"- images: {images}, of {train}; fingerprint of the data {str(card.lineage.get('data', ''))[:16]}"
    yield f"- phrases: {named}"
    yield f"- validated on: {val}"
    optim = settings.optim
    yield f"- batch size {settings.batch_size}, learning rate {optim.lr:g}, precision {settings.precision}, seed {settings.seed}"
    if card.lineage.get("overfit"):
        yield f"- **a test of the set-up: it learned {card.lineage['overfit']} images by heart and is of no other use**"
    yield ""


def _scores(settings: RunSettings, validation: Mapping[str, Any] | None) -> Iterator[str]:
    yield "## Validation\n"
    if validation is None:
        yield "These weights were not validated.\n"
        return
    yield (
        f"Means of {validation['n']} answers at step {validation['step']}, with the answer forced; the checkpoint was chosen "
        f"by {METRICS[settings.validate_.metric].title} on the same images, so that other images give somewhat less.\n"
    )
    yield "| metric | value |"
    yield "|---|---|"
    for name, value in validation.items():
        if name in METRICS and value is not None:
            unit = f" {METRICS[name].unit}".rstrip()
            yield f"| {METRICS[name].title} | {value:.4g}{unit} |"
    yield f"| says [SEG] by itself | {validation['seg_rate']:.4g} |\n"


def _limits(card: ModelCard) -> Iterator[str]:
    yield "## Limits\n"
    yield (
        "For research. It is not a medical device, and nothing about a person may be decided by it. It was measured on "
        "images like those that it was trained on; other machines, views, ages and diseases were not tried. Phrases that it "
        "was not trained on may give any mask.\n"
    )
    yield f"Masks are where the probability is above {card.threshold:g}.\n"
    yield "The licenses of the starting model and of the training data apply; this file grants none.\n"


def _versions() -> Iterator[str]:
    yield "## Made with\n"
    yield ", ".join(f"{name} {version}" for name, version in versions().items() if version != "not installed")
    if found := commit():
        yield f"\nCommit {found}."
