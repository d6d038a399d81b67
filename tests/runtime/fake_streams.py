"""Streams and events of the fake CUDA: every stream has a queue of its own, which runs only when somebody waits for it.

Waiting for one stream runs nothing of the others, but for what an event makes it wait for. Work of two streams that
touches the same memory without an event between them is a race, and is noticed when the later of both is enqueued.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

__all__ = ["LEGACY", "Operation", "Range", "Streams"]

Range = tuple[int, int]  # address, bytes
LEGACY = 1  # the default stream, which also goes by 0


@dataclass(frozen=True)
class Operation:
    """Something on a stream: what it does, and which memory it reads and writes."""

    name: str
    run: Callable[[], None]
    reads: tuple[Range, ...] = ()
    writes: tuple[Range, ...] = ()

    @property
    def touches(self) -> tuple[Range, ...]:
        return (*self.reads, *self.writes)

    def conflicts_with(self, other: Operation) -> bool:
        """Whether the result depends on which of both comes first."""
        return _meet(self.writes, other.touches) or _meet(self.reads, other.writes)


@dataclass
class _Event:
    """How far each stream is when the event is reached."""

    clock: dict[int, int] = field(default_factory=dict)


@dataclass
class _Stream:
    device: int
    pending: list[tuple[int, Operation]] = field(default_factory=list)  # with its number on this stream
    count: int = 0
    behind: dict[int, int] = field(default_factory=dict)  # other stream -> number that everything here comes after


class Streams:
    """All streams of a process."""

    def __init__(self, violations: list[str], execute: Callable[[Operation], None]) -> None:
        """Args: violations: where races are reported; execute: runs one operation."""
        self._violations, self._execute = violations, execute
        self._streams: dict[int, _Stream] = {LEGACY: _Stream(0)}
        self._events: dict[int, _Event] = {}
        self._numbers = 0

    def create(self, device: int) -> int:
        self._numbers += 1
        self._streams[0x1000 + self._numbers] = _Stream(device)
        return 0x1000 + self._numbers

    def known(self, stream: int) -> bool:
        return _handle(stream) in self._streams

    def device(self, stream: int) -> int:
        return self._streams[_handle(stream)].device

    def destroy(self, stream: int) -> None:
        if self._streams[stream].pending:
            self._violations.append("the stream is destroyed before its work is done")
        del self._streams[stream]

    def pending(self) -> Iterator[Operation]:
        """What is enqueued anywhere and has not run."""
        for stream in self._streams.values():
            yield from (operation for _, operation in stream.pending)

    def is_idle(self, stream: int) -> bool:
        return not self._streams[_handle(stream)].pending

    def append(self, stream: int, operation: Operation) -> None:
        mine = self._streams[_handle(stream)]
        for handle, other in self._streams.items():
            for number, earlier in other.pending if other is not mine else ():
                if number > mine.behind.get(handle, 0) and operation.conflicts_with(earlier):
                    self._violations.append(f"{operation.name} races with {earlier.name} of another stream")
        mine.count += 1
        mine.pending.append((mine.count, operation))

    def run(self, stream: int) -> None:
        """Until everything on the stream is done."""
        self._run_to(_handle(stream), self._streams[_handle(stream)].count)

    def run_all(self) -> None:
        for handle in list(self._streams):
            self.run(handle)

    def drop_all(self) -> None:
        """After a fault of the GPU."""
        for stream in self._streams.values():
            stream.pending.clear()

    def new_event(self) -> int:
        self._numbers += 1
        self._events[0x2000 + self._numbers] = _Event()
        return 0x2000 + self._numbers

    def record(self, event: int, stream: int) -> None:
        mine = self._streams[_handle(stream)]
        self._events[event].clock = {**mine.behind, _handle(stream): mine.count}

    def wait_for_event(self, stream: int, event: int) -> None:
        """Everything that is enqueued on the stream from here on comes after the event."""
        mine = self._streams[_handle(stream)]
        for handle, number in self._events[event].clock.items():
            mine.behind[handle] = max(mine.behind.get(handle, 0), number)

    def run_to_event(self, event: int) -> None:
        for handle, number in self._events[event].clock.items():
            if handle in self._streams:
                self._run_to(handle, number)

    def event_is_reached(self, event: int) -> bool:
        return not any(
            handle in self._streams and any(work <= number for work, _ in self._streams[handle].pending)
            for handle, number in self._events[event].clock.items()
        )

    def destroy_event(self, event: int) -> None:
        del self._events[event]

    def _run_to(self, handle: int, number: int) -> None:
        mine = self._streams[handle]
        for other, limit in mine.behind.items():  # as late as it may be: earlier work of others runs no sooner
            if other in self._streams and other != handle and mine.pending:
                self._run_to(other, limit)
        while mine.pending and mine.pending[0][0] <= number:
            _, operation = mine.pending.pop(0)
            self._execute(operation)


def _handle(stream: int) -> int:
    return LEGACY if stream in (0, LEGACY) else stream


def _meet(some: tuple[Range, ...], others: tuple[Range, ...]) -> bool:
    return any(a < b + n and b < a + m for a, m in some for b, n in others)
