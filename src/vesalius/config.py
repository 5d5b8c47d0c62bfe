"""Settings: strict pydantic models, read from YAML, with overrides such as `optim.lr=1e-4`.

An unknown key is an error that suggests the key with the same meaning, the same name in another section, or the closest
name. A wrong value is an error that says what was expected. Each package derives its settings from `Settings`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from vesalius.errors import SettingError
from vesalius.names import list_choices, nearest


class Settings(BaseModel):
    """Base class of all settings: frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)
    synonyms: ClassVar[Mapping[str, list[str]]] = {}
    """Another name of a setting, such as learning_rate -> the settings that it may mean, such as optim.lr."""

    def to_yaml(self) -> str:
        """The settings as YAML, including every default."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def changed(self, **values: Any) -> Self:
        """A validated copy with the given values replaced."""
        return type(self).model_validate({**self.model_dump(), **values})


TYPES = {str: "text", Path: "a path", bool: "true or false", int: "a whole number", float: "a number"}
BOUNDS = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}
"""Type, and limit of a number, -> its words in an error."""

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
        found = error.errors()
        # an unknown key explains a missing one
        first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
        name = ".".join(str(part) for part in first["loc"])
        path = origin if isinstance(origin, Path) else None
        if first["type"] == "extra_forbidden":
            name, hint = _nearest(kind, first["loc"], first["input"])
            message = f"{origin}: unknown setting {name}; {hint}"
            raise SettingError(message, code="unknown_setting", path=path, field=name) from error
        message = f"{origin}: {name + ': ' if name else ''}{_reason(kind, first)}"
        raise SettingError(message, code="bad_value", path=path, field=name or None) from error


def _nearest(kind: type[Settings], location: tuple[int | str, ...], value: Any) -> tuple[str, str]:
    """The full name of an unknown key, and a hint: the setting that it may mean, or the known keys of the section."""
    names = [str(part) for part in location]
    while isinstance(value, Mapping) and len(value) == 1:  # train.lr: the section is unknown, its key may be known
        [(key, value)] = value.items()
        names.append(str(key))
    section: Any = kind
    for depth, part in enumerate(location[:-1]):
        section = _section(_keys(section).get(str(part)))
        if section is None:  # the key of a mapping, or of one kind of several
            return ".".join(names), f"{'.'.join(names[: depth + 1])} has no such key"
    parent = ".".join(names[: len(location) - 1])
    known = list(_paths(kind))
    plain = names[-1].lower().replace("-", "_")
    meant = [
        *(each for each in known if each.rpartition(".")[2] == plain),
        *(each for name in (".".join(names), plain) for each in kind.synonyms.get(name, ()) if each in known),
    ]
    leaves = [each.rpartition(".")[2] for each in known]
    inside = [f"{parent}.{each}" if parent else each for each in _keys(section)]
    wrong = ".".join(names[: len(location)])
    meant = meant or [each for each in [nearest(wrong, inside, 0.85)] if each]
    if not meant and (close := nearest(plain, leaves, 0.75)):
        meant = [each for each in known if each.rpartition(".")[2] == close]
    if not meant and (close := nearest(plain, kind.synonyms, 0.8)):
        meant = kind.synonyms[close]
    if not meant and (close := nearest(names[len(location) - 1], _keys(section), 0.5)):
        meant = [f"{parent}.{close}" if parent else close]
    hint = f"did you mean {list_choices([*dict.fromkeys(meant)][:4])}?" if meant else ""
    return ".".join(names), hint or f"known keys: {', '.join(_keys(section))}"


def _paths(kind: type[Settings], prefix: str = "") -> Iterator[str]:
    """Names of all settings with dots, such as optim.lr."""
    for name, annotation in _keys(kind).items():
        yield prefix + name
        if (section := _section(annotation)) is not None:
            yield from _paths(section, f"{prefix}{name}.")


def _section(annotation: Any) -> type[Settings] | None:
    """The settings class of a key, also if it may be null; None for a plain value."""
    kinds = (annotation, *get_args(annotation))
    return next((each for each in kinds if isinstance(each, type) and issubclass(each, Settings)), None)


def _keys(kind: type[Settings]) -> dict[str, Any]:
    """Key in YAML -> type of its value."""
    return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}


def _reason(kind: type[Settings], error: Any) -> str:
    """What is wrong with a value: `expected a number greater than 0; got 'fast'`."""
    if error["type"] == "missing":
        return "is required"
    if error["type"] in ("value_error", "assertion_error"):
        return str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    expected = _expected(kind, error["loc"])
    value = error["input"]
    if isinstance(value, Mapping):
        shown = f"the keys {', '.join(map(str, value))}" if value else "no key"
    else:
        shown = "null" if value is None else repr(value)
    return f"expected {expected or str(error['msg']).removeprefix('Input should be ')}; got {shown}"


def _expected(kind: type[Settings], location: Sequence[int | str]) -> str | None:
    """Description of the values of a key, such as `a number greater than 0`; None for a type without one."""
    annotation: Any = kind
    bounds: list[Any] = []
    for part in location:
        section = _section(annotation)
        origin, inner = get_origin(annotation), get_args(annotation)
        if section is not None:
            field = next((each for name, each in section.model_fields.items() if part in (name, each.alias)), None)
            if field is None:
                return None
            annotation, bounds = field.annotation, [*field.metadata]
        elif origin in (tuple, list) and isinstance(part, int):
            annotation, bounds = inner[0 if inner[-1] is Ellipsis or origin is list else part], []
        elif origin is dict:
            annotation, bounds = inner[1], []
        if get_origin(annotation) in (Union, UnionType):
            [annotation, *others] = [each for each in get_args(annotation) if each is not NoneType]
            if others:
                return None
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            bounds += [limit for each in more for limit in getattr(each, "metadata", [each])]
    return _described(annotation, bounds)


def _described(annotation: Any, bounds: Sequence[Any]) -> str | None:
    origin = get_origin(annotation)
    if origin is Literal:
        return list_choices([str(each) for each in get_args(annotation)])
    if origin is tuple and get_args(annotation)[-1] is not Ellipsis:
        return f"a list of {len(get_args(annotation))} values, such as [{', '.join('ab'[: len(get_args(annotation))])}]"
    if origin in (tuple, list):
        return "a list, such as [a, b]"
    if origin is dict or _section(annotation) is not None:
        return "keys and values"
    name = TYPES.get(annotation)
    limits = [f"{words} {getattr(each, key)}" for each in bounds for key, words in BOUNDS.items() if hasattr(each, key)]
    if name is None or not limits:
        return name
    return f"{name} {'of ' if limits[0].startswith('at ') else ''}{' and '.join(limits)}"
