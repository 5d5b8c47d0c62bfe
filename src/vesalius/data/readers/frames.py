"""Read unannotated videos and volumes, single files or folders of them, as one sample for each frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vesalius.data.decoders import nifti, video
from vesalius.data.image_files import frames_of
from vesalius.data.images import sample_id
from vesalius.data.source import Problems, Source, UniqueIds, reporting
from vesalius.types import Location, Sample


@dataclass(frozen=True)
class FrameFormat:
    """Reader of one kind of multi-frame file; the id of a file is the group and sequence of its frames."""

    name: str
    """Name of the kind in notes, such as `videos`."""
    suffixes: tuple[str, ...]
    """Suffixes of the files that are opened in a folder."""
    is_one: Callable[[Path, bytes], bool]
    """True for a file of this kind, given its path and first bytes."""
    spacing_mm: Callable[[Path], tuple[float, float] | None] = lambda path: None

    def recognize(self, source: Source) -> bool:
        """True if the source is a file of this kind, or a folder with one at any depth."""
        if source.path.is_dir():
            return any(self._is_listed(path) for path in _files(source.path))
        return self.is_one(source.path, source.head)

    def read(self, source: Source, phrase: str = "", problems: Problems = None) -> list[Sample]:
        """Unannotated samples, sorted by file path and frame.

        Raises ImageError for a file that cannot be opened, AnnotationError for two files with the same id; with
        `problems`, the error is added there and the file is skipped.
        """
        samples: list[Sample] = []
        ids = UniqueIds()
        for file in filter(self._is_listed, _files(source.path)) if source.path.is_dir() else [source.path]:
            name = sample_id(file.relative_to(source.root))
            with reporting(problems):
                ids.add(name, Location(file), "rename one of them")
                spacing = self.spacing_mm(file)
                samples += [replace(sample, spacing_mm=spacing) for sample in frames_of(file, name)]
        return samples

    def notes(self, source: Source) -> list[str]:
        """A note with the number of ignored files in a folder, by suffix."""
        if not source.path.is_dir():
            return []
        others = Counter(path.suffix or "none" for path in _files(source.path) if not self._is_listed(path))
        counted = ", ".join(f"{suffix} ({n})" for suffix, n in sorted(others.items()))
        return [f"ignored files beside the {self.name}, by suffix: {counted}"] if others else []

    def _is_listed(self, path: Path) -> bool:
        if not path.name.lower().endswith(self.suffixes):
            return False
        with path.open("rb") as file:
            return self.is_one(path, file.read(512))


def _files(folder: Path) -> list[Path]:
    """All files at any depth in the folder, sorted by path, except hidden ones."""
    return sorted(path for path in folder.rglob("*") if not path.name.startswith(".") and path.is_file())


NIFTI = FrameFormat("NIfTI volumes", nifti.SUFFIXES, nifti.recognize, nifti.spacing_mm)
VIDEO = FrameFormat("videos", video.SUFFIXES, video.recognize)
