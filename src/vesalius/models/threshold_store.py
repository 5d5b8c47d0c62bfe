"""Store a tuned threshold in a bundle; its weights and their fingerprint stay the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from vesalius.errors import CheckpointError, OutputError
from vesalius.files import check_new, check_replaceable, prepare_folder, replacing, write_json
from vesalius.models.cards import CARD, ThresholdOrigin, TtaGain
from vesalius.models.reference import ModelRef, resolve_model

RUN_ONLY = {"train_state.json", "optimizer.safetensors", "average.pt", "README.md"}
"""Files of a run's checkpoint that are not copied: its training state, and the README with the old threshold."""
NAMES = (CARD, *"vlm sam projector.safetensors unet.safetensors adapter source conversion.json recipe.yaml".split())
"""Everything in a bundle that `tune` writes; a folder with other content, such as a checkpoint of a run, is never
replaced."""


def check_target(model: str | Path | ModelRef, out: Path | None, overwrite: bool = False) -> Path:
    """The bundle folder to write the tuned threshold to: `out`, or by default MODEL itself. Called before tuning starts.

    CheckpointError if MODEL is not a bundle; OutputError if `out` exists already, unless `overwrite` and it is a bundle,
    or if the folder cannot be written.
    """
    ref = resolve_model(model)
    folder = ref.folder
    if not ref.is_bundle:
        raise CheckpointError.at(
            folder, "is in the official layout, which has no threshold; convert it to a bundle", code="wrong_model_kind"
        )
    if out is not None:
        if overwrite:
            check_replaceable(out, "bundle", NAMES, CARD)
        else:
            check_new(out, "name another folder, or replace an earlier bundle with --overwrite")
        prepare_folder(out.resolve().parent)
        return out
    if ref.origin != "bundle":
        raise OutputError(
            f"{ref.name}: is not a bundle folder; name the bundle to write with --out",
            code="wrong_model_kind",
            path=folder,
        )
    if not os.access(folder / CARD, os.W_OK) or not os.access(folder, os.W_OK):
        raise OutputError.at(folder, "cannot be written; name another bundle with --out", code="write_failed")
    return folder


def store_threshold(
    model: str | Path | ModelRef,
    target: Path,
    threshold: float,
    origin: ThresholdOrigin,
    images: Sequence[str],
    tta: TtaGain | None = None,
) -> None:
    """Write MODEL's bundle with a tuned threshold to `target`; if `target` is the bundle itself, only its card changes.

    `tta` replaces the gain in the card even if it is None, since the old gain was measured on other images.
    """
    ref = resolve_model(model)
    folder, card = ref.folder, ref.card
    assert card is not None, f"{ref.name} has no card"
    card = card.changed(threshold=threshold, threshold_origin=origin, tuning_images=tuple(sorted(images)), tta=tta)
    if target.resolve() == folder.resolve():
        write_json(target / CARD, card.model_dump(mode="json"))
        return
    with replacing(target) as aside:
        shutil.copytree(folder, aside, ignore=lambda at, names: RUN_ONLY & {*names} if at == str(folder) else ())
        write_json(aside / CARD, card.model_dump(mode="json"))
