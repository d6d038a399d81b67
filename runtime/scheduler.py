"""Several answers at once: questions wait for a slot, are prefilled one at a time, and are decoded together.

With a bound on stalls (`limit_stalls`), decode steps run between the parts of a prefill, too.

There is no background thread. One of the threads that wait for an answer works for all of them: a unit of work is a
prefill, or a decode step of all running sequences. When its own answer is ready, another thread continues. For callers
that cannot block, such as an event loop, `call_when` starts a thread. A sequence whose answer nobody waits for
continues with the others, and keeps its slot until it ends.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sdrpn.errors import Cancelled, RunFailed
from sdrpn.host.interrupt import Cancellation, SignalWatch
from sdrpn.runtime.decoder import Decoder, FloatArray, NextToken
from sdrpn.runtime.embedding import TokenEmbedding
from sdrpn.runtime.prefix_store import PrefixStore
from sdrpn.runtime.sequence import Glance, Sequence, Work
from sdrpn.runtime.slots import Slot
from sdrpn.runtime.two_pass import TwoPass

__all__ = ["Load", "Scheduler"]

Ready = Callable[[], bool]
_CLOSED = "the session was closed; open it again"


@dataclass(eq=False)
class _Wait:
    """A caller that waits until `ready`, and how to wake it."""

    ready: Ready
    wake: Callable[[], None]
    works: bool = False  # may continue the work itself
    driven: bool = False  # cannot work, so that a thread must


@dataclass(frozen=True)
class Load:
    """What a scheduler has to do, and how it goes.

    unit_s: how long the current unit of work has run; 0: there is none. batches: decode steps so far, by how many
    sequences each had.
    """

    running: int
    waiting: int
    unit_s: float
    batches: Mapping[int, int]


class Scheduler:
    """Runs sequences from their question to their end. Every method may be called from any thread."""

    def __init__(
        self,
        two_pass: TwoPass,
        decoder: Decoder,
        embedding: TokenEmbedding,
        prefixes: PrefixStore,
        cancellation: Cancellation,
        max_batch: int,
        may_grow: Callable[[int], bool] = lambda size_bytes: True,
    ) -> None:
        """Args:
        max_batch: most sequences that are decoded at once; further ones wait
        may_grow: whether this many bytes of memory may be allocated for another sequence
        """
        self._two_pass, self._decoder, self._embedding = two_pass, decoder, embedding
        self._prefixes, self._releases = prefixes, 0
        self._cancellation, self._signals = cancellation, SignalWatch(cancellation.cancel, cancellation.reset)
        self._max_batch, self._may_grow = max_batch, may_grow
        self._lock = threading.RLock()
        self._waiting: deque[Work] = deque()
        self._running: list[Sequence] = []
        self._current: tuple[Work, ...] = ()  # the sequences of the current unit of work
        self._worker: threading.Thread | None = None
        self._waits: list[_Wait] = []
        self._driving = self._closed = False
        self._unit_start: float | None = None
        self._batches: Counter[int] = Counter()

    @property
    def max_batch(self) -> int:
        """Most sequences that are decoded at once."""
        return self._max_batch

    def require_open(self) -> None:
        """Raise RunFailed after `close`, and within a unit of work of the same thread."""
        if self._closed:
            raise RunFailed(_CLOSED)
        if self._worker is threading.current_thread():
            raise RunFailed("this thread is in the middle of an answer of the same session; let it end first")

    def submit(self, *works: Work) -> None:
        """Let sequences or glances wait for a slot. Raises RunFailed after `close`."""
        with self._lock:
            self.require_open()
            self._waiting.extend(works)

    def work_until(self, ready: Ready) -> None:
        """Return when `ready()` is true: work, or wait while another thread works. Raises RunFailed after `close`."""
        if ready():
            return
        with self._lock:
            self.require_open()
            if self._worker is not None and not self._woken(ready):
                return
            self._worker = threading.current_thread()
        try:
            with self._signals:
                while not ready() and not self._closed:
                    self._unit()
        finally:
            with self._lock:
                self._worker = None
                self._wake()
        if not ready():
            self.require_open()

    def call_when(self, ready: Ready, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake`, at least once, when `ready()` is true, and make sure that a thread works until then.

        Returns: a function that ends the wait
        """
        wait = _Wait(ready, wake, driven=True)
        with self._lock:
            self._waits.append(wait)
            if ready():
                wake()
            elif not self._driving:
                self._driving = True
                threading.Thread(target=self._drive, name="sdrpn answers", daemon=True).start()
        return lambda: self._forget(wait)

    def cancel(self, sequence: Work | None = None) -> None:
        """End a sequence (None: all that have a slot) with Cancelled; one that is over is not changed."""
        with self._lock:
            which: tuple[Work, ...] = (*self._running, *self._current) if sequence is None else (sequence,)
            for each in which:
                each.cancelled = True
            self._sweep()
            if self._current and all(each.cancelled for each in self._current):
                self._cancellation.cancel()

    def limit_stalls(self, most_s: float | None) -> None:
        """Divide prefills so that running sequences wait at most about so long for their next token; None: do not.

        One picture, one decode step and 16 rows are not divided.
        """
        self._decoder.pace.attend(most_s, self._others_run, self._step_between)

    @property
    def load(self) -> Load:
        """What there is to do now."""
        with self._lock:
            start, waiting = self._unit_start, len(self._waiting)
            return Load(
                running=len(self._running) + sum(each in self._waiting for each in self._current),
                waiting=waiting - sum(each in self._waiting for each in self._current),
                unit_s=0.0 if start is None else time.perf_counter() - start,
                batches=dict(self._batches),
            )

    def forget_prefixes(self) -> None:
        """Drop every prefix, so that it is computed again."""
        with self._lock:
            self._prefixes.clear()

    def close(self) -> None:
        """Wait for the current unit of work, and end everything after it."""
        with self._lock:
            if not self._closed:
                self.require_open()
            self._closed = True
            for sequence in (*self._waiting, *self._running, *self._current):
                sequence.fail(RunFailed(_CLOSED))
            self._waiting.clear()
            self._wake()
            idle = threading.Condition(self._lock)
            with self._waiting_until(lambda: self._worker is None, idle.notify_all):
                while self._worker is not None:
                    idle.wait()

    def _woken(self, ready: Ready) -> bool:
        """Wait for another thread's work; returns whether this thread has to continue it."""
        condition = threading.Condition(self._lock)
        with self._waiting_until(ready, condition.notify_all, works=True):
            while self._worker is not None and not ready():
                condition.wait()
        if not ready():
            self.require_open()
            return True
        self._wake()  # this thread may have been chosen to work: choose another
        return False

    @contextmanager
    def _waiting_until(self, ready: Ready, wake: Callable[[], None], *, works: bool = False) -> Iterator[None]:
        wait = _Wait(ready, wake, works=works)
        self._waits.append(wait)
        try:
            yield
        except BaseException:
            self._forget(wait)
            self._wake()
            raise
        self._forget(wait)

    def _wake(self) -> None:
        """Wake every caller whose wait is over, and one to continue the work if nobody works."""
        idle = self._worker is None
        for wait in list(self._waits):
            if wait.ready():
                wait.wake()
            elif idle and wait.works:
                wait.wake()
                idle = False

    def _forget(self, wait: _Wait) -> None:
        with self._lock:
            if wait in self._waits:
                self._waits.remove(wait)

    def _drive(self) -> None:
        """Work as long as a caller waits that cannot work."""
        while True:
            with self._lock:
                if self._closed or not self._driven():
                    self._driving = False
                    return
            with suppress(RunFailed):  # closed
                self.work_until(lambda: not self._driven())

    def _driven(self) -> bool:
        return any(wait.driven and not wait.ready() for wait in list(self._waits))

    def _unit(self) -> None:
        """A prefill if a sequence waits and there is a slot for it, else a decode step of all that run."""
        with self._unit_of_work() as (admitted, slot, running):
            if admitted is not None and slot is not None:
                self._prefill(admitted, slot)
            elif running:
                self._make_neighbours(running)
                self._step(running)

    @contextmanager
    def _unit_of_work(self) -> Iterator[tuple[Work | None, Slot | None, tuple[Sequence, ...]]]:
        with self._lock:
            self._sweep()
            running, first, slot = tuple(self._running), None, None
            if self._waiting and len(running) < self._max_batch:
                first = self._waiting[0]
                slot = self._slot_for(first)
            self._current = running if first is None or slot is None else (first,)
            self._cancellation.reset()
            self._unit_start = time.perf_counter() if self._current else None
        try:
            yield first, slot, running
        finally:
            with self._lock:
                self._current, self._unit_start = (), None
                self._sweep()
                self._wake()

    def _sweep(self) -> None:
        """Remove sequences that are over, apart from those in the current unit of work, and free their slots."""
        settled: list[Work] = [each for each in (*self._waiting, *self._running) if each not in self._current]
        for sequence in settled:
            if sequence.cancelled:
                sequence.fail(Cancelled("the answer was cancelled; ask again"))
            if sequence.over and sequence.slot is not None:
                self._release(sequence.slot)
                sequence.slot = None
        gone = {id(each) for each in settled if each.over}
        begun = {id(each) for each in self._waiting if each in settled and each.slot is not None}
        self._running += [each for each in self._waiting if id(each) in begun and isinstance(each, Sequence)]
        self._running = [each for each in self._running if id(each) not in gone]
        self._waiting = deque(each for each in self._waiting if id(each) not in gone | begun)

    def _slot_for(self, work: Work) -> Slot | None:
        """A free slot, preferably with the rows of the question, or of the picture; None where memory is too short."""
        slots = self._decoder.slots
        used = {id(each.slot) for each in self._running}
        free = [slot for slot in slots.all if id(slot) not in used]
        if free:
            wanted, after = work.prefix, work.request.ids_after
            return min(
                free,
                key=lambda slot: (
                    not slot.has_seen(wanted, after),
                    not slot.holds(wanted),
                    slot.prefix is not None,
                    slot.last_used,
                ),
            )
        if not self._may_grow(slots.entry_bytes):
            return None
        try:
            return slots.add()
        except MemoryError:
            return None

    def _others_run(self) -> bool:
        """Whether a prefill keeps sequences waiting."""
        with self._lock:
            return any(not each.over and not each.cancelled for each in self._running if each not in self._current)

    def _step_between(self) -> None:
        """Between two parts of a prefill: a decode step of all that run. Raises Cancelled for the prefill's own."""
        with self._lock:
            (prefilled,) = before = self._current
            if prefilled.cancelled:
                raise Cancelled("the answer was cancelled; ask again")
            running = tuple(each for each in self._running if not each.over and not each.cancelled)
            self._current = (prefilled, *running)
            self._unit_start = start = time.perf_counter()
        try:
            self._step(running)
        finally:
            with self._lock:
                self._current = before
                self._sweep()
                self._wake()
            prefilled.watch.others(time.perf_counter() - start)

    def _prefill(self, work: Work, slot: Slot) -> None:
        """A failure is its own; what is no error, such as Ctrl-C, leaves it waiting. A glance is over afterwards."""
        work.watch.begin()
        try:
            if isinstance(work, Sequence):
                work.choose(self._two_pass.prefill(work, slot))
            elif isinstance(work, Glance):
                self._two_pass.look(work, slot)
        except Exception as error:
            work.fail(error)
        finally:
            if work.over or not isinstance(work, Sequence) or not work.token_ids:
                work.slot = None
                self._release(slot)

    def _release(self, slot: Slot) -> None:
        self._releases += 1
        slot.release()
        slot.last_used = self._releases

    def _step(self, sequences: tuple[Sequence, ...]) -> None:
        start = time.perf_counter()
        try:
            rows = self._decoder.step([self._next_token(sequence) for sequence in sequences])
        except Exception as error:
            self._blame(sequences, error)
            return
        took_s = time.perf_counter() - start
        self._decoder.pace.stepped(took_s)
        self._batches[len(sequences)] += 1
        for sequence, logits in zip(sequences, rows, strict=True):
            sequence.advance(took_s)
            self._choose(sequence, logits)

    def _blame(self, sequences: tuple[Sequence, ...], error: Exception) -> None:
        """After a failed step of several sequences, run each alone to find which one fails."""
        if len(sequences) == 1 or self._closed:
            for sequence in sequences:
                sequence.fail(error)
            return
        for sequence in sequences:
            if not sequence.cancelled:
                self._step((sequence,))

    def _choose(self, sequence: Sequence, logits: FloatArray) -> None:
        assert sequence.slot is not None
        try:
            self._decoder.require_finite(sequence.slot, "logits of the next token", logits)
            sequence.choose(logits)
        except Exception as error:
            sequence.fail(error)

    def _next_token(self, sequence: Sequence) -> NextToken:
        assert sequence.slot is not None
        if sequence.slot.valid["trunk"] < sequence.row:
            raise RunFailed("there was not enough memory to grow the caches for another question; ask again")
        embedding = self._embedding.rows(sequence.token_ids[-1:])
        return NextToken(sequence.slot, embedding, sequence.row, sequence.position)

    def _make_neighbours(self, running: tuple[Sequence, ...]) -> None:
        """Move running slots next to each other, so that they form one batch."""
        if len(running) == 1:
            return
        ours = {id(each.slot) for each in running}
        slots = self._decoder.slots
        used = [slot for slot in slots.all if id(slot) in ours]
        while used[-1].index - used[0].index >= len(used):
            gap = next(slot for slot in slots.all[used[0].index :] if id(slot) not in ours)
            self._prefixes.keep(gap)
            slots.swap(used[-1], gap)
            used.sort(key=lambda slot: slot.index)
