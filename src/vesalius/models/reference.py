"""`ModelRef`: the argument MODEL, resolved to a model's files. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from vesalius.calls import check_kind
from vesalius.errors import CheckpointError
from vesalius.models.cards import CARD, Card, UNetCard, check_text_prompted, read_any_card
from vesalius.models.config_files import is_official, read_json

FRANGI = "frangi"
"""MODEL for the vesselness filter of `inference/baselines.py`, which has no files."""
TINY = "tiny"
"""MODEL for the small model included in the package."""
HUB_OWNER = "ByteDance/"
FOLDS = "folds.json"
"""File of a folder with one run for each fold; such a folder opens as an ensemble."""

ModelOrigin = Literal["bundle", "run", "official", "hub", "packaged", "published", "builtin", "folds"]
"""bundle: a folder with `vesalius.json`; run: the best checkpoint of a run folder; official: a folder in Sa2VA's layout;
hub: such a folder in the local cache of the Hugging Face hub; packaged: `tiny`; published: a known name without weights on
this machine; builtin: `frangi`; folds: the runs of `vesalius train --folds`."""
ModelKind = Literal["textseg", "unet", "frangi", "ensemble"]
Layout = Literal["vesalius", "sa2va"]
"""File layout of a text-prompted model: vesalius is a bundle, sa2va the official folder."""


@dataclass(frozen=True)
class ModelRef:
    """A resolved model: its name as given, its origin and the folder of its files."""

    name: str
    origin: ModelOrigin
    path: Path | None = None
    """Folder of the files; None for `frangi` and for a published name without weights."""

    @property
    def folder(self) -> Path:
        """Folder of the files; CheckpointError for a model without files and for an ensemble."""
        if self.origin == "folds":
            first = self.members[0].name
            raise CheckpointError(
                f"{self.name}: is an ensemble of {len(self.members)} models, for predict, evaluate and info only; name one of "
                f"them, such as {first}",
                code="wrong_model_kind",
                field="model",
            )
        if self.origin == "published":
            raise CheckpointError(
                f"{self.name}: its weights are not on this machine", code="not_downloaded", field="model"
            )
        if self.path is None:
            raise CheckpointError(
                f"{self.name}: is a filter without weights, for predict and evaluate only; "
                "set its threshold with --threshold",
                code="wrong_model_kind",
                field="model",
            )
        return self.path

    @cached_property
    def members(self) -> list[ModelRef]:
        """The models of an ensemble, one per fold; [] for any other model. CheckpointError if one has no checkpoint."""
        if self.origin != "folds" or self.path is None:
            return []
        names = _read_folds(self.path / FOLDS)
        if bare := [name for name in names if not (self.path / name / "best" / CARD).is_file()]:
            message = f"{bare[0]} has no best checkpoint yet; continue training with the command that began it"
            raise CheckpointError.at(self.path, message, code="unfinished_folds", field=bare[0])
        return [ModelRef(f"{self.name}/{name}", "run", self.path / name / "best") for name in names]

    @property
    def is_bundle(self) -> bool:
        """True for a folder with a model card, False for the official layout and for a model without files."""
        return self.origin in ("bundle", "run", "packaged")

    @cached_property
    def card(self) -> Card | UNetCard | None:
        """The model card of a bundle, None for any other model; CheckpointError if it is damaged."""
        return read_any_card(self.folder) if self.is_bundle else None

    @property
    def kind(self) -> ModelKind:
        """textseg: a text-prompted model; unet and frangi: the baselines; ensemble: the runs of several folds."""
        if self.origin == "folds":
            return "ensemble"
        if self.origin == "builtin":
            return "frangi"
        return "unet" if isinstance(self.card, UNetCard) else "textseg"

    @property
    def is_baseline(self) -> bool:
        """True for a U-Net and for the Frangi filter."""
        return self.kind in ("unet", "frangi")

    @property
    def text_card(self) -> Card | None:
        """The card of a text-prompted bundle, None in the official layout; CheckpointError for a baseline."""
        return None if self.card is None else check_text_prompted(self.card, self.folder)


def _read_folds(path: Path) -> list[str]:
    """The names of the folds in folds.json; CheckpointError if it is damaged."""
    found = read_json(path, "damaged_model")
    names = found.get("folds") if isinstance(found, dict) else None
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise CheckpointError.at(path, "has no list `folds`; copy the folder again", code="damaged_model")
    return names


def resolve_model(model: str | Path | ModelRef, *, weights: bool = True) -> ModelRef:
    """Resolve MODEL: a bundle, a run (its best checkpoint), folds, an official folder, a hub id, `tiny` or `frangi`.

    A hub id is looked up in the local cache; nothing is downloaded. With `weights=False` a published name needs no
    weights on this machine. CheckpointError, naming the expected files, if there is no model; SettingError for an unknown
    name.
    """
    check_kind(model, str | Path | ModelRef, "model", "a path, or a name such as tiny")
    if isinstance(model, ModelRef):
        return model
    name, path = str(model), Path(model)
    if name == FRANGI:
        return ModelRef(name, "builtin")
    if (path / CARD).is_file():
        return ModelRef(name, "bundle", path)
    if (path / "best" / CARD).is_file():
        return ModelRef(name, "run", path / "best")
    if (path / FOLDS).is_file():
        return ModelRef(name, "folds", path)
    if is_official(path):
        return ModelRef(name, "official", path)
    if path.is_dir():
        raise CheckpointError.at(
            path,
            f"contains no model: it has neither {CARD} (a bundle), best/{CARD} (a run with a checkpoint), {FOLDS} (the "
            "runs of several folds) nor the config.json of an official Sa2VA model",
            code="no_model",
        )
    if path.is_file():
        raise CheckpointError.at(
            path,
            f"is a file; convert a training checkpoint with `vesalius convert {path} OUT --base MODEL`",
            code="no_model",
        )
    if name.lower() == TINY:
        return ModelRef(name, "packaged", Path(str(files("vesalius.models") / TINY)))
    if not weights and ("/" not in name or name.startswith(HUB_OWNER)):
        _published_name(name)
        return ModelRef(name, "published")
    return ModelRef(name, "hub", _find_downloaded(name))


def _published_name(name: str) -> str:
    from vesalius.models.presets import find_spec

    return find_spec(name).name


def _find_downloaded(name: str) -> Path:
    repository = name if "/" in name else HUB_OWNER + _published_name(name)
    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError) as error:
        if "/" not in name or name.startswith(HUB_OWNER):
            _published_name(name)  # SettingError with the nearest name if it is unknown
            hint = f"download it with `hf download {repository}`, or give the folder of a model"
            raise CheckpointError(
                f"{repository}: its weights are not on this machine; {hint}", code="not_downloaded"
            ) from error
        raise CheckpointError(f"{name}: is neither a folder nor a downloaded model", code="no_model") from error
    if not is_official(folder):
        raise CheckpointError(
            f"{repository}: {folder} contains no model in the official Sa2VA layout", code="no_model", path=folder
        )
    return folder
