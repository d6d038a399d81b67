"""Who may begin now: a bounded queue, interactive requests before batches, and memory for pictures.

Lives in one event loop. Knows nothing about what is admitted.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sdrpn.runtime.server.faults import Fault

__all__ = ["Admission"]

_NEW_SHARE = 0.2  # of the newest request in the average


class Admission:
    """So many places and bytes; who finds none waits in order, and nobody passes the first."""

    def __init__(self, places: int, most_waiting: int, size_bytes: int) -> None:
        self._places, self._most_waiting, self._size_bytes = places, most_waiting, size_bytes
        self._used = self._used_bytes = 0
        self._waiting: list[tuple[int, int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._held_s = 1.0  # how long a place is held
        self._is_closed = False

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(not future.done() for *_, future in self._waiting)

    @property
    def used(self) -> int:
        """How many have a place."""
        return self._used

    @property
    def is_closed(self) -> bool:
        """Whether nobody else is let in."""
        return self._is_closed

    def close(self) -> None:
        """Let nobody else in; who waits or has a place is not affected."""
        self._is_closed = True

    @asynccontextmanager
    async def place(self, size_bytes: int, *, is_batch: bool = False) -> AsyncIterator[None]:
        """A place with so many bytes, within the block. Raises Fault 429 where too many wait, 503 after `close`."""
        if self._is_closed:
            raise Fault(503, "the server is shutting down", "shutting_down", headers={"Retry-After": "5"})
        if self._waiting or not self._fits(size_bytes):
            await self._wait(size_bytes, is_batch)
        else:
            self._take(size_bytes)
        start = time.monotonic()
        try:
            yield
        finally:
            self._held_s += _NEW_SHARE * (time.monotonic() - start - self._held_s)
            self._used, self._used_bytes = self._used - 1, self._used_bytes - size_bytes
            self._admit()

    def retry_after_s(self) -> int:
        """When a place is expected to be free for one more: the average time of those before it."""
        return max(1, math.ceil(self._held_s * (self.waiting + 1) / self._places))

    async def _wait(self, size_bytes: int, is_batch: bool) -> None:
        if self.waiting >= self._most_waiting:
            after = self.retry_after_s()
            raise Fault(
                429,
                f"{self.waiting} requests wait already; try again in about {after} s",
                "queue_full",
                headers={"Retry-After": str(after)},
            )
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (int(is_batch), next(self._numbers), size_bytes, place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it came in the same moment
                self._used, self._used_bytes = self._used - 1, self._used_bytes - size_bytes
            place.cancel()
            self._admit()
            raise

    def _admit(self) -> None:
        while self._waiting:
            *_, size_bytes, place = self._waiting[0]
            if not place.done():
                if not self._fits(size_bytes):
                    return
                self._take(size_bytes)
                place.set_result(None)
            heapq.heappop(self._waiting)

    def _fits(self, size_bytes: int) -> bool:
        """Alone, anything does: what can never fit is refused before."""
        return self._used == 0 or (self._used < self._places and self._used_bytes + size_bytes <= self._size_bytes)

    def _take(self, size_bytes: int) -> None:
        self._used, self._used_bytes = self._used + 1, self._used_bytes + size_bytes
