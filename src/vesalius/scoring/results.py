"""An evaluation folder read back: metrics.json and samples.jsonl, every row checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesalius.errors import DataError

STATUSES = ("ok", "failed", "no_seg")

Row = Mapping[str, Any]
Key = tuple[str, str]
"""Id and prompt."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` wrote."""

    name: str
    facts: Mapping[str, Any]
    """metrics.json."""
    rows: Mapping[Key, Row]
    """samples.jsonl, in its order."""
    metrics: tuple[str, ...]
    """Those with a mean in metrics.json and a number or None in every row."""

    def failed(self, key: Key) -> bool:
        """Whether the row has no score."""
        return bool(self.rows[key]["status"] == "failed")


def read_evaluation(folder: Path, name: str) -> Evaluation:
    """The evaluation in a folder, called `name`.

    Raises DataError, naming file and line, for what cannot be read or is not strict JSON, a row that is there
    twice or lacks a field, a failed row with a score, and rows that are not those metrics.json has counted.
    """
    path = folder / "metrics.json"
    facts = _json_object(_bytes(path), str(path))
    for field in ("model", "data", "coverage", "mean"):
        if not isinstance(facts.get(field), dict):
            raise DataError(f"{path}: has no {field}, so it is not what evaluate writes")
    path = folder / "samples.jsonl"
    rows: dict[Key, Row] = {}
    metrics: tuple[str, ...] = ()
    for number, line in enumerate(_bytes(path).removesuffix(b"\n").split(b"\n"), start=1):
        place = f"{path}, line {number}"
        row = _json_object(line, place)
        if number == 1:  # a mean may be of the whole alone, as the share of answers with [SEG] is
            metrics = tuple(metric for metric in facts["mean"] if metric in row)
        _check_row(row, metrics, place)
        key = row["id"], row["prompt"]
        if key in rows:
            raise DataError(f"{place}: {key[0]} ({key[1]}) is there twice")
        rows[key] = row
    counted = {status: sum(row["status"] == status for row in rows.values()) for status in STATUSES}
    stated = {status: facts["coverage"].get(status) for status in STATUSES}
    if counted != stated:
        raise DataError(
            f"{folder}: samples.jsonl has {_counts(counted)}, but metrics.json counts {_counts(stated)}; they are not of one evaluation, or a file was cut short"
        )
    return Evaluation(name, facts, rows, metrics)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); name a folder that evaluate wrote"
        ) from error


def _json_object(text: bytes, place: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(text.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{place}: must be a JSON object; got {type(value).__name__}")
    return value


def _check_row(row: Row, metrics: Sequence[str], place: str) -> None:
    for field in ("id", "group", "prompt"):
        if not isinstance(row.get(field), str):
            raise DataError(f"{place}: {field} must be text; got {row.get(field)!r}")
    if row.get("status") not in STATUSES:
        raise DataError(f"{place}: status must be ok, failed or no_seg; got {row.get('status')!r}")
    for metric in metrics:
        if metric not in row:
            raise DataError(f"{place}: has no {metric}")
        value = row[metric]
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{place}: {metric} must be a number or null; got {value!r}")
        if row["status"] == "failed":
            raise DataError(f"{place}: failed, and yet {metric} is {value}; a failed row has no score")


def _counts(coverage: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {status}" for status, count in coverage.items())
