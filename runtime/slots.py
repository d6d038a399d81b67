"""The caches and taps of several sequences, each in a slot of the batch; and which of their rows are valid.

All slots have the same length, as graphs need it. A prefix is copied between slots, or to a snapshot, on its device.
Knows nothing about tokens or pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sdrpn.errors import RunFailed
from sdrpn.families.family import Positions
from sdrpn.method.grids import cell_count
from sdrpn.method.spec import Vision
from sdrpn.runtime.backends.kv_cache import CacheSet, cache_set_from_runner, resized
from sdrpn.runtime.backends.runner import Backend, Buffer, Runner, nbytes

__all__ = ["CACHE_ROUNDING", "Prefix", "RoiScores", "Seen", "Slot", "Slots", "Snapshot"]

# Cache lengths are multiples of this many rows, so that a few more tokens do not need new buffers.
CACHE_ROUNDING = 64
# A shorter cache is worth moving its rows; and memory that is more than four times as much as needed is given back.
_WORTHWHILE, _MOST_SHORTER = 0.75, 4
# Graphs whose caches are shortened for a part of a prefill; the outputs of the others depend on the caches' length.
_FITTED = ("trunk", "tail")

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prefix:
    """The input of the first rows of a slot: a picture, as the tower sees it, and the tokens before it."""

    digest: str  # of the upright pixels
    image_hw: tuple[int, int]
    ids_before: tuple[int, ...]
    vision: Vision  # two budgets may lead to one grid by different sizes in pixels

    @property
    def image_tokens(self) -> int:
        """The cells of its grid."""
        return cell_count(self.image_hw)

    @property
    def rows(self) -> int:
        """The number of its rows."""
        return len(self.ids_before) + self.image_tokens


@dataclass(frozen=True, eq=False)
class RoiScores:
    """What the RPN says of a question: N cells of the image."""

    roi_logits: FloatArray  # (h,w)
    sink_logits: FloatArray | None = None  # (h,w) how much the first token looks at each cell; None: not asked
    seen_logits: FloatArray | None = None  # (N,) the most that any token after the image looks at each; None: not asked


@dataclass(frozen=True, eq=False)
class Seen:
    """A question behind the prefix whose rows the trunk has computed, and what gate and RPN said of it."""

    ids_after: tuple[int, ...]
    rows: int  # of prefix and question
    scores: RoiScores
    gate_score: float | None = None  # None: the gate was not asked


@dataclass(eq=False)
class Slot:
    """One entry of every cache. `valid[name]` counts the rows from 0 that a graph's caches hold for its sequence."""

    index: int
    valid: dict[str, int]
    tap_rows: int = 0  # taps of decoded tokens are not kept: they are not needed again
    needed_rows: int = 0  # rows that the caches must have room for
    prefix: Prefix | None = None
    last_used: int = 0  # counter of releases
    positions: Positions | None = None  # of its prefilled rows; None: the row numbers
    seen: Seen | None = None  # what a look left behind the prefix
    first_query: FloatArray | None = (
        None  # (1,1,1,d) of row 0 in the RPN, which later runs compare with; None: not used
    )

    @property
    def prefix_rows(self) -> dict[str, int]:
        """The number of rows of its prefix that each graph has computed."""
        rows = self.prefix.rows if self.prefix is not None else 0
        return {name: min(count, rows) for name, count in self.valid.items()}

    def truncate(self, rows: int) -> None:
        """Drop everything after the first `rows` rows."""
        self.valid = {name: min(count, rows) for name, count in self.valid.items()}
        self.tap_rows = min(self.tap_rows, rows)
        if self.seen is not None and rows < self.seen.rows:
            self.seen = None

    def holds(self, prefix: Prefix) -> bool:
        """Whether the trunk's rows of this prefix are in the slot."""
        return self.prefix == prefix and self.valid["trunk"] >= prefix.rows

    def has_seen(self, prefix: Prefix, ids_after: tuple[int, ...]) -> bool:
        """Whether neither trunk nor RPN need run for a question about it."""
        return self.holds(prefix) and self.seen is not None and self.seen.ids_after == ids_after

    def release(self) -> None:
        """Its sequence is over; the prefix, and what a look saw, stay until somebody else takes the slot."""
        kept = self.prefix.rows if self.prefix is not None and self.holds(self.prefix) else 0
        kept = self.seen.rows if kept and self.seen is not None else kept
        self.truncate(kept)
        self.needed_rows = kept

    def require_rows(self, name: str, start: int) -> None:
        """Raise RunFailed if rows from `start` on would leave a gap."""
        if start > self.valid[name]:
            raise RunFailed(f"{name}: rows are written from {start}, but only {self.valid[name]} are there")


@dataclass(frozen=True)
class Snapshot:
    """A copy of the rows of a prefix."""

    prefix: Prefix
    valid: Mapping[str, int]
    caches: Mapping[str, Mapping[str, Buffer]] = field(repr=False)  # (1,H_kv,rows,head_dim) by graph and name
    taps: Buffer = field(repr=False)  # (1,rows,D)
    first_query: FloatArray | None = field(default=None, repr=False)

    @property
    def size_bytes(self) -> int:
        """Its size in memory."""
        caches = [buffer for graph in self.caches.values() for buffer in graph.values()]
        return sum(nbytes(buffer.shape, buffer.dtype.name) for buffer in (*caches, self.taps))


class Slots:
    """Caches (slots,H_kv,length,head_dim) of every graph, and taps (slots,length,D)."""

    def __init__(
        self,
        backend: Backend,
        runners: Mapping[str, Runner],
        width: int,
        contexts: Sequence[int] = (),
        before_change: Callable[[], None] = lambda: None,
        entries: int = 1,
    ) -> None:
        """Args:
        contexts: cache lengths that the engines have profiles for, if there are several
        before_change: called before buffers are replaced, so that references to them can be dropped
        entries: slots that are there from the beginning
        """
        self._backend, self._before_change = backend, before_change
        self._short = set[str]()  # graphs whose caches have fewer rows than `length` for now
        self.caches = {name: cache_set_from_runner(runner) for name, runner in runners.items()}
        fixed = [caches.fixed_rows for caches in self.caches.values() if caches.fixed_rows is not None]
        # The cache lengths of engines, in ascending order; empty: a graph, which takes any.
        self._lengths = tuple(sorted(contexts)) or ((min(fixed),) if fixed else ())
        self.max_rows: int | None = max(self._lengths, default=None)
        self.taps = backend.allocate((entries, 0, width), "float32")
        self.length = 0
        self.all = [Slot(index, dict.fromkeys(runners, 0)) for index in range(entries)]

    def reset(self, slot: Slot, rows: int, ahead: int = 0) -> None:
        """Drop the slot's sequence; make room for `rows`, and release memory that a longer one needed.

        Args:
            ahead: rows that may follow in decode steps. With engines for several contexts no room is made for them: the
                cost of attention depends on the length of the caches, which grow when needed
        """
        slot.truncate(0)
        slot.prefix, slot.needed_rows = None, self._needed(rows, ahead)
        self.make_whole()
        length = self._length()
        # With other slots in use all would be copied: only worth it if the work of attention halves.
        if length > self.length or (length != self.length and (len(self.all) == 1 or length <= self.length // 2)):
            self._reallocate(length)

    def reserve(self, slot: Slot, rows: int, ahead: int = 0) -> None:
        """Make room for `rows`; valid rows are kept. `ahead`: as in `reset`."""
        slot.needed_rows = self._needed(rows, ahead)
        self.make_whole()
        if self.length < self._length():
            self._reallocate(self._length())

    def add(self) -> Slot:
        """Add a slot; the others keep their rows."""
        slot = Slot(len(self.all), dict.fromkeys(self.caches, 0))
        self.make_whole()
        if self.length:
            self._reallocate(self.length, len(self.all) + 1)
        self.all.append(slot)
        return slot

    @property
    def entry_bytes(self) -> int:
        """Bytes that another slot needs."""
        buffers = [self.taps, *(buffer for caches in self.caches.values() for buffer in caches.buffers.values())]
        return sum(nbytes(buffer.shape, buffer.dtype.name) for buffer in buffers) // len(self.all)

    def fit(self, name: str, stop: int) -> None:
        """Let the caches of a graph be no longer than a run needs whose last row is stop-1, where the library would go
        over all of them; valid rows stay. Everything but `caches_of` makes them whole again.

        Rows move within the memory that the caches have. With several slots nothing changes.
        """
        if (
            name not in _FITTED
            or not self._backend.reads_whole_caches
            or len(self.all) > 1
            or self.max_rows is not None
        ):
            return
        needed = max(stop, self.all[0].valid[name], self.length // _MOST_SHORTER)
        rows = -(-needed // CACHE_ROUNDING) * CACHE_ROUNDING
        self._set_rows(name, rows if rows <= _WORTHWHILE * self.length else self.length)

    def make_whole(self) -> None:
        """End what `fit` did."""
        for name in sorted(self._short):
            self._set_rows(name, self.length)

    def _set_rows(self, name: str, rows: int) -> None:
        caches = self.caches[name]
        if all(buffer.shape[2] == rows for buffer in caches.buffers.values()):
            return
        self._before_change()
        try:
            caches.resize(self._backend, len(self.all), rows, self.all[0].valid[name])
        except BaseException:  # some have another length now: the next question makes all of them again
            self._clear()
            raise
        if rows == self.length:
            self._short.discard(name)
        else:
            self._short.add(name)

    def caches_of(self, name: str, start: int, stop: int) -> CacheSet:
        """Slots start..stop-1 of a graph's caches, for binding and storing new rows."""
        return self.caches[name].entries(start, stop)

    def taps_of(self, slot: Slot, start: int, stop: int) -> Buffer:
        """(1,stop-start,D), a view."""
        return self._taps(slot).rows(start, stop)

    def wipe(self, slot: Slot) -> None:
        """Drop the slot's sequence and zero its rows.

        Dropped rows otherwise stay and are multiplied with weights of zero: an infinity among them would turn every
        later result into NaN.
        """
        slot.truncate(0)
        slot.prefix = None
        self.make_whole()
        if len(self.all) == 1:
            self._before_change()
            self._clear()
            return
        for buffer in (*self._buffers(slot), self._taps(slot)):
            buffer.copy_rows(self._zeros(buffer, self.length), self.length)

    def share(self, source: Slot, target: Slot) -> None:
        """Copy the prefix of one slot into another, which has room for it."""
        assert source.prefix is not None
        self.make_whole()
        self._copy(source, target, source.prefix.rows)
        target.prefix, target.first_query = source.prefix, source.first_query

    def swap(self, source: Slot, target: Slot) -> None:
        """Move `source` to the place of `target`, whose rows are lost; `target` gets the other place."""
        self.make_whole()
        self._copy(source, target, max(*source.valid.values(), source.tap_rows))
        target.truncate(0)
        target.prefix, target.needed_rows = None, 0
        source.index, target.index = target.index, source.index
        self.all.sort(key=lambda slot: slot.index)

    def prefix_bytes(self, slot: Slot) -> int:
        """Bytes that a snapshot of the slot would need."""
        assert slot.prefix is not None
        views = [(self._taps(slot), slot.prefix.rows)]
        views += [(buffer, n) for name, n in slot.prefix_rows.items() for buffer in self._views(name, slot).values()]
        return sum(nbytes((*view.shape[:-2], n, view.shape[-1]), view.dtype.name) for view, n in views)

    def snapshot(self, slot: Slot) -> Snapshot:
        """Copy the prefix of a slot."""
        assert slot.prefix is not None
        self.make_whole()
        valid = slot.prefix_rows
        caches = {
            name: {key: self._first_rows(buffer, valid[name]) for key, buffer in self._views(name, slot).items()}
            for name in self.caches
        }
        taps = self._first_rows(self._taps(slot), slot.prefix.rows)
        return Snapshot(slot.prefix, valid, caches, taps, slot.first_query)

    def restore(self, snapshot: Snapshot, slot: Slot) -> None:
        """Copy a prefix into a slot, which has room for it; rows after it become invalid."""
        self.make_whole()
        for name, buffers in snapshot.caches.items():
            views = self._views(name, slot)
            for key, rows in buffers.items():
                views[key].copy_rows(rows, snapshot.valid[name])
        self._taps(slot).copy_rows(snapshot.taps, snapshot.prefix.rows)
        slot.valid, slot.tap_rows, slot.prefix = dict(snapshot.valid), snapshot.prefix.rows, snapshot.prefix
        slot.first_query = snapshot.first_query

    def close(self) -> None:
        """Free all buffers."""
        self._before_change()
        for caches in self.caches.values():
            caches.buffers.clear()

    def _needed(self, rows: int, ahead: int) -> int:
        if self.max_rows is None:
            return rows + ahead
        if rows + ahead > self.max_rows:
            raise RunFailed(
                f"{rows + ahead} rows exceed the caches of {self.max_rows} rows that the engines were built for"
            )
        return rows

    def _length(self) -> int:
        needed = max(slot.needed_rows for slot in self.all)
        if self.max_rows is None:
            return -(-needed // CACHE_ROUNDING) * CACHE_ROUNDING
        return min(length for length in self._lengths if length >= needed)

    def _reallocate(self, length: int, entries: int | None = None) -> None:
        kept = [(slot, dict(slot.valid), slot.tap_rows, slot.seen) for slot in self.all]
        rows = {name: max(valid[name] for _, valid, *_ in kept) for name in self.caches}
        tap_rows, entries = max(taps for _, _, taps, _ in kept), entries or len(self.all)
        # Allocation may fail half-way: until it is complete, no rows are valid.
        before = self.length
        self._before_change()
        self._short.clear()
        self.length = 0
        for slot in self.all:
            slot.truncate(0)
        try:
            for name, caches in self.caches.items():
                caches.resize(self._backend, entries, length, rows[name])
            self.taps = resized(self._backend, self.taps, entries, length, tap_rows)
            self.length = length
        finally:
            if length in (before, self.length):  # or only some have more entries, which is harmless
                self.length = length
                for slot, valid, taps, seen in kept:
                    slot.valid, slot.tap_rows, slot.seen = valid, taps, seen

    def _copy(self, source: Slot, target: Slot, most_rows: int) -> None:
        target.valid = {name: min(count, most_rows) for name, count in source.valid.items()}
        target.tap_rows = min(source.tap_rows, most_rows)
        for name, rows in target.valid.items():
            views = self._views(name, source)
            for key, buffer in self._views(name, target).items():
                buffer.copy_rows(views[key], rows)
        self._taps(target).copy_rows(self._taps(source), target.tap_rows)

    def _views(self, name: str, slot: Slot) -> Mapping[str, Buffer]:
        return self.caches_of(name, slot.index, slot.index + 1).buffers

    def _buffers(self, slot: Slot) -> list[Buffer]:
        return [buffer for name in self.caches for buffer in self._views(name, slot).values()]

    def _taps(self, slot: Slot) -> Buffer:
        return self.taps if len(self.all) == 1 else self.taps.entries(slot.index, slot.index + 1)

    def _first_rows(self, buffer: Buffer, rows: int) -> Buffer:
        kept = self._zeros(buffer, rows)
        kept.copy_rows(buffer, rows)
        return kept

    def _zeros(self, buffer: Buffer, rows: int) -> Buffer:
        """A buffer like this one, a cache or taps, with another number of rows."""
        shape = (*buffer.shape[:-2], rows, buffer.shape[-1])
        return self._backend.allocate(shape, buffer.dtype.name, for_cache=len(shape) == 4)

    def _clear(self) -> None:
        self.length = 0
        self._short.clear()
        for slot in self.all:
            slot.truncate(0)
        for caches in self.caches.values():
            caches.buffers.clear()
        self.taps = self._backend.allocate((1, 0, self.taps.shape[-1]), "float32")
