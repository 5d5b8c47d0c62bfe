"""Files of frames that nobody annotated: a video or a volume, or a folder of them, one sample a frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vesalius.data.decoders import nifti, video
from vesalius.data.image_files import frames_of
from vesalius.data.images import sample_id
from vesalius.data.source import Problems, Source, report
from vesalius.errors import AnnotationError, ImageError
from vesalius.types import Sample


def _unknown(path: Path) -> tuple[float, float] | None:
    return None


@dataclass(frozen=True)
class FrameReader:
    """The reader of one kind of file. Group and sequence of its frames are the file's id."""

    what: str
    """`videos`, for notes."""
    suffixes: tuple[str, ...]
    """In a folder, files of other suffixes are not looked into."""
    is_one: Callable[[Path, bytes], bool]
    spacing_mm: Callable[[Path], tuple[float, float] | None] = _unknown

    def recognize(self, source: Source) -> bool:
        """Whether it is such a file, or a folder with one at any depth."""
        if source.path.is_dir():
            return any(self._is_listed(path) for path in _files(source.path))
        return self.is_one(source.path, source.head)

    def read(self, source: Source, phrase: str = "", problems: Problems = None) -> list[Sample]:
        """Samples without annotation, files in order of their names and frames in theirs.

        Raises ImageError for a file that cannot be opened, AnnotationError for two files of the same id; with
        `problems`, it is put there and the file is left out.
        """
        samples: list[Sample] = []
        seen: dict[str, Path] = {}
        for file in filter(self._is_listed, _files(source.path)) if source.path.is_dir() else [source.path]:
            name = sample_id(file.relative_to(source.root))
            try:
                if name in seen:
                    raise AnnotationError(
                        f"{file}: has the same id {name} as {seen[name].name}; rename one of them",
                        code="duplicate_id",
                    )
                spacing = self.spacing_mm(file)
                samples += [replace(sample, spacing_mm=spacing) for sample in frames_of(file, name)]
            except (AnnotationError, ImageError) as error:
                report(error, problems)
            seen.setdefault(name, file)
        return samples

    def notes(self, source: Source) -> list[str]:
        """How many files of a folder are not read, by suffix."""
        if not source.path.is_dir():
            return []
        others = Counter(path.suffix or "none" for path in _files(source.path) if not self._is_listed(path))
        counted = ", ".join(f"{suffix} ({n})" for suffix, n in sorted(others.items()))
        return [f"ignored beside the {self.what}, by suffix: {counted}"] if others else []

    def _is_listed(self, path: Path) -> bool:
        if not path.name.lower().endswith(self.suffixes):
            return False
        with path.open("rb") as file:
            return self.is_one(path, file.read(512))


def _files(folder: Path) -> list[Path]:
    """All files under the folder in order of their names; hidden ones are left out."""
    return sorted(path for path in folder.rglob("*") if not path.name.startswith(".") and path.is_file())


NIFTI = FrameReader("NIfTI volumes", nifti.SUFFIXES, nifti.recognize, nifti.spacing_mm)
VIDEO = FrameReader("videos", video.SUFFIXES, video.recognize)
