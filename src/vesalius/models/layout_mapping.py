"""Mapping of tensor rows between the official layout and a bundle, by the key tables of `keymaps`.

Each row of a tensor is an unchanged row of another tensor, so conversion only copies bytes.
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
from vesalius.models.keymaps import DROPPED, PROJECTOR, SAM2, KeyRule
from vesalius.models.specs import ModelSpec, TensorShape
from vesalius.names import list_names

WILDCARDS = {"{}": r"(\d+)", "{p}": "(weight|bias)", "{a}": "([qkv])", "{*}": "(.+)"}


@dataclass(frozen=True)
class Rows:
    """`count` rows of the tensor `source`, starting at row `first`."""

    source: str
    first: int
    count: int


@dataclass(frozen=True)
class Assembly:
    """A tensor defined as the concatenation of rows of other tensors."""

    shape: TensorShape
    rows: tuple[Rows, ...]


@dataclass(frozen=True)
class Piece:
    """Rows `first` to `first + rows` of an official tensor, equal to rows `start` to `start + rows` of a bundle tensor."""

    official: str
    first: int
    bundle: str
    start: int
    rows: int


def rules_of(spec: ModelSpec) -> tuple[KeyRule, ...]:
    """The key tables of a model: vision-language model, [SEG] projector, SAM 2."""
    return (*family_of(spec.family).rules(spec), *PROJECTOR, *SAM2)


def to_bundle(spec: ModelSpec, shapes: Mapping[str, TensorShape]) -> tuple[dict[str, Assembly], dict[str, str]]:
    """The assembly of each bundle tensor from official ones, and the reason for each dropped official name.

    CheckpointError with the first ten names that no key table contains.
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
    rows = [(piece.bundle, piece.start, Rows(piece.official, piece.first, piece.rows)) for piece in pieces]
    return _assemble(rows, shapes), dropped


def to_official(spec: ModelSpec, shapes: Mapping[str, TensorShape]) -> dict[str, Assembly]:
    """The assembly of each official tensor from bundle tensors.

    If the bundle has several copies of a tensor, the first is used. CheckpointError as in `to_bundle`.
    """
    pieces: list[Piece] = []
    rules = rules_of(spec)
    for name, shape in shapes.items():
        for rule, filling in _matches(rules, name, "bundle"):
            official = _fill(rule.official, filling)
            pieces += _pieces(rule, official, filling, _official_rows(rule, _rows_of(name, shape), spec), spec)
    known = {piece.bundle for piece in pieces}
    _refuse([name for name in shapes if name not in known], f"a bundle of {spec.name}")
    _refuse([name for name in known if name not in shapes], f"a bundle of {spec.name}", "lacks")
    first_copies = {(piece.official, piece.first): piece for piece in reversed(pieces)}.values()
    rows = [(piece.official, piece.first, Rows(piece.bundle, piece.start, piece.rows)) for piece in first_copies]
    return _assemble(rows, shapes)


def _rows_of(name: str, shape: TensorShape) -> int:
    if not shape:
        raise CheckpointError(
            f"{name}: is a scalar, but this tensor must have rows", code="weights_mismatch", field=name
        )
    return shape[0]


def _pieces(rule: KeyRule, official: str, filling: tuple[str, ...], rows: int, spec: ModelSpec) -> list[Piece]:
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
    """`wqkv` split by group: with 2 queries per group and 4 rows per head, rows 0-7 are queries, 8-11 key, 12-15 value."""
    head = rows // (groups * (queries + 2))
    parts = ((0, queries * head), (queries * head, head), ((queries + 1) * head, head))
    for group in range(groups):
        start = group * (queries + 2) * head
        for name, (offset, count) in zip(names, parts, strict=True):
            yield Piece(official, start + offset, name, group * count, count)


def _heads(spec: ModelSpec) -> tuple[int, int]:
    """Number of queries per key-value head, and number of key-value heads."""
    text = spec.vlm["text_config"]
    groups = text["num_key_value_heads"]
    return text["num_attention_heads"] // groups, groups


def _official_rows(rule: KeyRule, rows: int, spec: ModelSpec) -> int:
    """Number of rows of the official tensor, if the first bundle tensor of the rule has `rows`."""
    match rule.layout:
        case "whole" | "copies":
            return rows
        case "thirds":
            return 3 * rows
        case "groups":
            queries, _ = _heads(spec)
            return rows // queries * (queries + 2)
    return 1


def _assemble(rows: list[tuple[str, int, Rows]], shapes: Mapping[str, TensorShape]) -> dict[str, Assembly]:
    parts: dict[str, list[tuple[int, Rows]]] = {}
    for name, start, part in rows:
        parts.setdefault(name, []).append((start, part))
    assemblies = {}
    for name, placed in parts.items():
        placed.sort(key=lambda pair: pair[0])
        ordered = tuple(part for _, part in placed)
        ends = [0, *accumulate(part.count for part in ordered)]
        tails = {shapes[part.source][1:] for part in ordered}
        if [start for start, _ in placed] != ends[:-1] or len(tails) != 1:
            sources = sorted({part.source for part in ordered})
            raise CheckpointError(
                f"{name}: cannot be assembled from {', '.join(sources)}: rows are missing or shapes differ",
                code="weights_mismatch",
                field=name,
            )
        assemblies[name] = Assembly((ends[-1], *tails.pop()), ordered)
    return assemblies


def _matches(
    rules: Iterable[KeyRule], name: str, side: Literal["official", "bundle"]
) -> Iterator[tuple[KeyRule, tuple[str, ...]]]:
    """The rules that match an official name, or a rule's first bundle name, each with the values of its wildcards."""
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


def _refuse(names: list[str], what: str, verb: str = "has unknown") -> None:
    if names:
        raise CheckpointError(
            f"{what} {verb} tensors ({len(names)}): {list_names(sorted(names), 10)}", code="weights_mismatch"
        )
