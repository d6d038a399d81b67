"""One source and the thread that reads it: what is dropped, what is opened again, and what is given up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest

from sdrpn.errors import BadInput
from sdrpn.frames import reader as reader_module
from sdrpn.frames.frame import Pixels
from sdrpn.frames.raw import Opener, RawFrame
from sdrpn.frames.reader import Arrived, Reader
from sdrpn.frames.thinning import ReadOptions
from tests.frames.fakes import PATIENCE_S, FakeSource, Script, flat, in_turn, number_of


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "RETRY_S", 0.001)


@pytest.fixture
def changed() -> threading.Condition:
    return threading.Condition()


@pytest.fixture
def read(changed: threading.Condition) -> Iterator[Callable[..., Reader]]:
    """Begins to read a source."""
    begun: list[Reader] = []

    def begin(opener: Opener, *, live: bool = False, clock: Clock | None = None, **options: float | bool) -> Reader:
        found = Reader(
            "camera",
            opener,
            changed,
            ReadOptions(**options),  # type: ignore[arg-type]
            live=live,
            clock=clock or Clock(),
        )
        begun.append(found)
        found.start()
        return found

    yield begin
    for each in begun:
        each.stop()


def until(changed: threading.Condition, holds: Callable[[], object]) -> None:
    with changed:
        assert changed.wait_for(holds, PATIENCE_S)


def take(reader: Reader, changed: threading.Condition) -> Arrived:
    with changed:
        assert changed.wait_for(lambda: reader.box, PATIENCE_S)
        arrived = reader.box.take()
    assert arrived is not None
    return arrived


def take_all(reader: Reader, changed: threading.Condition) -> list[int]:
    found: list[int] = []
    while True:
        with changed:
            assert changed.wait_for(lambda: reader.box or reader.over, PATIENCE_S)
            arrived = reader.box.take()
        if arrived is None:
            return found
        found.append(number_of(arrived.raw.pixels()))


Read = Callable[..., Reader]


class TestFiles:
    def test_every_frame_in_order_however_slow_the_taker(self, read: Read, changed: threading.Condition) -> None:
        reader = read(in_turn(FakeSource(range(200))))
        assert take_all(reader, changed) == list(range(200))
        assert (reader.dropped, reader.error) == (0, None)

    def test_it_does_not_read_far_ahead(self, read: Read, changed: threading.Condition) -> None:
        script = Script()
        script.allow(1000)
        reader = read(in_turn(FakeSource(_counted(script), script=script)))
        assert number_of(take(reader, changed).raw.pixels()) == 0
        assert script.given <= 5  # two in the box, one in the reader's hand, and the one that was taken

    def test_an_error_ends_it_after_the_frames_before(self, read: Read, changed: threading.Condition) -> None:
        reader = read(in_turn(FakeSource([1, 2], error="it is cut off")))
        assert take_all(reader, changed) == [1, 2]
        assert str(reader.error) == "it is cut off"

    def test_an_error_of_a_library_ends_it_too(self, read: Read, changed: threading.Condition) -> None:
        def burst() -> None:
            raise ZeroDivisionError("by zero")

        reader = read(in_turn(FakeSource([1], at_end=burst)))
        assert take_all(reader, changed) == [1]
        assert str(reader.error) == "reading camera failed: ZeroDivisionError: by zero"

    def test_thinned_frames_keep_their_numbers(self, read: Read, changed: threading.Condition) -> None:
        reader = read(in_turn(FakeSource(range(5))), every=2)
        assert [take(reader, changed).index for _ in range(3)] == [0, 2, 4]

    def test_its_source_is_closed(self, read: Read, changed: threading.Condition) -> None:
        source = FakeSource([1])
        take_all(read(in_turn(source)), changed)
        assert source.closed.wait(PATIENCE_S)


class TestDropping:
    def test_a_live_source_keeps_the_newest(self, read: Read, changed: threading.Condition) -> None:
        script = Script()
        reader = read(in_turn(FakeSource(range(100), live=True, script=script)), live=True)
        script.allow()
        assert number_of(take(reader, changed).raw.pixels()) == 0
        script.allow(50)
        until(changed, lambda: reader.dropped == 49)
        assert number_of(take(reader, changed).raw.pixels()) == 50

    def test_not_if_it_is_not_wanted(self, read: Read, changed: threading.Condition) -> None:
        source = in_turn(FakeSource(range(20), live=True))
        reader = read(source, live=True, drop=False, give_up_s=1e-6, clock=_Running())
        assert take_all(reader, changed) == list(range(20))
        assert reader.dropped == 0

    def test_a_file_as_if_it_were_live(self, read: Read, changed: threading.Condition) -> None:
        clock, naps = Clock(), []

        def pass_time(seconds: float) -> None:
            naps.append(seconds)
            clock.now_s += seconds

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sdrpn.frames.reader.time.sleep", pass_time)
            reader = read(in_turn(FakeSource(range(4), times_s=[0, 1, 2, 3])), drop=True, clock=clock)
            until(changed, lambda: reader.over or reader.dropped == 3)
        assert sum(naps) == pytest.approx(3)  # it was played at its own speed
        assert number_of(take(reader, changed).raw.pixels()) == 3


class TestBrokenOff:
    def test_it_is_opened_again_and_counts_on(self, read: Read, changed: threading.Condition) -> None:
        second = FakeSource([3, 4], live=True, script=(script := Script()))
        opener = in_turn(FakeSource([1, 2], live=True, error="the cable came off"), BadInput("not yet"), second)
        reader = read(opener, live=True, drop=False)
        assert [take(reader, changed).index for _ in range(2)] == [0, 1]
        script.allow(2)
        assert [take(reader, changed).index for _ in range(2)] == [2, 3]
        assert (reader.reconnects, reader.error) == (1, None)
        assert reader.notes[:2] == ["camera broke off (the cable came off); it is opened again", "camera is back"]

    def test_a_first_time_that_fails_is_an_error(self, read: Read, changed: threading.Condition) -> None:
        reader = read(in_turn(BadInput("there is none")), live=True)
        until(changed, lambda: reader.over)
        assert str(reader.error) == "there is none"

    def test_it_is_given_up(self, read: Read, changed: threading.Condition) -> None:
        reader = read(in_turn(FakeSource([1], live=True)), live=True, give_up_s=0.25, clock=_Running())
        assert take_all(reader, changed) == [1]
        assert (reader.gave_up, reader.error) == (True, None)
        assert reader.notes == ["camera gave no frame for 0.25 s and is given up: the stream ended"]

    def test_its_name_is_said_once(self, read: Read, changed: threading.Condition) -> None:
        source = FakeSource([1], live=True, error="camera broke off: no route")
        reader = read(in_turn(source), live=True, give_up_s=40, clock=_Running())
        take_all(reader, changed)
        assert reader.notes == [
            "camera broke off (no route); it is opened again",
            "camera gave no frame for 40 s and is given up: nothing is there",
        ]

    def test_it_is_given_up_also_while_a_try_hangs(self, read: Read, changed: threading.Condition) -> None:
        clock, hangs, sources = Clock(), threading.Event(), [FakeSource([1], live=True)]

        def opener() -> FakeSource:
            if not sources:
                _hang(hangs)
            return sources.pop()

        reader = read(opener, live=True, give_up_s=4, clock=clock)
        take(reader, changed)
        until(changed, lambda: reader.notes)
        clock.now_s += 4
        with changed:
            reader.check()
        assert reader.gave_up
        assert reader.notes[-1] == "camera gave no frame for 4 s and is given up: it does not answer"
        hangs.set()

    def test_a_finished_video_that_comes_again_and_again_is_given_up(
        self, read: Read, changed: threading.Condition
    ) -> None:
        """Frames of a minute in 1.5 s of the clock."""
        opened: list[FakeSource] = []

        def opener() -> FakeSource:
            opened.append(FakeSource([1, 2, 3, 4], live=True, times_s=[0, 20, 40, 60]))
            return opened[-1]

        reader = read(opener, live=True, drop=False, give_up_s=60, clock=_Running())
        frames = take_all(reader, changed)
        assert frames == [1, 2, 3, 4] * len(opened)
        assert 2 <= len(opened) < 30
        assert reader.gave_up
        assert reader.notes == [
            "camera ended (the stream ended), and came faster than live; it is opened again",
            "camera gave a finished video again and again for 60 s and is given up; copy it, and name the file",
        ]

    def test_a_live_one_that_hangs_up_often_is_not(self, read: Read, changed: threading.Condition) -> None:
        """The same, at its own speed."""
        clock, left = Clock(), [0] * 5

        def numbers() -> Iterator[int]:
            for number in range(4):
                clock.now_s += 20
                yield number

        def opener() -> FakeSource:
            if not left:
                clock.now_s += 60
                raise BadInput("it is gone")
            left.pop()
            return FakeSource(numbers(), live=True, times_s=[0, 20, 40, 60])

        reader = read(opener, live=True, drop=False, give_up_s=60, clock=clock)
        assert take_all(reader, changed) == [0, 1, 2, 3] * 5
        assert reader.reconnects == 4
        assert reader.notes[-1] == "camera gave no frame for 60 s and is given up: it is gone"

    def test_torn_frames_show_life_and_are_not_taken(self, read: Read, changed: threading.Condition) -> None:
        class Torn(FakeSource):
            def frames(self) -> Iterator[RawFrame]:
                for place, frame in enumerate(super().frames()):
                    yield replace(frame, whole=place >= 2)

        reader = read(in_turn(Torn([1, 2, 3, 4], live=True)), live=True, drop=False)
        taken = [take(reader, changed) for _ in range(2)]
        assert [(arrived.index, number_of(arrived.raw.pixels())) for arrived in taken] == [(0, 3), (1, 4)]

    def test_a_file_is_not_opened_again(self, read: Read, changed: threading.Condition) -> None:
        reader = read(in_turn(FakeSource([1]), FakeSource([2])))
        assert take_all(reader, changed) == [1]


class TestWatchdog:
    def test_a_read_that_hangs_is_left_behind(self, read: Read, changed: threading.Condition) -> None:
        clock, hangs = Clock(), threading.Event()
        stuck = FakeSource([1], live=True, at_end=lambda: _hang(hangs))
        opener = in_turn(stuck, FakeSource([2], live=True, at_end=lambda: _hang(hangs)))
        reader = read(opener, live=True, clock=clock)
        assert number_of(take(reader, changed).raw.pixels()) == 1
        with changed:
            reader.check()  # not yet
        assert reader.reconnects == 0
        clock.now_s += ReadOptions().read_timeout_s + 1.5
        with changed:
            reader.check()
        assert number_of(take(reader, changed).raw.pixels()) == 2
        assert reader.reconnects == 1
        hangs.set()

    def test_what_a_thread_that_was_left_behind_reads_is_not_taken(
        self, read: Read, changed: threading.Condition
    ) -> None:
        clock, script = Clock(), Script()
        late = FakeSource([1, 99], live=True, script=script)
        reader = read(in_turn(late, FakeSource([2], live=True, at_end=lambda: script.wait())), live=True, clock=clock)
        script.allow()
        assert number_of(take(reader, changed).raw.pixels()) == 1
        clock.now_s += 10
        with changed:
            reader.check()
        assert number_of(take(reader, changed).raw.pixels()) == 2
        script.allow(2)
        assert late.closed.wait(PATIENCE_S)
        assert not reader.box

    def test_a_first_time_that_hangs_is_an_error(self, read: Read, changed: threading.Condition) -> None:
        clock, hangs = Clock(), threading.Event()

        def opener() -> FakeSource:
            _hang(hangs)
            raise BadInput("too late")

        reader = read(opener, live=True, clock=clock)
        clock.now_s += ReadOptions().open_timeout_s + 1.5
        with changed:
            reader.check()
        assert str(reader.error) == "camera does not answer within 5 s"
        hangs.set()

    def test_a_taker_that_is_slow_is_no_silence(self, read: Read, changed: threading.Condition) -> None:
        clock = Clock()
        reader = read(in_turn(FakeSource(range(9), live=True)), live=True, drop=False, clock=clock)
        take(reader, changed)
        until(changed, lambda: len(list(reader.box._items)) == 2)
        clock.now_s += 100
        with changed:
            # The reader looks up while it waits for room, and says that it lives.
            for _ in range(1000):
                if not _alive(reader, clock):
                    changed.wait(0.02)
            reader.check()
        assert reader.reconnects == 0
        assert reader.notes == []


class _Running(Clock):
    """A second passes with every look at it."""

    def __call__(self) -> float:
        self.now_s += 0.5
        return self.now_s


def _alive(reader: Reader, clock: Clock) -> bool:
    assert reader._attempt is not None
    return reader._attempt.deadline_s > clock.now_s


def _hang(until_: threading.Event) -> None:
    assert until_.wait(PATIENCE_S)


def _counted(script: Script) -> Iterator[int]:
    for number in range(1000):
        script.given = number + 1
        yield number


def test_raw_frames_are_made_when_they_are_needed(read: Read, changed: threading.Condition) -> None:
    made: list[int] = []

    def make(number: int) -> Pixels:
        made.append(number)
        return flat(number)

    class Source(FakeSource):
        def frames(self) -> Iterator[RawFrame]:
            for number in range(3):
                yield RawFrame(partial(make, number))

    reader = read(in_turn(Source([])))
    take(reader, changed)
    take(reader, changed).raw.pixels()
    assert made == [1]
