"""Read dataclasses from JSON: every value has the type of its field, every error names its place in the file.

The dataclasses describe the format: a field without a default is required, an entry without a field is an error, and
`__post_init__` checks the rest. Knows no field by name.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import stat
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, Union

from sdrpn.errors import BadInput

__all__ = [
    "MOST_JSON_BYTES",
    "REQUIRED",
    "Misfit",
    "parse_json",
    "read_dataclass",
    "read_small_file",
    "require_regular",
    "shown",
]

T = TypeVar("T")

# The limit for a manifest: that of a 13B model with every variant has less than a tenth of it.
MOST_JSON_BYTES = 4 * 1024 * 1024
# Metadata for a field that has a default in Python, but is required in JSON.
REQUIRED: Mapping[str, bool] = types.MappingProxyType({"required in JSON": True})
Readers: TypeAlias = Mapping[Any, Callable[[object, str], Any]]
_NO_READERS: Readers = types.MappingProxyType({})
_MOST_WHOLE = 2**63
_SHOWN_CHARS = 60
_NAMES = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", type(None): "null"}


class Misfit(BadInput):
    """A value that does not fit its field: the place, the value, and what was expected."""


def read_dataclass(kind: type[T], value: object, place: str = "", readers: Readers = _NO_READERS) -> T:
    """An instance of a dataclass from what `json.loads` gives.

    Fields may be int, float, str, bool, None, Literal, Any, tuple, Mapping with text as keys, dataclasses, and unions.

    Args:
        place: of `value` in its file, such as `variants.fused-fp32`; nothing at the top
        readers: how some types are read that do not describe themselves: type -> function of value and place
    Raises: Misfit for the first value that does not fit
    """
    if not isinstance(value, dict):
        raise _misfit(place, value, "an object")
    known = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind))}
    for key in value:
        if key not in known:
            raise Misfit(f"{_inside(place, key)} is unknown; expected {', '.join(known)}")
    types_of, entries = _types(typing.cast(Any, kind)), {}
    for name, field in known.items():
        if name in value:
            entries[name] = _read(types_of[name], value[name], _inside(place, name), readers)
        elif _is_required(field):
            raise Misfit(f"{_inside(place, name)} is missing")
    try:
        return kind(**entries)
    except Misfit:
        raise
    except (BadInput, OverflowError) as error:  # raised by __post_init__
        raise Misfit(f"{place}: {error}" if place else str(error)) from error


def parse_json(content: bytes) -> Any:
    """Parse a JSON file. Raises Misfit for invalid JSON, including NaN and Infinity."""
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise Misfit("it is nested too deeply") from None
    except ValueError as error:
        raise Misfit(f"it is not JSON: {' '.join(str(error).split())[:200]}") from error


def read_small_file(path: Path, most_bytes: int = MOST_JSON_BYTES) -> bytes:
    """The content of a regular file. Never blocks on a pipe or a device.

    Raises: Misfit for anything but a regular file, and for a file larger than the limit; OSError
    """
    require_regular(path.stat())  # some kinds cannot even be opened
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        status = os.fstat(descriptor)
        require_regular(status)
        content = stream.read(most_bytes + 1) if status.st_size <= most_bytes else None
        if content is None or len(content) > most_bytes:
            raise Misfit(f"it has {status.st_size:,} bytes; expected at most {most_bytes:,}")
        return content


def require_regular(status: os.stat_result) -> None:
    """Raises Misfit for anything but a regular file."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise Misfit(f"it is {kinds.get(kind, 'a device')}, not a regular file")


def shown(value: object) -> str:
    """A value for a message: on one line, shortened."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _read(kind: Any, value: object, place: str, readers: Readers) -> Any:
    if kind is Any:
        return value
    if kind in readers:
        return readers[kind](value, place)
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        return _read_union(typing.get_args(kind), value, place, readers)
    if origin is Literal:
        if not isinstance(value, str) or value not in typing.get_args(kind):
            raise _misfit(place, value, " or ".join(typing.get_args(kind)))
        return value
    if origin is tuple:
        return _read_tuple(typing.get_args(kind), value, place, readers)
    if origin is Mapping:
        return _read_mapping(typing.get_args(kind)[1], value, place, readers)
    if dataclasses.is_dataclass(kind):
        return read_dataclass(typing.cast(type, kind), value, place, readers)
    return _read_plain(kind, value, place)


def _read_union(kinds: tuple[Any, ...], value: object, place: str, readers: Readers) -> Any:
    """The first kind that fits. An optional object says what is wrong inside it, not that it should be null."""
    if value is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    if len(others) == 1:
        return _read(others[0], value, place, readers)
    for kind in others:
        try:
            return _read(kind, value, place, readers)
        except Misfit:
            continue
    raise _misfit(place, value, " or ".join(_NAMES[kind] for kind in others))


def _read_tuple(kinds: tuple[Any, ...], value: object, place: str, readers: Readers) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _misfit(place, value, "a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        raise _misfit(place, value, f"a list of {len(kinds)}")
    return tuple(
        _read(kind, entry, f"{place}[{index}]", readers)
        for index, (kind, entry) in enumerate(zip(kinds, value, strict=True))
    )


def _read_mapping(kind: Any, value: object, place: str, readers: Readers) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _misfit(place, value, "an object")
    for key in value:
        _read_plain(str, key, f"a name in {place}")
    return {key: _read(kind, entry, _inside(place, key), readers) for key, entry in value.items()}


def _read_plain(kind: Any, value: object, place: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST_WHOLE:
        return float(value)
    fits = type(value) is kind
    if fits and isinstance(value, int) and not isinstance(value, bool):
        fits = abs(value) < _MOST_WHOLE
    if isinstance(value, float):
        fits = fits and math.isfinite(value)
    if isinstance(value, str):
        fits = fits and _is_text(value)
    if not fits:
        raise _misfit(place, value, _NAMES[kind])
    return value


def _is_text(value: str) -> bool:
    """Whether a text has neither lone surrogates nor null characters, which no file name may have."""
    try:
        return b"\0" not in value.encode("utf-8")
    except UnicodeEncodeError:
        return False


def _inside(place: str, key: str) -> str:
    name = key if key.isprintable() and len(key) <= _SHOWN_CHARS else shown(key)
    return f"{place}.{name}" if place else name


def _misfit(place: str, value: object, expected: str) -> Misfit:
    return Misfit(f"{place or 'it'} is {shown(value)}; expected {expected}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _is_required(field: dataclasses.Field[Any]) -> bool:
    defaults = (field.default, field.default_factory)
    return REQUIRED.items() <= field.metadata.items() or all(default is dataclasses.MISSING for default in defaults)


@functools.cache
def _types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
