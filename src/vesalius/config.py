"""Settings: strict pydantic models, read from YAML and changed with `a.b=c`.

An unknown key is refused with the nearest name. Each room defines its own settings on `Settings`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from vesalius.errors import SettingError


class Settings(BaseModel):
    """Base of all settings: frozen, and no key that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)

    def to_yaml(self) -> str:
        """The settings as YAML, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def changed(self, **values: Any) -> Self:
        """The same settings with other values, checked again."""
        return type(self).model_validate({**self.model_dump(), **values})


S = TypeVar("S", bound=Settings)


class _Loader(yaml.SafeLoader):
    """YAML as `safe_load` reads it, but for a key that stands there twice, of which that would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, (key, _) in enumerate(node.value):
            if names[place] in names[:place]:
                raise yaml.constructor.ConstructorError(
                    problem=f"{names[place]} stands there twice", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)


def read_settings(kind: type[S], path: Path, changes: Sequence[str] = ()) -> S:
    """Settings of `kind` from a YAML file, after `changes` such as `optim.lr=1e-4`.

    Raises SettingError that names the file and the field.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a kind of SafeLoader
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: is not YAML ({' '.join(str(error).split())})") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise SettingError(f"{path}: must hold keys and values, not a {type(values).__name__}")
    return make_settings(kind, apply_changes(values, changes), str(path))


def apply_changes(values: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """`values` with each `a.b=c` applied; c is read as YAML, so 3, 1e-4, true, [1, 2] and text all work."""
    result = dict(values)
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or not name:
            raise SettingError(f"--set {change}: write it as name=value, for example optim.lr=1e-4")
        node = result
        *parents, last = name.split(".")
        for parent in parents:
            child = node.get(parent)
            # copied on the way down, so that the caller's mapping is left as it was
            node[parent] = dict(child) if isinstance(child, Mapping) else {}
            node = node[parent]
        node[last] = _parse_value(text, change)
    return result


def _parse_value(text: str, change: str) -> Any:
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or "unknown"
        raise SettingError(f"--set {change}: the value is not YAML ({reason})") from error
    if isinstance(value, str):
        try:  # YAML 1.1 reads 1e-4 as text because it has no dot
            return float(value) if "e" in value.lower() else value
        except ValueError:
            return value
    return value


def make_settings(kind: type[S], values: Mapping[str, Any], origin: str) -> S:
    """Settings of `kind` from plain values; SettingError in the words of `origin` when one is wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise SettingError(f"{origin}: unknown key {place}{_nearest(kind, first['loc'])}") from error
        message = first["msg"].removeprefix("Value error, ")
        raise SettingError(f"{origin}: {place + ': ' if place else ''}{message}") from error


def _nearest(kind: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """`; did you mean optim?` for the nearest key at that place, or the list of keys there."""
    for part in location[:-1]:
        annotation = _keys(kind).get(str(part))
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        kind = annotation
    names = list(_keys(kind))
    close = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(names)}"


def _keys(kind: type[BaseModel]) -> dict[str, Any]:
    """Key as it is typed -> its type."""
    return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
