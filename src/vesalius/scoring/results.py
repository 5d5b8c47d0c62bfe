"""Read an evaluation folder back: metrics.json and samples.jsonl, with every row checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from vesalius.errors import DataError
from vesalius.types import Status

OPEN = ConfigDict(strict=True, extra="allow")
"""Declared fields are checked strictly; unknown fields are kept."""
METRICS_FILE, ROWS = "metrics.json", "samples.jsonl"
MAX_PROMPTS = 50
"""Maximum number of prompts for results by prompt; with more, a note says that they are left out."""

T = TypeVar("T")

ResultRow = dict[str, Any]
"""One line of samples.jsonl: the scores of one prompt on one sample."""
ResultKey = tuple[str, str]
"""Sample id and prompt."""


class _MetricsFile(BaseModel):
    """Fields of metrics.json that a comparison needs."""

    model_config = OPEN
    model: dict[str, Any]
    data: dict[str, Any]
    coverage: dict[str, Any]
    mean: dict[str, Any]


class _Row(BaseModel):
    """Fields that every row has besides the metrics in metrics.json."""

    model_config = OPEN
    id: str
    group: str
    prompt: str
    status: Status
    unknown_phrase: bool = False


_METRICS_FILE, _ROW = TypeAdapter[Any](_MetricsFile), TypeAdapter[Any](_Row)
_SCORES = TypeAdapter[Any](dict[str, Annotated[float, Field(strict=True, allow_inf_nan=False)] | None])
_NO_SCORES = TypeAdapter[Any](dict[str, None])


@dataclass(frozen=True)
class Evaluation:
    """Results of `evaluate`, read from its folder."""

    name: str
    facts: Mapping[str, Any]
    """Content of metrics.json."""
    rows: Mapping[ResultKey, ResultRow]
    """Rows of samples.jsonl, in its order."""
    metrics: tuple[str, ...]
    """Metrics with a mean in metrics.json and a number or None in every row."""

    def failed(self, key: ResultKey) -> bool:
        """True if the row has no score."""
        return bool(self.rows[key]["status"] == "failed")


def read_evaluation(folder: Path, name: str) -> Evaluation:
    """Read an evaluation folder; `name` is its name in the comparison.

    DataError, naming file, line and field, for a file that cannot be read or is not JSON, a duplicate row, a missing or
    invalid field, a failed row with a score, and rows that disagree with the counts in metrics.json.
    """
    path = folder / METRICS_FILE
    facts = dict(parse(_METRICS_FILE, read_bytes(path), path))
    path = folder / ROWS
    rows: dict[ResultKey, ResultRow] = {}
    metrics: tuple[str, ...] = ()
    for number, line in enumerate(split_lines(read_bytes(path)), start=1):
        row = dict(parse(_ROW, line, path, number))
        if number == 1:  # a mean without a column, such as the [SEG] rate, is not compared
            metrics = tuple(metric for metric in facts["mean"] if metric in row)
        scores = {metric: row.get(metric, "missing") for metric in metrics}
        parse(_NO_SCORES if row["status"] == "failed" else _SCORES, scores, path, number)
        key = row["id"], row["prompt"]
        if key in rows:
            raise duplicate(path, number, key)
        rows[key] = row
    _check_counts(folder, facts["coverage"], rows)
    return Evaluation(name, facts, rows, metrics)


def parse(
    schema: TypeAdapter[T], value: Any, path: Path, line: int | None = None, *, code: str = "invalid_results"
) -> T:
    """Validate JSON bytes or a value against a schema; DataError names file, line and field of an invalid value."""
    where = str(path) if line is None else f"{path}, line {line}"
    if isinstance(value, bytes) and (b"NaN" in value or b"Infinity" in value):
        _check_constants(value, where, path, code)
    try:
        return schema.validate_json(value) if isinstance(value, bytes) else schema.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{where}: {f'{field}: ' if field else ''}{first['msg']}; got {first['input']!r:.80}",
            code=code,
            path=path,
            field=field if line is None else f"line {line}, {field}",
        ) from error


def _check_constants(content: bytes, where: str, path: Path, code: str) -> None:
    """DataError for NaN and Infinity, which pydantic reads although JSON has no such numbers."""

    def refuse(constant: str) -> None:
        raise DataError(f"{where}: {constant} is not JSON; write null instead", code=code, path=path)

    with suppress(ValueError, RecursionError):  # pydantic names other faults
        json.loads(content, parse_constant=refuse)


def shown(key: ResultKey) -> str:
    """A key as text: `id (prompt)`, or the id alone if the prompt is empty."""
    return f"{key[0]} ({key[1]})" if key[1] else key[0]


def duplicate(path: Path, line: int, key: ResultKey) -> DataError:
    """The error for a duplicate id and prompt."""
    message = f"{path}, line {line}: {shown(key)} is a duplicate"
    return DataError(message, code="duplicate_id", path=path, field=f"line {line}")


def _check_counts(folder: Path, coverage: Mapping[str, Any], rows: Mapping[ResultKey, ResultRow]) -> None:
    statuses = [row["status"] for row in rows.values()]
    counted = {status: statuses.count(status) for status in ("ok", "failed", "no_seg")}
    stated = {status: coverage.get(status) for status in counted}
    if counted != stated:
        raise DataError.at(
            folder,
            f"{ROWS} has {_list_counts(counted)}, but {METRICS_FILE} counts {_list_counts(stated)}; "
            "the files belong to different evaluations, or one is truncated",
            code="invalid_results",
        )


def read_bytes(path: Path) -> bytes:
    """Content of a file; DataError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError.at(path, f"cannot be read ({error.strerror})", code="not_found") from error


def split_lines(content: bytes) -> list[bytes]:
    """Lines of a JSON Lines file, split at newlines only; `splitlines` also splits at carriage returns."""
    return content.removesuffix(b"\n").split(b"\n") if content else []


def _list_counts(coverage: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {status}" for status, count in coverage.items())
