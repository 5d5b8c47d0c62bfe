"""The official layout of a model and that of a bundle: each tensor of one is made of rows of the other's.

Every relation between the two is one of rows: rows of one tensor are rows of another, so that conversion moves bytes and
computes nothing. The tables of names are in `keymaps`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Literal

from vesalius.errors import CheckpointError
from vesalius.models.families.table import family_of
from vesalius.models.keymaps import DROPPED, PROJECTOR, SAM2, Rule
from vesalius.models.specs import ModelSpec, Shape

WILDCARDS = {"{}": r"(\d+)", "{p}": "(weight|bias)", "{a}": "([qkv])", "{*}": "(.+)"}


@dataclass(frozen=True)
class Rows:
    """`count` rows of the tensor `source`, from row `first` on."""

    source: str
    first: int
    count: int


@dataclass(frozen=True)
class Assembly:
    """A tensor made of rows of others, one after the other."""

    shape: Shape
    rows: tuple[Rows, ...]


@dataclass(frozen=True)
class Piece:
    """Rows `first` to `first + rows` of an official tensor are rows `place` to `place + rows` of a bundle's."""

    official: str
    first: int
    bundle: str
    place: int
    rows: int


def rules_of(spec: ModelSpec) -> tuple[Rule, ...]:
    """The key tables of a model: vision-language model, [SEG] projector, SAM 2."""
    return (*family_of(spec.family).rules(spec), *PROJECTOR, *SAM2)


def to_bundle(spec: ModelSpec, shapes: Mapping[str, Shape]) -> tuple[dict[str, Assembly], dict[str, str]]:
    """Each tensor of the bundle, assembled of official ones; and what was dropped, with the reason.

    CheckpointError with the first ten names that no table knows.
    """
    pieces, dropped, unknown = [], {}, []
    rules = rules_of(spec)
    for name, shape in shapes.items():
        found = next(_matches(rules, name, "official"), None)
        reason = next((why for template, why in DROPPED.items() if _pattern(template).fullmatch(name)), None)
        if found is not None:
            pieces += _pieces(found[0], name, found[1], _rows_of(name, shape), spec)
        elif reason is not None:
            dropped[name] = reason
        else:
            unknown.append(name)
    _refuse(unknown, f"an official {spec.name}")
    rows = [(piece.bundle, piece.place, Rows(piece.official, piece.first, piece.rows)) for piece in pieces]
    return _assemble(rows, shapes), dropped


def to_official(spec: ModelSpec, shapes: Mapping[str, Shape]) -> dict[str, Assembly]:
    """Each official tensor, assembled of the bundle's: the same tables the other way.

    Where several tensors of the bundle are copies of one, the first is read. CheckpointError as for `to_bundle`.
    """
    pieces: list[Piece] = []
    rules = rules_of(spec)
    for name, shape in shapes.items():
        for rule, filling in _matches(rules, name, "bundle"):
            official = _fill(rule.official, filling)
            pieces += _pieces(
                rule, official, filling, _official_rows(rule, _rows_of(name, shape), spec), spec
            )
    known = {piece.bundle for piece in pieces}
    _refuse([name for name in shapes if name not in known], f"a bundle of {spec.name}")
    _refuse([name for name in known if name not in shapes], f"a bundle of {spec.name}", "lacks")
    first_copies = {(piece.official, piece.first): piece for piece in reversed(pieces)}.values()
    rows = [
        (piece.official, piece.first, Rows(piece.bundle, piece.place, piece.rows)) for piece in first_copies
    ]
    return _assemble(rows, shapes)


def _rows_of(name: str, shape: Shape) -> int:
    if not shape:
        raise CheckpointError(f"{name}: is a single number; a tensor of that name has rows")
    return shape[0]


def _pieces(rule: Rule, official: str, filling: tuple[str, ...], rows: int, spec: ModelSpec) -> list[Piece]:
    names = [_fill(template, filling) for template in rule.bundle]
    match rule.layout:
        case "whole" | "copies":
            return [Piece(official, 0, name, 0, rows) for name in names]
        case "thirds":
            third = rows // 3
            return [Piece(official, i * third, name, 0, third) for i, name in enumerate(names)]
        case "groups":
            return list(_groups(official, names, rows, *_heads(spec)))
    return [Piece(official, 0, names[0], int(rule.layout.removeprefix("row ")), 1)]


def _groups(official: str, names: list[str], rows: int, queries: int, groups: int) -> Iterator[Piece]:
    """Worked case: 2 queries a group, 4 rows a head: rows 0-7 of a group are queries, 8-11 the key, 12-15 the value."""
    head = rows // (groups * (queries + 2))
    parts = ((0, queries * head), (queries * head, head), ((queries + 1) * head, head))
    for group in range(groups):
        start = group * (queries + 2) * head
        for name, (offset, count) in zip(names, parts, strict=True):
            yield Piece(official, start + offset, name, group * count, count)


def _heads(spec: ModelSpec) -> tuple[int, int]:
    """Queries of each key-value head, and key-value heads."""
    text = spec.vlm["text_config"]
    groups = text["num_key_value_heads"]
    return text["num_attention_heads"] // groups, groups


def _official_rows(rule: Rule, rows: int, spec: ModelSpec) -> int:
    """Rows of the official tensor of which the first of the rule's bundle tensors has `rows`."""
    match rule.layout:
        case "whole" | "copies":
            return rows
        case "thirds":
            return 3 * rows
        case "groups":
            queries, _ = _heads(spec)
            return rows // queries * (queries + 2)
    return 1


def _assemble(rows: list[tuple[str, int, Rows]], shapes: Mapping[str, Shape]) -> dict[str, Assembly]:
    parts: dict[str, list[tuple[int, Rows]]] = {}
    for name, place, part in rows:
        parts.setdefault(name, []).append((place, part))
    assemblies = {}
    for name, placed in parts.items():
        placed.sort(key=lambda pair: pair[0])
        ordered = tuple(part for _, part in placed)
        ends = [0, *accumulate(part.count for part in ordered)]
        tails = {shapes[part.source][1:] for part in ordered}
        if [place for place, _ in placed] != ends[:-1] or len(tails) != 1:
            sources = sorted({part.source for part in ordered})
            raise CheckpointError(
                f"{name}: cannot be made of {', '.join(sources)}: a part is missing or misshapen"
            )
        assemblies[name] = Assembly((ends[-1], *tails.pop()), ordered)
    return assemblies


def _matches(
    rules: Iterable[Rule], name: str, side: Literal["official", "bundle"]
) -> Iterator[tuple[Rule, tuple[str, ...]]]:
    """The rules whose official name, or whose first name in the bundle, is this one; and what fills the template."""
    for rule in rules:
        template = rule.official if side == "official" else rule.bundle[0]
        if found := _pattern(template).fullmatch(name):
            yield rule, found.groups()


@cache
def _pattern(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for wildcard, meaning in WILDCARDS.items():
        pattern = pattern.replace(re.escape(wildcard), meaning)
    return re.compile(pattern)


def _fill(template: str, filling: tuple[str, ...]) -> str:
    values = iter(filling)
    return re.sub(r"\{[pa*]?\}", lambda _: next(values), template)


def _refuse(names: list[str], what: str, verb: str = "has") -> None:
    if names:
        listed = ", ".join(sorted(names)[:10])
        raise CheckpointError(
            f"{what} {verb} {len(names)} tensors that do not belong together with it: {listed}"
        )
