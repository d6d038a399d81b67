"""Between the thread that reads a source and its consumer: the newest frame, or every frame in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Mailbox"]

Item = TypeVar("Item")
# Without dropping, so many are read ahead: decoding goes on while the model looks.
READ_AHEAD = 2
_LOOK_UP_S = 0.1  # how often a thread that waits for room asks whether it should go on


class Mailbox(Generic[Item]):
    """A box for one reader and one taker. Several boxes share a condition: the taker waits for any of them."""

    def __init__(self, changed: threading.Condition, *, newest_only: bool) -> None:
        """Args:
        changed: notified with every item
        newest_only: a new item replaces one that was not taken; else the reader waits for room
        """
        self._changed, self._newest_only = changed, newest_only
        self._items: deque[Item] = deque()
        self.dropped = 0  # items that were replaced

    def put(self, item: Item, go_on: Callable[[], bool]) -> None:
        """Called by the reader. `go_on`: asked while it waits for room; False: the item is not wanted any more."""
        with self._changed:
            if self._newest_only:
                self.dropped += len(self._items)
                self._items.clear()
            while len(self._items) >= READ_AHEAD:
                self._changed.wait(_LOOK_UP_S)
                if not go_on():
                    return
            self._items.append(item)
            self._changed.notify_all()

    def take(self) -> Item | None:
        """Called by the taker, with the condition held: the oldest item; None: there is none."""
        if not self._items:
            return None
        self._changed.notify_all()  # there is room
        return self._items.popleft()

    def __bool__(self) -> bool:
        return bool(self._items)
