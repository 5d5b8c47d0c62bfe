"""Settings: strict pydantic models, read from YAML, with overrides such as `optim.lr=1e-4`.

An unknown key is an error that suggests the closest key. Each package derives its settings from `Settings`.
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
    """Base class of all settings: frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)

    def to_yaml(self) -> str:
        """The settings as YAML, including every default."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def changed(self, **values: Any) -> Self:
        """A validated copy with the given values replaced."""
        return type(self).model_validate({**self.model_dump(), **values})


S = TypeVar("S", bound=Settings)


class _Loader(yaml.SafeLoader):
    """SafeLoader that rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, (key, _) in enumerate(node.value):
            if names[index] in names[:index]:
                raise yaml.constructor.ConstructorError(
                    problem=f"duplicate key {names[index]}", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)


def read_settings(kind: type[S], path: Path, changes: Sequence[str] = ()) -> S:
    """Settings of type `kind` from a YAML file, with overrides `changes` such as `optim.lr=1e-4`.

    Raises SettingError, naming the file and the field.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a subclass of SafeLoader
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror})"
        raise SettingError(message, code="unreadable_file", path=path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = f"{path}: is not YAML ({' '.join(str(error).split())})"
        raise SettingError(message, code="not_yaml", path=path) from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        message = f"{path}: must contain keys and values, not a {type(values).__name__}"
        raise SettingError(message, code="not_yaml", path=path)
    return make_settings(kind, apply_changes(values, changes), path)


def apply_changes(values: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """`values` with each `a.b=c` applied; c is parsed as YAML: 3, 1e-4, true, [1, 2] or text."""
    result = dict(values)
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or not name:
            message = f"--set {change}: write it as name=value, for example optim.lr=1e-4"
            raise SettingError(message, code="malformed_change", field=change)
        node = result
        *parents, last = name.split(".")
        for parent in parents:
            child = node.get(parent)
            # a copy at each level leaves the caller's mapping unchanged
            node[parent] = dict(child) if isinstance(child, Mapping) else {}
            node = node[parent]
        node[last] = _parse_value(text, change, name)
    return result


def _parse_value(text: str, change: str, name: str) -> Any:
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        message = f"--set {change}: the value is not YAML ({getattr(error, 'problem', None) or 'unknown'})"
        raise SettingError(message, code="not_yaml", field=name) from error
    if isinstance(value, str):
        try:  # YAML 1.1 reads 1e-4 as text because it has no dot
            return float(value) if "e" in value.lower() else value
        except ValueError:
            return value
    return value


def make_settings(kind: type[S], values: Mapping[str, Any], origin: str | Path) -> S:
    """Settings of type `kind` from plain values; the message of a SettingError begins with `origin`, a file or a flag."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        path = origin if isinstance(origin, Path) else None
        if first["type"] == "extra_forbidden":
            message = f"{origin}: unknown key {name}{_nearest(kind, first['loc'])}"
            raise SettingError(message, code="unknown_setting", path=path, field=name) from error
        message = f"{origin}: {name + ': ' if name else ''}{first['msg'].removeprefix('Value error, ')}"
        raise SettingError(message, code="bad_value", path=path, field=name or None) from error


def _nearest(kind: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Hint for an unknown key: `; did you mean optim?`, or the known keys of the section if none is similar."""
    for part in location[:-1]:
        annotation = _keys(kind).get(str(part))
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        kind = annotation
    names = list(_keys(kind))
    close = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(names)}"


def _keys(kind: type[BaseModel]) -> dict[str, Any]:
    """Key in YAML -> type of its value."""
    return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
