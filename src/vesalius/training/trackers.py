"""What a run also writes for programs that show it: TensorBoard, or any tracker that Accelerate knows."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

from vesalius.errors import MissingExtraError, SettingError, VesaliusError
from vesalius.training.runs import flat

DEFAULT = "tensorboard"
WITH_FOLDER = {"wandb": "dir", "mlflow": "logging_dir"}
"""Trackers that take the folder for their files by a name of their own."""


class Trackers:
    """Those that are open. Each gets the numbers of `log.jsonl` and `validation.jsonl` under the same names.

    One that fails is given up with a note, and training goes on: all that it shows is in the run folder, too.
    """

    def __init__(
        self,
        open_ones: Sequence[GeneralTracker] = (),
        on_note: Callable[[str], None] = lambda note: None,
    ) -> None:
        self._open = list(open_ones)
        self._on_note = on_note

    def log_step(self, line: Mapping[str, Any]) -> None:
        """A line of `log.jsonl`."""
        self._log("train", line)

    def log_validation(self, line: Mapping[str, Any]) -> None:
        """A line of `validation.jsonl`."""
        self._log("validation", line)

    def log_sheet(self, sheet: Image.Image, step: int) -> None:
        """The pictures of a validation, for the trackers that show pictures."""

        def show(tracker: GeneralTracker) -> None:
            if hasattr(tracker, "log_images"):
                pixels = np.asarray(sheet)[None]
                more = {"dataformats": "NHWC"} if tracker.name == DEFAULT else {}
                tracker.log_images({"validation": pixels}, step=step, **more)

        self._each(show)

    def close(self) -> None:
        """Write what is not written yet."""
        self._each(lambda tracker: tracker.finish())

    def _log(self, kind: str, line: Mapping[str, Any]) -> None:
        values = {
            f"{kind}/{name}": float(value)
            for name, value in line.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
        }
        self._each(lambda tracker: tracker.log(values, step=line["step"]))

    def _each(self, act: Callable[[GeneralTracker], object]) -> None:
        for tracker in list(self._open):
            try:
                act(tracker)
            except VesaliusError:  # a signal, which ends the run
                raise
            except Exception as error:  # a full disk, a network that is gone: whatever its program met
                self._open.remove(tracker)
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                self._on_note(
                    f"{tracker.name} failed and gets nothing more ({reason}); the run goes on without it"
                )


def open_trackers(
    wanted: Sequence[str] | None,
    folder: Path,
    settings: Mapping[str, Any],
    step: int = 0,
    on_note: Callable[[str], None] = lambda note: None,
) -> tuple[Trackers, str | None]:
    """The trackers, whose files go below the run folder; and a note on what is not written, if so.

    None wants TensorBoard where it is installed. `step` is where a resumed run goes on. SettingError for an unknown name,
    MissingExtraError where a tracker that was named is not installed.
    """
    if wanted is None and not _installed(DEFAULT):
        return Trackers(), 'no TensorBoard: it is not installed; pip install "vesalius[tensorboard]"'
    names = (DEFAULT,) if wanted is None else tuple(dict.fromkeys(wanted))
    check_trackers(names)
    return Trackers([_open(name, folder, settings, step) for name in names], on_note), None


def check_trackers(names: Sequence[str]) -> None:
    """Raise SettingError for a name that Accelerate does not know, MissingExtraError for one that is not installed."""
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise SettingError(
                f"trackers: {name} is unknown; known: {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
            )
        if not _installed(name):
            how = f'"vesalius[{name}]"' if name == DEFAULT else name
            raise MissingExtraError(f"trackers: {name} is not installed; pip install {how}")


def _installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _open(name: str, folder: Path, settings: Mapping[str, Any], step: int) -> GeneralTracker:
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    place = folder / "trackers"
    place.mkdir(parents=True, exist_ok=True)
    if name == DEFAULT:
        # what an interrupted run wrote after its checkpoint is hidden by what comes now
        tracker = kind(name, place, **({"purge_step": step + 1} if step else {}))
    elif kind.requires_logging_directory:
        tracker = kind(folder.name, place)
    else:
        tracker = kind(folder.name, **({WITH_FOLDER[name]: str(place)} if name in WITH_FOLDER else {}))
    tracker.start()
    if name != DEFAULT:  # it keeps settings as one run more, named by the time
        values = flat(settings)
        tracker.store_init_configuration(
            {
                key: value if isinstance(value, bool | int | float | str) else str(value)
                for key, value in values.items()
            }
        )
    return tracker
