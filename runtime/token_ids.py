"""Token ids as users pass them. Knows no vocabulary."""

from __future__ import annotations

import collections.abc as abc
import operator

from sdrpn.errors import BadInput

__all__ = ["ids_of"]

_MOST_ID = 2**31
_EXPECTED = "expected token ids: a list of integers"


def ids_of(name: str, ids: object) -> tuple[int, ...]:
    """Token ids as a tuple.

    Args:
        name: what they were passed as
        ids: integers of any library, in anything that gives them one by one
    Raises: BadInput for anything else, such as a text, or numbers with a fraction.
    """
    if isinstance(ids, (str, bytes)) or not isinstance(ids, abc.Iterable):
        raise BadInput(f"{name} is {repr(ids)[:60]}; {_EXPECTED}")
    return tuple(_id_of(name, token_id) for token_id in ids)


def _id_of(name: str, token_id: object) -> int:
    try:
        found = operator.index(token_id)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = None
    if found is None or isinstance(token_id, bool) or abs(found) > _MOST_ID:
        raise BadInput(f"{name} has {repr(token_id)[:60]} in it; {_EXPECTED}")
    return found
