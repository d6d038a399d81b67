"""Several sources for one taker."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sdrpn.errors import BadImage, BadInput, MissingDependency
from sdrpn.frames.feed import FrameFeed, NamedOpener, opener_of
from sdrpn.frames.frame import Frame
from sdrpn.frames.source import read_source
from sdrpn.frames.thinning import ReadOptions
from tests.frames.fakes import FakeSource, Script, flat, in_turn, number_of


def feed_of(*sources: FakeSource, notes: list[str] | None = None, **options: bool | float) -> FrameFeed:
    openers = [NamedOpener(f"s{number}", in_turn(source)) for number, source in enumerate(sources)]
    note = (lambda text: None) if notes is None else notes.append
    return FrameFeed(openers, ReadOptions(**options), note=note)  # type: ignore[arg-type]


def feed_from(*texts: object, notes: list[str] | None = None) -> FrameFeed:
    options = ReadOptions()
    openers = [opener_of(read_source(str(text)), options, lambda: b"") for text in texts]
    return FrameFeed(openers, options, note=(lambda text: None) if notes is None else notes.append)


def seen(frames: list[Frame]) -> list[tuple[str, int, int]]:
    return [(frame.source, frame.index, number_of(frame.pixels)) for frame in frames]


def test_one_source() -> None:
    with feed_of(FakeSource([5, 6], times_s=[0, 0.04])) as feed:
        frames = list(feed)
    assert seen(frames) == [("s0", 0, 5), ("s0", 1, 6)]
    assert [frame.time_s for frame in frames] == [0, 0.04]


def test_several_sources_take_turns() -> None:
    with feed_of(FakeSource(range(100)), FakeSource(range(100, 200)), FakeSource(range(200, 210))) as feed:
        frames = list(feed)
    for source in ("s0", "s1", "s2"):
        own = [frame.index for frame in frames if frame.source == source]
        assert own == list(range(len(own)))
    assert len(frames) == 210


def test_one_that_is_slow_is_served_as_soon_as_it_has_a_frame() -> None:
    """However many frames the other has: the one whose turn is longest ago comes first."""
    script = Script()
    with feed_of(FakeSource(range(1000)), FakeSource([250], script=script)) as feed:
        first = [next(feed) for _ in range(20)]
        script.allow()
        reader = feed._readers[1]
        with feed._changed:
            assert feed._changed.wait_for(lambda: reader.box, 60)
        second = next(feed)
    assert {frame.source for frame in first} == {"s0"}
    assert second.source == "s1"


def test_sources_are_closed_when_it_ends() -> None:
    source = FakeSource(range(1000))
    with feed_of(source) as feed:
        next(feed)
    assert source.closed.is_set()


def test_no_source() -> None:
    with pytest.raises(BadInput, match="no source is given"):
        FrameFeed([])


def test_a_source_that_cannot_be_opened() -> None:
    opener = NamedOpener("camera 0", in_turn(BadInput("camera 0 is not there")), live=True)
    with FrameFeed([opener]) as feed, pytest.raises(BadInput, match="camera 0 is not there"):
        next(feed)


class TestPictures:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for number in (1, 2, 10):
            Image.fromarray(flat(number)).save(tmp_path / f"{number}.png")
        return tmp_path

    def test_a_folder(self, folder: Path) -> None:
        with feed_from(folder) as feed:
            frames = list(feed)
        assert seen(frames) == [(f"{folder}/{n}.png", place, n) for place, n in enumerate((1, 2, 10))]

    def test_all_of_them_also_where_frames_are_dropped(self, folder: Path) -> None:
        options = ReadOptions(drop=True)
        with FrameFeed([opener_of(read_source(str(folder)), options, lambda: b"")], options) as feed:
            assert len(list(feed)) == 3

    def test_one_picture(self, folder: Path) -> None:
        with feed_from(folder / "2.png") as feed:
            assert seen(list(feed)) == [(f"{folder}/2.png", 0, 2)]

    def test_one_that_cannot_be_read_is_passed_over(self, folder: Path) -> None:
        (folder / "2.png").write_bytes(b"not a picture")
        notes: list[str] = []
        with feed_from(folder, notes=notes) as feed:
            frames = list(feed)
        assert [number_of(frame.pixels) for frame in frames] == [1, 10]
        assert feed.unreadable == 1
        assert len(notes) == 1
        assert notes[0].startswith(f"passed over: {folder}/2.png is not a picture")

    def test_none_that_can_be_read(self, folder: Path) -> None:
        for path in folder.iterdir():
            path.write_bytes(b"not a picture")
        with feed_from(folder) as feed, pytest.raises(BadImage, match=r"1\.png is not a picture"):
            list(feed)

    def test_a_single_one_that_cannot_be_read(self, tmp_path: Path) -> None:
        notes: list[str] = []
        with feed_from(tmp_path / "none.jpg", notes=notes) as feed, pytest.raises(BadImage, match="does not exist"):
            list(feed)
        assert notes == []

    def test_standard_input(self, folder: Path) -> None:
        options = ReadOptions()
        data = (folder / "10.png").read_bytes()
        with FrameFeed([opener_of(read_source("-"), options, lambda: data)], options) as feed:
            assert seen(list(feed)) == [("standard input", 0, 10)]


class TestCameras:
    def test_none(self) -> None:
        with pytest.raises(
            BadInput, match=r"camera 97 \(/dev/video97\) is not there: .*; a file of that name is \./97"
        ):
            feed_from("97")


def test_notes_are_passed_on_while_nothing_comes() -> None:
    notes: list[str] = []
    sources = in_turn(FakeSource([1], live=True, error="the cable came off"), FakeSource([2], live=True))
    options = ReadOptions(drop=False, give_up_s=1.5)
    with FrameFeed([NamedOpener("cam", sources, live=True)], options, note=notes.append) as feed:
        assert [number_of(next(feed).pixels) for _ in range(2)] == [1, 2]
        assert feed.reconnects == 1
        assert list(feed) == []
    assert notes[:2] == ["cam broke off (the cable came off); it is opened again", "cam is back"]
    assert feed.given_up == ("cam",)


class TestSourcesThatFail:
    def test_one_among_several_is_passed_over(self) -> None:
        notes: list[str] = []
        good = NamedOpener("good", in_turn(FakeSource([1, 2])))
        bad = NamedOpener("bad", in_turn(BadInput("bad is no video")))
        with FrameFeed([bad, good], note=notes.append) as feed:
            assert [number_of(frame.pixels) for frame in feed] == [1, 2]
        assert notes == ["passed over: bad is no video"]
        assert feed.broken == ("bad",)

    def test_all_of_several(self) -> None:
        openers = [NamedOpener(name, in_turn(BadInput(f"{name} is no video"))) for name in ("a", "b")]
        with FrameFeed(openers) as feed, pytest.raises(BadInput, match=r"^[ab] is no video"):
            next(feed)

    def test_the_only_one_after_some_frames(self) -> None:
        notes: list[str] = []
        with feed_of(FakeSource([1, 2], error="it is cut off"), notes=notes) as feed:
            assert [number_of(frame.pixels) for frame in feed] == [1, 2]
        assert notes == ["it is cut off"]
        assert feed.broken == ("s0",)

    def test_a_missing_library_ends_it(self) -> None:
        bad = NamedOpener("bad", in_turn(MissingDependency("reading needs av")))
        with (
            FrameFeed([bad, NamedOpener("cam", in_turn(FakeSource([1], script=Script())))]) as feed,
            pytest.raises(MissingDependency),
        ):
            next(feed)
