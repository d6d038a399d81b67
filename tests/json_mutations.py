"""Every way in which one value of a JSON document can be something else."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["Mutation", "mutations"]

# As JSON text, so that what no Python value becomes is there too.
_OTHERS = (
    "null",
    "true",
    '"text"',
    '""',
    '"\\u0000"',
    '"\\ud800"',
    '"../../etc/passwd"',
    "-1",
    "0",
    "1",
    "1.5",
    "1e999",
    "NaN",
    "1" + "0" * 30,
    "-9223372036854775809",
    "[]",
    "{}",
    '[[[["deep"]]]]',
    '{"unknown": {"unknown": 1}}',
)
_PLACE = "\ufffdplace\ufffd"


class Mutation(NamedTuple):
    """What was changed, and the whole document after it."""

    name: str
    text: str


def mutations(document: Any) -> Iterator[Mutation]:
    """Every value removed, or replaced by every other one; and entries added."""
    for path in _paths(document):
        name = ".".join(map(str, path))
        yield Mutation(f"{name} removed", json.dumps(_without(document, path)))
        text = json.dumps(_replaced(document, path, _PLACE))
        for other in _OTHERS:
            yield Mutation(f"{name} = {other[:30]}", text.replace(json.dumps(_PLACE), other))
        if isinstance(_at(document, path), dict):
            added = {**_at(document, path), "more": 1}
            yield Mutation(f"{name} with one more", json.dumps(_replaced(document, path, added)))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield (*path, key)
        yield from _paths(value[key], (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _replaced(document: Any, path: tuple[Any, ...], new: Any) -> Any:
    changed = copy.deepcopy(document)
    _at(changed, path[:-1])[path[-1]] = new
    return changed


def _without(document: Any, path: tuple[Any, ...]) -> Any:
    changed = copy.deepcopy(document)
    del _at(changed, path[:-1])[path[-1]]
    return changed
