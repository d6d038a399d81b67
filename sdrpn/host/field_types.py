"""Check that the fields of a dataclass have the types that it declares, for objects that users make.

A number that is none of Python's own, such as NumPy's, is a number too; a list may stand for a tuple. A text is no list
of texts, and True is no number. Knows no field by name.
"""

from __future__ import annotations

import builtins
import collections.abc as abc
import dataclasses
import functools
import inspect
import os
import sys
import types
import typing
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Literal, Union

from sdrpn.errors import BadInput

__all__ = ["CheckedFields", "require_field_types", "require_type"]

_NAMES = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a text",
    bytes: "bytes",
    Path: "a path",
    type(None): "None",
    abc.Callable: "a function",
}
_NUMBERS = {int: Integral, float: Real}
_LISTS = (abc.Sequence, abc.Collection, abc.Iterable, list, tuple)
_SHOWN_CHARS = 60


class CheckedFields:
    """A frozen dataclass of what somebody asks for: values of other types are refused where it is made, with BadInput.

    A subclass with checks of its own calls `super().__post_init__()` first.
    """

    # Fields that are refused elsewhere, in words of their own.
    checked_elsewhere: ClassVar[Collection[str]] = ()

    def __post_init__(self) -> None:
        """As dataclasses call it. Raises BadInput."""
        require_field_types(self, except_for=self.checked_elsewhere)


def require_field_types(value: object, *, except_for: Collection[str] = ()) -> None:
    """Raise BadInput for the first field of a dataclass whose value is not of its declared type.

    A type that is imported for type checkers alone is not checked.
    """
    kind: Any = type(value)
    for name, declared in _declared(kind).items():
        found = getattr(value, name)
        if name not in except_for:
            require_type(name, found, declared)


def require_type(name: str, value: object, declared: Any) -> None:
    """Raise BadInput for a value that is not of a type, or has not the methods of a protocol. `name`: of the value."""
    if not _fits(value, declared):
        raise BadInput(f"{name} is {_shown(value)}; expected {_described(declared)}")


@functools.cache
def _declared(kind: type[Any]) -> Mapping[str, Any]:
    """The type of every field."""
    found: dict[str, Any] = {}
    for owner in reversed(kind.__mro__):
        # Of this class alone: fields of others are evaluated where they are declared.
        own = inspect.get_annotations(owner)
        found |= {name: _evaluated(text, owner.__module__) for name, text in own.items()}
    return {field.name: found[field.name] for field in dataclasses.fields(kind)}


def _evaluated(annotation: object, module: str) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, {**vars(builtins), **vars(sys.modules[module])})
    except NameError:  # imported for type checkers alone
        return Any


def _fits(value: object, declared: Any) -> bool:
    origin, inner = typing.get_origin(declared), typing.get_args(declared)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in inner)
    if origin in _LISTS or (origin is None and declared in (list, tuple)):
        return _is_list(value, inner)
    if origin in (abc.Callable, abc.Mapping, dict):
        return callable(value) if origin is abc.Callable else isinstance(value, abc.Mapping)
    kind = declared if origin is None else origin
    if declared is None:
        return value is None
    if not isinstance(kind, type) or kind in (object, Any):
        return True
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, name) for name in _members(kind))
    if kind in _NUMBERS:
        return isinstance(value, _NUMBERS[kind]) and not isinstance(value, bool)
    return isinstance(value, os.PathLike if kind is Path else kind)


@functools.cache
def _members(protocol: type[Any]) -> tuple[str, ...]:
    """What a protocol asks for."""
    own = (name for owner in protocol.__mro__ if getattr(owner, "_is_protocol", False) for name in vars(owner))
    return tuple(name for name in own if name == "__call__" or not name.startswith("_"))


def _is_list(value: object, inner: tuple[Any, ...]) -> bool:
    if isinstance(value, (str, bytes, abc.Mapping)) or not isinstance(value, abc.Collection):
        return False
    if len(inner) > 1 and inner[1] is not Ellipsis:
        return len(value) == len(inner) and all(map(_fits, value, inner))
    return not inner or all(_fits(entry, inner[0]) for entry in value)


def _described(declared: Any) -> str:
    origin, inner = typing.get_origin(declared), typing.get_args(declared)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, types.UnionType):
        *others, last = dict.fromkeys(map(_described, inner))
        return f"{', '.join(others)} or {last}" if others else last
    if origin in _LISTS:
        if len(inner) > 1 and inner[1] is not Ellipsis:
            return f"{len(inner)} values: {', '.join(map(_described, inner))}"
        return f"a list, each {_described(inner[0])}" if inner else "a list"
    if origin is abc.Callable:
        return "a function"
    if origin in (abc.Mapping, dict):
        return "a mapping"
    kind = declared if origin is None else origin
    return _NAMES.get(kind) or ("None" if kind is None else str(getattr(kind, "__name__", kind)))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."
