"""A folder with `images/` and `masks/`, paired by stem: pixels of a mask file other than 0 are the object."""

from __future__ import annotations

from pathlib import Path

from vesalius.data.images import list_images, sample_id
from vesalius.errors import AnnotationError, DataError
from vesalius.types import MaskFile, Sample


def recognise(path: Path) -> bool:
    """Whether the folder has both `images/` and `masks/`."""
    return (path / "images").is_dir() and (path / "masks").is_dir()


def read(path: Path, phrase: str, problems: list[DataError] | None = None) -> list[Sample]:
    """Samples of the folder in order of their ids; every mask shows `phrase`.

    Subfolders pair too: `images/p1/a.jpg` with `masks/p1/a.png`. Raises AnnotationError where a partner is
    missing or two files have the same stem; with `problems`, it is put there and the files are left out.
    """
    images, masks = (_by_stem(path / side, problems) for side in ("images", "masks"))
    for side, other, lonely in (
        ("images", "masks", images.keys() - masks.keys()),
        ("masks", "images", masks.keys() - images.keys()),
    ):
        if lonely:
            message = f"{path / side}: no file in {other}/ has the stem of {_first(lonely)}; add or remove it"
            _report(AnnotationError(message), problems)
    return [
        Sample(stem, images[stem], (phrase,), ((MaskFile(masks[stem]),),), source=str(images[stem]))
        for stem in sorted(images.keys() & masks.keys())
    ]


def ignored(path: Path) -> list[str]:
    """Names of what else lies in the folder, folders with a closing slash; hidden ones are left out."""
    others = (other for other in path.iterdir() if other.name not in ("images", "masks"))
    return sorted(other.name + "/" * other.is_dir() for other in others if not other.name.startswith("."))


def _by_stem(folder: Path, problems: list[DataError] | None) -> dict[str, Path]:
    """Sample id -> file."""
    found: dict[str, Path] = {}
    for file in list_images(folder):
        stem = sample_id("images" / file.relative_to(folder))
        if stem in found:
            _report(
                AnnotationError(f"{file}: has the same stem as {found[stem].name}; remove one of them"),
                problems,
            )
        found.setdefault(stem, file)
    if not found:
        raise AnnotationError(f"{folder}: holds no image; png, jpg, bmp and tif are looked for")
    return found


def _report(error: DataError, problems: list[DataError] | None) -> None:
    if problems is None:
        raise error
    problems.append(error)


def _first(stems: set[str]) -> str:
    shown = sorted(stems)[:5]
    return ", ".join(shown) + (f" and {len(stems) - 5} more" if len(stems) > 5 else "")
