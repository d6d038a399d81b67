"""Who gets a place, in which order, and who is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sdrpn.runtime.server.admission import Admission
from sdrpn.runtime.server.faults import Fault


def run(scenario: Callable[[], Awaitable[Any]]) -> None:
    async def within_a_minute() -> None:
        await asyncio.wait_for(scenario(), 60)

    asyncio.run(within_a_minute())


class Guests:
    """Requests that hold a place until they are let go, and the order in which they got it."""

    def __init__(self, admission: Admission) -> None:
        self.admission, self.order = admission, list[str]()
        self._leave: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, size_bytes: int = 1, *, is_batch: bool = False) -> asyncio.Task[None]:
        self._leave[name] = asyncio.Event()

        async def stay() -> None:
            async with self.admission.place(size_bytes, is_batch=is_batch):
                self.order.append(name)
                await self._leave[name].wait()

        self._tasks[name] = asyncio.create_task(stay())
        await settle()
        return self._tasks[name]

    async def go(self, name: str) -> None:
        self._leave[name].set()
        await self._tasks[name]
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_places_are_given_in_order_and_interactive_ones_first() -> None:
    async def scenario() -> None:
        guests = Guests(Admission(1, 8, 100))
        for name, is_batch in (("a", False), ("b", True), ("c", True), ("d", False), ("e", False)):
            await guests.come(name, is_batch=is_batch)
        assert (guests.order, guests.admission.waiting) == (["a"], 4)
        for name in ("a", "d", "e", "b", "c"):
            await guests.go(name)
        assert guests.order == ["a", "d", "e", "b", "c"]
        assert (guests.admission.used, guests.admission.waiting) == (0, 0)

    run(scenario)


def test_memory_is_waited_for_and_nobody_passes_the_first() -> None:
    async def scenario() -> None:
        guests = Guests(Admission(4, 8, 100))
        for name, size_bytes in (("a", 60), ("b", 60), ("c", 1)):
            await guests.come(name, size_bytes)
        assert guests.order == ["a"]
        await guests.go("a")
        assert guests.order == ["a", "b", "c"]
        for name in ("b", "c"):
            await guests.go(name)

    run(scenario)


def test_what_is_larger_than_all_memory_runs_alone() -> None:
    async def scenario() -> None:
        guests = Guests(Admission(4, 8, 100))
        await guests.come("a", 500)
        await guests.come("b", 1)
        assert guests.order == ["a"]
        await guests.go("a")
        await guests.go("b")

    run(scenario)


def test_a_full_queue_says_when_to_try_again() -> None:
    async def scenario() -> None:
        guests = Guests(Admission(1, 1, 100))
        await guests.come("a")
        await guests.come("b")
        with pytest.raises(Fault, match="1 requests wait already") as found:
            async with guests.admission.place(1):
                pass
        assert found.value.status == 429
        assert int(found.value.headers["Retry-After"]) >= 1
        await guests.go("a")
        await guests.go("b")

    run(scenario)


def test_one_that_goes_away_leaves_its_place_in_the_queue() -> None:
    async def scenario() -> None:
        guests = Guests(Admission(1, 4, 100))
        await guests.come("a")
        gone = await guests.come("b")
        await guests.come("c")
        gone.cancel()
        await settle()
        assert guests.admission.waiting == 1
        await guests.go("a")
        assert guests.order == ["a", "c"]
        await guests.go("c")
        assert guests.admission.used == 0

    run(scenario)


def test_one_that_goes_away_as_its_place_comes_gives_it_to_the_next() -> None:
    async def scenario() -> None:
        guests = Guests(Admission(1, 4, 100))
        first = await guests.come("a")
        gone = await guests.come("b")
        await guests.come("c")
        guests._leave["a"].set()
        while not first.done():
            await asyncio.sleep(0)
        gone.cancel()
        await settle()
        assert guests.order[-1] == "c"
        await guests.go("c")
        assert guests.admission.used == 0

    run(scenario)


def test_after_the_close_nobody_is_let_in() -> None:
    async def scenario() -> None:
        guests = Guests(Admission(1, 4, 100))
        await guests.come("a")
        await guests.come("b")
        guests.admission.close()
        with pytest.raises(Fault, match="shutting down") as found:
            async with guests.admission.place(1):
                pass
        assert found.value.status == 503
        await guests.go("a")
        await guests.go("b")
        assert guests.order == ["a", "b"]

    run(scenario)
