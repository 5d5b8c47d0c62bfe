"""Whether a run can go on: what may change between its parts, and what would corrupt it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vesalius.config import make_settings
from vesalius.errors import TrainingError
from vesalius.models.cards import read_any_card
from vesalius.training.distributed import Engine
from vesalius.training.run_folder import MERGED, RunFolder, TrainState
from vesalius.training.settings import RunSettings

MAY_CHANGE = frozenset(
    {
        "out",
        "data",
        "steps",
        "epochs",
        "minutes",
        "batch_size",
        "num_workers",
        "validate",
        "trackers",
        "save_every_minutes",
        "trainable.save",
    }
)
"""Settings that may differ when a run is resumed: the data are compared by content, the batch with all processes."""


def find_changes(settings: RunSettings, run_folder: RunFolder) -> list[str]:
    """A sentence for each setting that is not as before, but may change; TrainingError for the others.

    What was before is what the last checkpoint says, because `config.yaml` invites to be edited.
    """
    last = run_folder.last()
    with run_folder.reading_last():
        before = make_settings(RunSettings, read_any_card(last).lineage["settings"], str(last))
    begun, asked = (dict(_flat(each.model_dump())) for each in (before, settings))
    changed = [name for name in {**begun, **asked} if begun.get(name) != asked.get(name) and name != "out"]
    refused = [name for name in changed if not {name, name.partition(".")[0]} & MAY_CHANGE]
    if refused:
        listed = ", ".join(f"{name} (it was {begun.get(name)})" for name in refused)
        raise TrainingError(
            f"{settings.out}: {listed} cannot change in a resumed run; start a new run from its checkpoint instead"
        )
    best = (settings.out / "best").resolve().name
    if asked.get("trainable.save") == "adapter" and best.endswith(MERGED):
        raise TrainingError(
            f"{settings.out}: trainable.save: adapter comes too late, best ({best}) is merged; the adapter of the last "
            f"step is still in {settings.out / 'last'}"
        )
    return [f"{name}: {asked.get(name)}; it was {begun.get(name)}" for name in changed]


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Settings with their names as `--set` takes them."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def check_batches(settings: RunSettings, state: TrainState, engine: Engine) -> None:
    """Raise TrainingError where a batch of all processes would not hold the images that it would have held."""
    images = settings.batch_size * engine.ranks
    if images != state.images_a_batch:
        raise TrainingError(
            f"{settings.out}: a batch had {state.images_a_batch} images over all processes and would have {images} "
            f"({engine.ranks} with batch_size {settings.batch_size}): start as many processes as before, or change batch_size"
        )
