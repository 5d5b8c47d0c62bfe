"""A folder with `images/` and `masks/`, paired by stem: pixels of a mask file other than 0 are the object."""

from __future__ import annotations

from pathlib import Path

from vesalius.data.images import list_images, sample_id
from vesalius.data.source import Problems, Source, report
from vesalius.errors import AnnotationError, SettingError
from vesalius.types import MaskFile, Sample


def recognise(source: Source) -> bool:
    """Whether the folder has both `images/` and `masks/`."""
    return (source.path / "images").is_dir() and (source.path / "masks").is_dir()


def read(source: Source, phrase: str, problems: Problems = None) -> list[Sample]:
    """Samples of the folder in order of their ids; every mask shows `phrase`.

    Subfolders pair too: `images/p1/a.jpg` with `masks/p1/a.png`. Raises SettingError without a phrase;
    AnnotationError where a partner is missing or two files have the same stem; with `problems`, it is put there
    and the files are left out.
    """
    path = source.path
    if not phrase:
        raise SettingError(
            f'{path}: nothing says what the masks show; name it, for example --prompt "blood vessel"'
        )
    images, masks = (_by_stem(path / side, problems) for side in ("images", "masks"))
    for side, other, lonely in (
        ("images", "masks", images.keys() - masks.keys()),
        ("masks", "images", masks.keys() - images.keys()),
    ):
        if lonely:
            message = f"{path / side}: no file in {other}/ has the stem of {_first(lonely)}; add or remove it"
            report(AnnotationError(message, "unpaired"), problems)
    return [
        Sample(stem, images[stem], (phrase,), ((MaskFile(masks[stem]),),), source=str(images[stem]))
        for stem in sorted(images.keys() & masks.keys())
    ]


def notes(source: Source) -> list[str]:
    """What else lies in the folder, folders with a closing slash; hidden ones are left out."""
    others = (other for other in source.path.iterdir() if other.name not in ("images", "masks"))
    names = sorted(other.name + "/" * other.is_dir() for other in others if not other.name.startswith("."))
    return [f"ignored beside images/ and masks/: {', '.join(names)}"] if names else []


def _by_stem(folder: Path, problems: Problems) -> dict[str, Path]:
    """Sample id -> file."""
    found: dict[str, Path] = {}
    for file in list_images(folder):
        stem = sample_id("images" / file.relative_to(folder))
        if stem in found:
            message = f"{file}: has the same stem as {found[stem].name}; remove one of them"
            report(AnnotationError(message, "equal_ids"), problems)
        found.setdefault(stem, file)
    if not found:
        raise AnnotationError(f"{folder}: holds no image; png, jpg, bmp and tif are looked for")
    return found


def _first(stems: set[str]) -> str:
    shown = sorted(stems)[:5]
    return ", ".join(shown) + (f" and {len(stems) - 5} more" if len(stems) > 5 else "")
