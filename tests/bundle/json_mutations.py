"""Every way in which one value of a JSON document can be something else."""

from __future__ import annotations

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
_REMOVED, _MORE = "(removed)", "(one more)"

Place = tuple[Any, ...]


class Mutation(NamedTuple):
    """The replacements of one value."""

    place: Place
    other: str  # JSON text

    @property
    def name(self) -> str:
        """For messages."""
        return f"{'.'.join(map(str, self.place))} = {self.other[:30]}"

    def applied(self, document: Any) -> str:
        """The whole text of the document after it."""
        if self.other == _REMOVED:
            return json.dumps(_changed(document, self.place, remove=True))
        if self.other == _MORE:
            return json.dumps(_changed(document, self.place, {**_at(document, self.place), "more": 1}))
        return json.dumps(_changed(document, self.place, _PLACE)).replace(json.dumps(_PLACE), self.other)


def mutations(document: Any) -> list[Mutation]:
    """Every value removed, or replaced by every other one; and entries added."""
    found = []
    for place in _places(document):
        found += [Mutation(place, other) for other in (_REMOVED, *_OTHERS)]
        if isinstance(_at(document, place), dict):
            found.append(Mutation(place, _MORE))
    return found


def _places(value: Any, place: Place = ()) -> Iterator[Place]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield (*place, key)
        yield from _places(value[key], (*place, key))


def _at(value: Any, place: Place) -> Any:
    for key in place:
        value = value[key]
    return value


def _changed(value: Any, place: Place, new: Any = None, *, remove: bool = False) -> Any:
    """A copy, of which only what lies on the way is new."""
    key, *rest = place
    copied = value.copy()
    if rest:
        copied[key] = _changed(value[key], tuple(rest), new, remove=remove)
    elif remove:
        del copied[key]
    else:
        copied[key] = new
    return copied
