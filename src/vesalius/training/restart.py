"""Start of a run in its folder: new, or anew where an earlier start was killed before its first checkpoint."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vesalius.config import read_settings
from vesalius.errors import SettingError, TrainingError
from vesalius.files import check_new, hold_folder, prepare_folder
from vesalius.training.runs import CONFIG, LOG, VALIDATION, flatten
from vesalius.training.settings import RunSettings

MANIFEST = "manifest.json"
FIRST_FILES = (CONFIG, MANIFEST, LOG, VALIDATION, "validation", "checkpoints", "trackers", "curves.png", "failure.json")
"""Files and folders that a run writes before its first checkpoint is linked."""


def check_start(settings: RunSettings, overfit: int | None) -> bool:
    """Whether `settings.out` has an earlier start of this run without a checkpoint, which can begin anew.

    False if the folder is absent or empty. Raises OutputError for any other content and if another process trains
    there, TrainingError naming the settings if the earlier start had other ones.
    """
    anew = _check_content(settings, overfit)
    if anew:
        with ExitStack() as held:
            hold_folder(settings.out, "training run", held)
    return anew


def _check_content(settings: RunSettings, overfit: int | None) -> bool:
    """`check_start` without the lock."""
    out = settings.out
    earlier = None if (out / "last").exists() else _read_start(out)
    if earlier is None:
        begun = (out / "last").exists()
        check_new(out, "choose another `out`" + f", or continue it with --resume {out}" * begun)
        return False
    now = _flat(settings, overfit)
    # without a manifest the earlier start was killed before it noted whether it was an overfit test
    different = [name for name in now if name in earlier and earlier[name] != now[name]]
    if different:
        listed = ", ".join(f"{name}: {now[name]} (it was {earlier[name]})" for name in different)
        raise TrainingError.at(
            out,
            f"a run with other settings was begun here and has no checkpoint yet; {listed}; use the same settings to begin "
            "it anew, choose another `out`, or remove the folder",
            code="changed_setting",
            field=different[0],
        )
    return True


def take_folder(settings: RunSettings, overfit: int | None, held: ExitStack) -> None:
    """Create the run folder, lock it until `held` closes, and remove the files of an earlier start.

    Raises errors as `check_start` does; another process may have begun a run meanwhile.
    """
    check_start(settings, overfit)
    prepare_folder(settings.out)
    hold_folder(settings.out, "training run", held)
    _check_content(settings, overfit)
    for path in _files_of_start(settings.out):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _files_of_start(folder: Path) -> list[Path]:
    return [*(folder / name for name in FIRST_FILES), *folder.glob(".*.partial"), *folder.glob(".*.old")]


def _read_start(folder: Path) -> dict[str, Any] | None:
    """The flattened settings of the run that was begun in a folder; None if there is none."""
    if not (folder / CONFIG).is_file():
        return None
    try:
        settings = read_settings(RunSettings, folder / CONFIG)
    except SettingError:  # not the settings of a run, so the folder is somebody else's
        return None
    found = _flat(settings, None)
    try:
        found["overfit"] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["overfit"]
    except (OSError, ValueError, KeyError):
        del found["overfit"]
    return found


def _flat(settings: RunSettings, overfit: int | None) -> dict[str, Any]:
    values = flatten(settings.model_dump(mode="json"))
    return {name: value for name, value in values.items() if name != "out"} | {"overfit": overfit}
