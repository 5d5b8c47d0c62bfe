"""Check how public functions are called: a wrong argument is a SettingError with a code, not a TypeError."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import wraps
from types import UnionType
from typing import Any, ParamSpec, TypeVar

from vesalius.errors import SettingError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function with a SettingError for an unknown, missing or surplus argument."""
    signature = inspect.signature(function)
    special = {"__call__": "predictor", "__init__": function.__qualname__.partition(".")[0]}
    name = special.get(function.__name__, function.__name__)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except TypeError:
            try:  # only now, because types are built thousands of times
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise _wrong_call(name, signature, kwargs, str(error)) from None
            raise

    return call


def checked_init(kind: type[T]) -> type[T]:
    """The class with a constructor that is `checked`."""
    setattr(kind, "__init__", checked(kind.__init__))  # noqa: B010, mypy forbids assigning to a method
    return kind


def _wrong_call(name: str, signature: inspect.Signature, given: dict[str, Any], reason: str) -> SettingError:
    known = [parameter for parameter in signature.parameters if parameter != "self"]
    if unknown := [each for each in given if each not in known]:
        close = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"its arguments are {', '.join(known)}"
        message = f"{name} has no argument {unknown[0]}; {hint}"
        return SettingError(message, code="unknown_setting", field=unknown[0])
    return SettingError(f"{name}: {reason}; its arguments are {', '.join(known)}", code="bad_value")


def check_kind(value: object, kinds: type | UnionType, name: str, expected: str) -> None:
    """Raise SettingError `NAME must be EXPECTED` unless the value is an instance of `kinds`; a bool is no number."""
    if not isinstance(value, kinds) or isinstance(value, bool):
        message = f"{name} must be {expected}; got {describe(value)}"
        raise SettingError(message, code="bad_value", field=name)


def check_callable(value: object, name: str, expected: str) -> None:
    """Raise SettingError `NAME must be EXPECTED` unless the value can be called."""
    if not callable(value):
        raise SettingError(f"{name} must be {expected}; got {describe(value)}", code="bad_value", field=name)


def describe(value: object) -> str:
    """A value in an error message: its type, and its repr if that is short."""
    shown = repr(value)
    return f"{type(value).__name__} {shown}" if len(shown) <= 40 and value is not None else type(value).__name__
