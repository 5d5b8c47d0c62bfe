"""Outputs of a prediction folder that belong to a whole source file: their names, and the files that cannot have one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vesalius.data.decoders import frame_files
from vesalius.data.images import frame_id
from vesalius.errors import SettingError
from vesalius.names import result_stems
from vesalius.types import Sample


def name_sources(samples: Sequence[Sample], save: str, suffix: str, title: str) -> dict[Path, str]:
    """Source file -> stem of its output file, which is the sample id without the frame.

    `save` is the output kind, which is also the kind of the source files (a key of `frame_files.KINDS`), `suffix` that
    of the output files, `title` names the kind in messages. Damaged files, whose predictions fail, are left out.
    SettingError for a file of another kind, and for two outputs with the same name.
    """
    kind = frame_files.KINDS[save]
    found: dict[Path, str] = {}
    for path, sample in {sample.image: sample for sample in reversed(samples)}.items():
        actual = frame_files.kind_of(path)
        if actual is None and path.name.lower().endswith(kind.suffixes):
            continue
        if actual is not kind:
            raise SettingError(
                f"--save {save}: {path} is not a {title}; give {title} files only, or leave {save} out",
                code="conflicting_settings",
                path=path,
                field="save",
            )
        name = sample.id if sample.frame is None else sample.id.removesuffix(frame_id("", sample.frame))
        found[path] = result_stems(name, [save])[0]
    for stem, n in Counter(found.values()).items():
        if n > 1:
            raise SettingError(
                f"--save {save}: {n} files would be written as {stem}{suffix}; give their samples different ids",
                code="duplicate_id",
                field="save",
            )
    return found
