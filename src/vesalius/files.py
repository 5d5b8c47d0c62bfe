"""Writing results so that a reader never sees half of one: written under a temporary name, then renamed."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from vesalius.errors import OutputError, SettingError

log = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that becomes `path` when the block ends well, and vanishes if not.

    The block may write a file there or make a folder; an existing file or folder at `path` is replaced.
    Missing parent folders are made. Raises OutputError, naming `path`, when the disk says no.
    """
    path = path.parent.resolve() / path.name if path.name else path.resolve()  # "." needs a name
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir() and not path.is_symlink():
            _exchange(temporary, path)
        else:
            temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    except OutputError as error:  # who writes in the block knows the temporary name alone
        if str(temporary) not in str(error):
            raise
        raise OutputError(str(error).replace(str(temporary), str(path))) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):  # it may never have come to be; the first error is the one to tell
                temporary.unlink()


def _exchange(new: Path, folder: Path) -> None:
    """Put a new folder in the place of an old one, which is removed only when the new one stands there."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    folder.replace(old)
    try:
        new.replace(folder)
    except OSError:
        old.replace(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


SYSTEM_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


def check_replaceable(folder: Path, what: str, names: Collection[str], marker: str) -> None:
    """Raise OutputError unless `folder` is absent, empty, or the result called `what` and nothing else.

    Such a result holds the file `marker`, and no other names than `names`; with anything else it is somebody's.
    """
    article = "an" if what[0] in "aeiou" else "a"
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder}: is a file; name a folder for the {what}")
    if folder.is_mount():
        raise OutputError(f"{folder}: is where a disk is mounted and cannot be replaced; name a folder in it")
    found = {entry.name for entry in folder.iterdir()} - SYSTEM_FILES
    if foreign := sorted(found - set(names)):
        raise OutputError(
            f"{folder}: holds {foreign[0]}, which is not of {article} {what}; name another folder"
        )
    if found and marker not in found:
        raise OutputError(f"{folder}: has no {marker}, so it is no {what} to replace; name another folder")


def check_outside(out: Path, data: Path) -> None:
    """Raise SettingError where a result is to go into the data that it is made of, or to take its place."""
    place, root = out.resolve(), data.resolve()
    if root.is_relative_to(place) and root != place:
        raise SettingError(f"{out}: the dataset lies in it; name another folder")
    if place.is_relative_to(root):
        raise SettingError(
            f"{out}: lies in the dataset, which is never changed; name a folder outside of {root}"
        )


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path` as a whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (NaN and Infinity raise ValueError) to `path` as a whole or not at all."""
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: NaN and Infinity raise ValueError; Chinese stays readable."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)


def prepare_folder(path: Path) -> Path:
    """Make the folder and make sure that it can be written to; OutputError says why not."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.getpid()}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def hold_folder(folder: Path, what: str, files: ExitStack) -> None:
    """Hold the folder until `files` is closed; OutputError where another process, or thread, writes its `what` there."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # a system without such locks
        return
    files.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(f"{folder}: another {what} is being written there; wait for its end") from error
    except OSError:
        log.debug("%s: lies on a file system without locks", folder)
