"""The caches of one graph for several requests at once, each in a slot of the batch.

A request is prefilled into its own slot, one at a time, and decoded together with the others; a prefix that many
requests share is computed once, kept aside, and put into the slots of the others. Everything is copied where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdrpn.errors import RunFailed
from sdrpn.runtime.backends.kv_cache import CacheSet, cache_set_from_runner
from sdrpn.runtime.backends.runner import Backend, Buffer, Runner

__all__ = ["BatchSlots", "Snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """The first rows of every cache of one slot: (1, H_kv, rows, head_dim) by name."""

    rows: int
    buffers: Mapping[str, Buffer]


class BatchSlots:
    """Caches (slots, H_kv, rows, head_dim); their addresses never change."""

    def __init__(self, backend: Backend, runner: Runner, slots: int, rows: int) -> None:
        """Args: rows of every cache; an engine takes one number only."""
        self._backend = backend
        self._caches = cache_set_from_runner(runner)
        fixed = self._caches.fixed_rows
        if fixed is not None and rows != fixed:
            raise RunFailed(f"caches of {rows} rows were asked for; the engine was built for {fixed}")
        self.slots, self.rows = slots, rows
        self._buffers = {
            name: backend.allocate((slots, int(tensor.dims[1]), rows, int(tensor.dims[3])), tensor.storage)
            for name, tensor in self._caches.inputs.items()
        }

    def caches(self, start: int, stop: int) -> CacheSet:
        """Slots start..stop-1 as the caches of a run: views, to bind and to store new rows in."""
        self._require(start, stop)
        views = {name: buffer.entries(start, stop) for name, buffer in self._buffers.items()}
        return CacheSet(self._caches.inputs, self._caches.in_place, views)

    def snapshot(self, slot: int, rows: int) -> Snapshot:
        """Copy the first rows of a slot aside, e.g. those of the prefix."""
        self._require(slot, slot + 1)
        if not 0 < rows <= self.rows:
            raise RunFailed(f"a snapshot of {rows} rows; expected 1 to {self.rows}")
        kept = {}
        for name, buffer in self._buffers.items():
            _, heads, _, head_dim = buffer.shape
            kept[name] = self._backend.allocate((1, heads, rows, head_dim), buffer.dtype.name)
            kept[name].copy_rows(buffer.entries(slot, slot + 1), rows)
        return Snapshot(rows, kept)

    def restore(self, snapshot: Snapshot, slot: int) -> None:
        """Put the rows into a slot; what lies behind them stays and counts as stale."""
        self._require(slot, slot + 1)
        for name, rows in snapshot.buffers.items():
            self._buffers[name].entries(slot, slot + 1).copy_rows(rows, snapshot.rows)

    def _require(self, start: int, stop: int) -> None:
        if not 0 <= start < stop <= self.slots:
            raise RunFailed(f"slots {start} to {stop - 1} were asked for; there are 0 to {self.slots - 1}")
