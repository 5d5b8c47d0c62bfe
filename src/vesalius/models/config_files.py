"""Non-weight files of an official model folder: copied verbatim, never executed."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesalius.errors import CheckpointError

CONFIG = "config.json"
MODEL_TYPE = "sa2va_chat"
PROOF = "conversion.json"
LARGEST_BYTES = 64 << 20

WEIGHT_ENDINGS = tuple(
    ".safetensors .safetensors.index.json .bin .bin.index.json .ckpt .gguf .h5 .msgpack .onnx .pt .pth".split()
)
NOT_THE_MODEL = {".git": "repository history", ".cache": "download cache", "__pycache__": "compiled Python code"}


def read_json(path: Path, code: str) -> Any:
    """The JSON value of a model's file; CheckpointError with `code` if it cannot be read or is not valid JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError.at(path, f"cannot be read ({error.strerror})", code=code) from error
    except ValueError as error:
        raise CheckpointError.at(path, "is not valid JSON; copy the model again", code=code) from error


def is_official(folder: Path) -> bool:
    """True if the folder's `config.json` describes a model in the official layout."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE


@dataclass(frozen=True)
class ConfigFiles:
    """The files of a model folder to copy, as relative paths, and those left out."""

    folder: Path
    names: tuple[str, ...]
    left_out: dict[str, str]
    """Relative path -> reason why the file is not copied."""

    @property
    def n_bytes(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.names)

    def copy_to(self, target: Path) -> None:
        """Copy each file to the same relative path under `target`, without permissions, so that no copy is executable."""
        for name in self.names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(_content(self.folder / name))


def find_config_files(folder: Path) -> ConfigFiles:
    """Find the non-weight files of an official folder and its subfolders.

    A symbolic link may point into the folder, or into the blob store of the hub cache that contains the folder.
    CheckpointError, naming the path, for any other link, and for a path that is neither file nor folder.
    """
    names: list[str] = []
    left_out: dict[str, str] = {}
    for root, folders, files in os.walk(folder, onerror=_refuse):
        inside = Path(root).relative_to(folder)
        for name in sorted(folders):
            if name in NOT_THE_MODEL:
                folders.remove(name)
                left_out[(inside / name).as_posix()] = NOT_THE_MODEL[name]
            elif (Path(root) / name).is_symlink():
                raise CheckpointError.at(
                    Path(root) / name, "is a link to a folder; replace it by the folder", code="unsafe_link"
                )
        for name in sorted(files):
            path = inside / name
            reason = _reason_to_leave(folder, path)
            if reason is None:
                names.append(path.as_posix())
            else:
                left_out[path.as_posix()] = reason
    return ConfigFiles(folder, tuple(sorted(names)), left_out)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError.at(path, f"cannot be read ({error.strerror})", code="damaged_model") from error


def _refuse(error: OSError) -> None:
    raise CheckpointError.at(error.filename, f"cannot be read ({error.strerror})", code="damaged_model") from error


def _reason_to_leave(folder: Path, name: Path) -> str | None:
    path = folder / name
    if name.name.endswith(WEIGHT_ENDINGS):
        return "weights"
    if name.as_posix() == PROOF:
        return "proof of an earlier conversion"
    if path.is_symlink() and not _stays_inside(folder, path):
        raise CheckpointError.at(
            path, "is a link to a file outside the folder; replace it by the file", code="unsafe_link"
        )
    if not path.is_file():
        raise CheckpointError.at(path, "is not a file; remove it or copy the model again", code="damaged_model")
    n_bytes = path.stat().st_size
    return f"{n_bytes} bytes, more than the limit of {LARGEST_BYTES}" if n_bytes > LARGEST_BYTES else None


def _stays_inside(folder: Path, link: Path) -> bool:
    target, root = link.resolve(), folder.resolve()
    # models--OWNER--NAME/snapshots/COMMIT/config.json is a link to models--OWNER--NAME/blobs/HASH
    store = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    return target.is_relative_to(root) or target.is_relative_to(store)
