"""Atomic writing: files and folders are written under a temporary name and then renamed."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from vesalius.errors import OutputError, SettingError

log = logging.getLogger(__name__)

SYSTEM_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""Files that operating systems add to folders automatically."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; it is renamed to `path` if the block succeeds, and removed otherwise.

    The block writes a file or creates a folder at the temporary path. An existing file or folder at `path` is replaced.
    Missing parent folders are created. Raises OutputError, naming `path`, if writing fails.
    """
    path = path.parent.resolve() / path.name if path.name else path.resolve()  # "." has no name
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir() and not path.is_symlink():
            replace_folder(temporary, path)
        else:
            temporary.replace(path)
    except OSError as error:
        raise _not_writable(path, error) from error
    except OutputError as error:  # its message contains the temporary path
        if str(temporary) not in str(error):
            raise
        message = str(error).replace(str(temporary), str(path))
        raise OutputError(message, code=error.code, path=path, field=error.field) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):  # it may not exist, and an earlier error is more important
                temporary.unlink()


def replace_folder(new: Path, folder: Path) -> None:
    """Rename the folder `new` to `folder`, which may exist; the old folder is removed only afterwards."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if not folder.exists():
        new.replace(folder)
        return
    folder.replace(old)
    try:
        new.replace(folder)
    except OSError:
        old.replace(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _not_writable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written ({error.strerror or error})", code="write_failed", path=path)


def check_new(out: Path, remedy: str = "name another folder, or remove this one first") -> None:
    """Raise OutputError, whose message ends with `remedy`, unless `out` is absent or an empty folder."""
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise _not_writable(out, error) from error
    if taken:
        state = "exists and is not empty" if out.is_dir() else "is a file"
        raise OutputError(f"{out}: {state}; {remedy}", code="output_exists", path=out)


def check_replaceable(folder: Path, what: str, names: Collection[str], *markers: str) -> None:
    """Raise OutputError unless `folder` is absent, empty, or an earlier result of the kind `what`.

    An earlier result contains one of the files `markers` and no entries other than `names`; other files may belong to the user.
    """
    article = "an" if what[0] in "aeiou" else "a"

    def refuse(reason: str) -> OutputError:
        return OutputError(f"{folder}: {reason}", code="not_replaceable", path=folder)

    if not folder.exists():
        return
    if not folder.is_dir():
        raise refuse(f"is a file; name a folder for the {what}")
    if folder.is_mount():
        raise refuse("is a mount point and cannot be replaced; name a folder in it")
    found = {entry.name for entry in folder.iterdir()} - SYSTEM_FILES
    if foreign := sorted(found - set(names)):
        raise refuse(f"contains {foreign[0]}, which is not part of {article} {what}; name another folder")
    if found and not found & set(markers):
        raise refuse(f"has no {' or '.join(markers)}, so it is not an earlier {what}; name another folder")


def check_outside(out: Path, data: Path) -> None:
    """Raise SettingError if the output lies in the input data, equals it or contains it."""
    target, root = out.resolve(), data.resolve()
    if root.is_relative_to(target) and root != target:
        reason = "contains the dataset; name another folder"
    elif target.is_relative_to(root):
        reason = f"lies in the dataset, which is never changed; name a folder outside {root}"
    else:
        return
    raise SettingError(f"{out}: {reason}", code="output_inside_data", path=out)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write strict, indented JSON to `path` atomically; NaN and Infinity raise ValueError."""
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: NaN and Infinity raise ValueError; non-ASCII characters are kept as they are."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows under a header; None becomes an empty field, and numbers keep all their digits. Items of a list are joined by `; `.

    `columns` is the header of a file without rows. The file begins with a byte order mark (Python's `utf-8-sig`):
    without one, Excel decodes UTF-8 in the machine's code page and garbles Chinese prompts. pandas and readr skip it.
    """
    fields = list(dict.fromkeys(key for row in rows for key in row)) or list(columns)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(
            {key: "; ".join(map(str, value)) if isinstance(value, list) else value for key, value in row.items()}
            for row in rows
        )


def prepare_folder(path: Path) -> Path:
    """Create the folder if needed; raises OutputError if it is not writable."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.getpid()}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _not_writable(path, error) from error
    return path


def hold_folder(folder: Path, what: str, files: ExitStack) -> None:
    """Lock the folder until `files` is closed; OutputError if another process or thread writes a `what` there."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # the system has no such locks
        return
    files.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        message = f"{folder}: another {what} is being written there; wait until it ends"
        raise OutputError(message, code="folder_in_use", path=folder) from error
    except OSError:
        log.debug("%s: the file system has no locks", folder)
