"""Names in messages, and file names of results: readable, in any script, and unique per image and prompt."""

from __future__ import annotations

import difflib
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

SLUG_LENGTH = 48
"""Maximum length of a slug in characters; a Chinese character takes 3 bytes in a file name."""
STEM_BYTES = 200
"""Maximum length of a stem in bytes; file systems allow 255, and suffixes and temporary names need the rest."""


def result_stems(sample: str, prompts: Sequence[str]) -> list[str]:
    """File stem of each prompt's result: the sample id, followed by `--SLUG` if there are several prompts.

    A stem longer than `STEM_BYTES` is truncated and ends with a hash of the full stem. Raises ValueError for an id that
    is not a valid file name, or for a repeated prompt.
    """
    if not sample or Path(sample).name != sample or "\0" in sample:
        raise ValueError(f"the id {sample!r} cannot be a file name")
    stems = [sample] if len(prompts) == 1 else [f"{sample}--{each}" for each in slugs(prompts)]
    return [_cut(stem) for stem in stems]


def slugs(prompts: Sequence[str]) -> list[str]:
    """A unique slug for each prompt; equal slugs get a hash of their prompt as suffix.

    Raises ValueError for a repeated prompt.

    >>> slugs(["blood vessel", "冠状动脉"])
    ['blood-vessel', '冠状动脉']
    """
    if len(set(prompts)) < len(prompts):
        twice = Counter(prompts).most_common(1)[0][0]
        raise ValueError(f"the prompt {twice!r} is given twice")
    plain = [slug(prompt) for prompt in prompts]
    count = Counter(plain)
    pairs = zip(plain, prompts, strict=True)
    return [each if count[each] == 1 else f"{each}-{short_hash(prompt)}" for each, prompt in pairs]


def slug(text: str) -> str:
    """The words of a text (letters, marks and digits of any script) in lower case, joined by `-`.

    A text without letters or digits gives `prompt`. A slug longer than `SLUG_LENGTH` is truncated and ends with a hash
    of the text.
    """
    normal = unicodedata.normalize("NFKC", text).lower()
    kept = "".join(each if unicodedata.category(each)[0] in "LNM" else " " for each in normal)
    result = "-".join(kept.split()) or "prompt"
    return result if len(result) <= SLUG_LENGTH else f"{result[:SLUG_LENGTH].rstrip('-')}-{short_hash(text)}"


def list_names(names: Iterable[str], most: int = 5, between: str = ", ") -> str:
    """Text that lists the first `most` names and gives the number of the remaining ones.

    >>> list_names("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    listed = list(names)
    more = len(listed) - most
    return between.join(listed[:most]) + (f" and {more} more" if more > 0 else "")


def count_of(n: int, one: str) -> str:
    """A count with its noun: `1 image`, `2 images`."""
    return f"{n} {one if n == 1 else one + 's'}"


def list_choices(names: Sequence[str]) -> str:
    """Text that offers the names.

    >>> list_choices(["zip", "tar", "none"])
    'zip, tar or none'
    """
    return " or ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that `name` begins, else the most similar one; None if none has a similarity of `cutoff` (0 to 1).

    >>> nearest("--promt", ["--out", "--prompt"])
    '--prompt'
    """
    names = [*known]
    begun = [each for each in names if name.strip("-_") and each.startswith(name)]
    return next(iter(begun or difflib.get_close_matches(name, names, n=1, cutoff=cutoff)), None)


def read_synonyms(table: str) -> Mapping[str, list[str]]:
    """Synonym -> the names that it stands for, from lines `NAME: SYNONYM SYNONYM ...`."""
    found: dict[str, list[str]] = {}
    for line in table.strip().splitlines():
        name, _, synonyms = line.partition(": ")
        for synonym in synonyms.split():
            found.setdefault(synonym, []).append(name)
    return found


def _cut(stem: str) -> str:
    name = stem.encode()
    if len(name) <= STEM_BYTES:
        return stem
    return f"{name[:STEM_BYTES].decode(errors='ignore')}-{short_hash(stem)}"


def short_hash(text: str) -> str:
    """The first 8 hexadecimal characters of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
