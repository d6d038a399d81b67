"""Extents of dynamic dimensions by their names: a name, or a name divided by a number, as in "patches/4"."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["known_extent"]


def known_extent(dim: int | str, extents: Mapping[str, int]) -> int | None:
    """The extent of a dimension, where those of names are known; None: they do not say it."""
    if isinstance(dim, int):
        return dim
    if dim in extents:
        return extents[dim]
    name, _, divisor = dim.partition("/")
    if name not in extents or not divisor.isdecimal() or int(divisor) == 0:
        return None
    return extents[name] // int(divisor)
