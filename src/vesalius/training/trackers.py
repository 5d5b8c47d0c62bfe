"""Experiment trackers: TensorBoard, W&B, MLflow and others supported by Accelerate."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

from vesalius.errors import MissingExtraError, SettingError, VesaliusError
from vesalius.training.runs import flatten

DEFAULT = "tensorboard"
FOLDER_ARGUMENT = {"wandb": "dir", "mlflow": "logging_dir"}
"""Tracker -> name of its constructor argument for the folder of its files."""


class Trackers:
    """The open trackers; each receives the values of `log.jsonl` and `validation.jsonl` under the same names.

    A tracker that fails is removed with a note, and training continues; the run folder still receives all values.
    """

    def __init__(
        self, open_ones: Sequence[GeneralTracker] = (), on_note: Callable[[str], None] = lambda note: None
    ) -> None:
        self._open = list(open_ones)
        self._on_note = on_note

    def log_step(self, line: Mapping[str, Any]) -> None:
        """Log a line of `log.jsonl` in all trackers."""
        self._log("train", line)

    def log_validation(self, line: Mapping[str, Any]) -> None:
        """Log a line of `validation.jsonl` in all trackers."""
        self._log("validation", line)

    def log_figures(self, figures: Image.Image, step: int) -> None:
        """Log the validation figures in trackers that support images."""

        def show(tracker: GeneralTracker) -> None:
            if hasattr(tracker, "log_images"):
                pixels = np.asarray(figures)[None]
                more = {"dataformats": "NHWC"} if tracker.name == DEFAULT else {}
                tracker.log_images({"validation": pixels}, step=step, **more)

        self._each(show)

    def close(self) -> None:
        """Flush and close all trackers."""
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
            except VesaliusError:  # a signal ends the run
                raise
            except Exception as error:  # any failure of the tracker, such as a full disk or no network
                self._open.remove(tracker)
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                self._on_note(f"{tracker.name} failed and is switched off ({reason}); the run continues without it")


def open_trackers(
    wanted: Sequence[str] | None,
    folder: Path,
    settings: Mapping[str, Any],
    step: int = 0,
    on_note: Callable[[str], None] = lambda note: None,
) -> Trackers:
    """Open trackers that store their files in the run folder.

    `wanted=None` selects TensorBoard, or no tracker and a note if it is not installed. `step` is the step of a resumed
    run. Raises SettingError for an unknown name, MissingExtraError for a named tracker that is not installed.
    """
    if wanted is None and not _installed(DEFAULT):
        on_note('no TensorBoard: it is not installed; install it with pip install "vesalius[tensorboard]"')
        return Trackers()
    names = (DEFAULT,) if wanted is None else tuple(dict.fromkeys(wanted))
    check_trackers(names)
    return Trackers([_open(name, folder, settings, step) for name in names], on_note)


def check_trackers(names: Sequence[str]) -> None:
    """Raise SettingError for a tracker unknown to Accelerate, MissingExtraError for one that is not installed."""
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise SettingError(
                f"trackers: {name} is unknown; known: {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}",
                code="bad_value",
                field="trackers",
            )
        if not _installed(name):
            how = f'"vesalius[{name}]"' if name == DEFAULT else name
            raise MissingExtraError(
                f"trackers: {name} is not installed; install it with pip install {how}",
                code="missing_extra",
                field="trackers",
            )


def _installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _open(name: str, folder: Path, settings: Mapping[str, Any], step: int) -> GeneralTracker:
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    files = folder / "trackers"
    files.mkdir(parents=True, exist_ok=True)
    if name == DEFAULT:
        # hides values written by the interrupted run after its last checkpoint
        tracker = kind(name, files, **({"purge_step": step + 1} if step else {}))
    elif kind.requires_logging_directory:
        tracker = kind(folder.name, files)
    else:
        tracker = kind(folder.name, **({FOLDER_ARGUMENT[name]: str(files)} if name in FOLDER_ARGUMENT else {}))
    tracker.start()
    if name != DEFAULT:  # TensorBoard would store the settings as a second run
        values = flatten(settings)
        tracker.store_init_configuration(
            {key: each if isinstance(each, bool | int | float | str) else str(each) for key, each in values.items()}
        )
    return tracker
