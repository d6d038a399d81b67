"""Stored prefixes: cache rows of earlier pictures, saved when their slot is used for another picture.

The least recently used are dropped first when the limit is reached. A prefix that a slot still holds is copied from
there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

from sdrpn.runtime.slots import Prefix, Slot, Slots, Snapshot

__all__ = ["DEFAULT_PREFIX_BYTES", "PrefixStore"]

# The limit where buffers are in the host's memory; on a GPU, where all memory is planned for, it is 0.
DEFAULT_PREFIX_BYTES = 256_000_000


class PrefixStore:
    """At most `limit_bytes` of rows; used by the working thread only."""

    def __init__(
        self, slots: Slots, limit_bytes: int, may_grow: Callable[[int], bool] = lambda size_bytes: True
    ) -> None:
        """Args: may_grow: whether this many bytes of memory may be allocated"""
        self._slots, self._limit_bytes, self._may_grow = slots, limit_bytes, may_grow
        self._kept: OrderedDict[Prefix, Snapshot] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """Bytes in use."""
        return sum(snapshot.size_bytes for snapshot in self._kept.values())

    def keep(self, slot: Slot) -> None:
        """Save a slot's prefix before the slot is reused. Nothing is copied if as much is already stored."""
        prefix = slot.prefix
        if prefix is None or not slot.holds(prefix) or self._holder(prefix, slot) is not None:
            return
        known = self._kept.get(prefix)
        if known is not None and all(known.valid[name] >= rows for name, rows in slot.prefix_rows.items()):
            self._kept.move_to_end(prefix)
            return
        size_bytes = self._slots.prefix_bytes(slot)
        if size_bytes > self._limit_bytes or not self._may_grow(size_bytes):
            return
        self._kept.pop(prefix, None)
        while self.size_bytes + size_bytes > self._limit_bytes:
            self._kept.popitem(last=False)
        with suppress(MemoryError):
            self._kept[prefix] = self._slots.snapshot(slot)

    def exchange(self, slot: Slot, wanted: Prefix, make_room: Callable[[], None]) -> None:
        """Save a slot's prefix; after `make_room`, restore `wanted` into it, if it is stored."""
        kept = self._kept.get(wanted)  # held, in case saving the other one evicts it
        if kept is not None:
            self._kept.move_to_end(wanted)
        self.keep(slot)
        make_room()
        holder = self._holder(wanted, slot)
        if holder is not None:
            self._slots.share(holder, slot)
        elif kept is not None:
            self._slots.restore(kept, slot)

    def clear(self) -> None:
        """Drop all prefixes, including those in slots."""
        self._kept.clear()
        for slot in self._slots.all:
            slot.prefix = None

    def _holder(self, prefix: Prefix, but: Slot) -> Slot | None:
        return next((slot for slot in self._slots.all if slot is not but and slot.holds(prefix)), None)
