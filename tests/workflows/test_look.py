"""The loop of `sdrpn look`: every frame, what is unchanged, what is steady, and how much memory a long stream takes."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.frames.feed import FrameFeed, NamedOpener
from sdrpn.frames.frame import Frame, Pixels
from sdrpn.frames.thinning import ReadOptions
from sdrpn.method.policy import Roi
from sdrpn.method.roi import RoiPolicy, blur, decide_cells
from sdrpn.method.spec import ModelSpec
from sdrpn.runtime import Look, Session
from sdrpn.runtime.answer import Timings
from sdrpn.runtime.pictures import picture as picture_module
from sdrpn.runtime.pictures import pixels
from sdrpn.runtime.pictures.picture import Picture, open_picture
from sdrpn.runtime.regions import dropped_regions, regions_of
from sdrpn.runtime.tracker import Tracker
from sdrpn.tags import shipped_scene
from sdrpn.workflows.look import FrameLook, LookRequest, LookStream, look_stream
from tests.frames.fakes import FakeSource, flat, in_turn
from tests.pictures import photo

POLICY = RoiPolicy(0.3, max_share=1.0)
QUESTIONS = ("one ?", "two ?")


class FakeLooker:
    """Looks at the brightest cell of a frame, and counts how often it is asked."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.asked = spec, 0

    def open_picture(self, image: Pixels) -> Picture:
        return open_picture(image)

    def look_many(self, image: Picture, questions: Sequence[str], *, roi: Roi) -> list[Look]:
        self.asked += 1
        grid = self.spec.vision.grid(image.size)
        pixels = np.asarray(image.as_image().resize(grid.hw[::-1], Image.Resampling.BOX), np.float32)
        roi_map = pixels.mean(axis=-1) / 255
        blurred = blur(roi_map)
        decision = decide_cells(blurred > POLICY.threshold, blurred, POLICY.threshold, grid, POLICY)
        boxes, dropped = regions_of(decision, roi_map, grid), dropped_regions(decision, roi_map, grid)
        return [Look(text, image.size, boxes, roi_map, dropped, decision.note, Timings(), image) for text in questions]


@pytest.fixture
def looker(tiny_spec: ModelSpec) -> FakeLooker:
    return FakeLooker(tiny_spec)


def frames_of(*numbers: int, source: str = "a") -> list[Frame]:
    return [Frame(flat(number), source, index, index / 10) for index, number in enumerate(numbers)]


class TestLoop:
    def test_one_look_for_each_question_on_each_frame(self, looker: FakeLooker) -> None:
        found = list(LookStream(looker, frames_of(10, 200), QUESTIONS))
        assert [[look.question for look in each.looks] for each in found] == [list(QUESTIONS)] * 2
        assert [each.frame.index for each in found] == [0, 1]
        assert [len(each.looks[0].boxes) for each in found] == [0, 1]

    def test_figures(self, looker: FakeLooker) -> None:
        stream = LookStream(looker, frames_of(10, 10, 200), QUESTIONS)
        assert (stream.figures.frames, stream.figures.p50_s, stream.figures.fps) == (0, None, 0)
        list(stream)
        figures = stream.figures
        assert (figures.frames, figures.unchanged, figures.dropped) == (3, 1, 0)
        assert figures.p50_s is not None
        assert figures.p95_s is not None
        assert 0 < figures.p50_s <= figures.p95_s <= figures.seconds

    def test_it_shows_no_pixels(self, looker: FakeLooker) -> None:
        (found,) = LookStream(looker, frames_of(200), QUESTIONS)
        assert "array(" not in repr(found)
        assert repr(found).startswith("FrameLook(frame=Frame(source='a', index=0")

    def test_a_line_of_json(self, looker: FakeLooker) -> None:
        (found,) = LookStream(looker, frames_of(200), QUESTIONS)
        line = found.to_dict()
        assert {name: line[name] for name in ("source", "frame", "time_s", "image_wh", "dropped", "unchanged")} == {
            "source": "a",
            "frame": 0,
            "time_s": 0.0,
            "image_wh": [8, 8],
            "dropped": 0,
            "unchanged": False,
        }
        assert [look["question"] for look in line["looks"]] == list(QUESTIONS)
        assert "roi_map" not in line["looks"][0]


def test_a_frame_is_resized_once_with_the_threads_that_are_asked_for(
    text_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And found is what a look at the picture itself finds."""
    Image.fromarray(photo()).save(tmp_path / "a.png")
    with Session.open(text_bundle, threads=1) as session:
        expected = session.look_many(photo(), QUESTIONS, roi=POLICY)
    resized, real = list[int](), pixels.write_base

    def counted(array: Any, vision: Any, out: Any, threads: int) -> None:
        resized.append(threads)
        real(array, vision, out, threads)

    monkeypatch.setattr(picture_module, "write_base", counted)
    request = LookRequest(text_bundle, tmp_path / "a.png", QUESTIONS, roi=POLICY, threads=1)
    with look_stream(request) as stream:
        (found,) = stream
    assert resized == [1]
    assert list(found.looks) == expected


class TestUnchanged:
    def test_a_frame_that_looks_the_same_costs_no_look(self, looker: FakeLooker) -> None:
        found = list(LookStream(looker, frames_of(10, 10, 10, 20, 20, 10), QUESTIONS))
        assert [each.unchanged for each in found] == [False, True, True, False, True, False]
        assert looker.asked == 3
        assert found[2].looks is found[0].looks

    def test_of_each_source_by_itself(self, looker: FakeLooker) -> None:
        a, b = frames_of(10, 10, source="a"), frames_of(20, 20, source="b")
        found = list(LookStream(looker, [a[0], b[0], a[1], b[1]], QUESTIONS))
        assert [each.unchanged for each in found] == [False, False, True, True]

    def test_another_size_is_another_frame(self, looker: FakeLooker) -> None:
        frames = [Frame(flat(10, 8)), Frame(flat(10, 16), index=1)]
        assert [each.unchanged for each in LookStream(looker, frames, QUESTIONS)] == [False, False]

    def test_what_the_model_cannot_see_is_no_change(self, looker: FakeLooker, tiny_spec: ModelSpec) -> None:
        """One level in one pixel of a large frame, which resizing rounds away."""
        pixels = np.full((800, 800, 3), 100, np.uint8)
        other = pixels.copy()
        other[400, 400] = 101
        found = list(LookStream(looker, [Frame(pixels), Frame(other, index=1)], QUESTIONS))
        assert [each.unchanged for each in found] == [False, True]


def test_steady_boxes_of_every_question_and_source(looker: FakeLooker, tiny_spec: ModelSpec) -> None:
    frames = [*frames_of(200, 180, source="a"), *frames_of(70, source="b")]

    def found(trackers: bool) -> list[FrameLook]:
        make = (lambda: Tracker(tiny_spec.vision.grid, POLICY)) if trackers else None
        return list(LookStream(looker, frames, QUESTIONS, trackers=make))

    plain, tracked = found(False), found(True)
    assert tracked[0].looks == plain[0].looks
    assert tracked[1].looks[0].roi_map.mean() > plain[1].looks[0].roi_map.mean()  # it remembers the bright frame
    assert tracked[2].looks == plain[2].looks  # and the other source has none before


class TestRequests:
    def test_the_shipped_model_on_the_shipped_scene(self) -> None:
        scene = shipped_scene()
        request = LookRequest("demo", [str(scene.picture)], [scene.question], threads=1)
        with look_stream(request) as stream:
            (found,) = stream
        with Session.open("demo", threads=1) as session:
            expected = session.look(scene.picture, scene.question)
        assert found.looks[0] == expected
        (box,) = found.looks[0].boxes_xyxy_px
        x, y = ((scene.box_xyxy_px[axis] + scene.box_xyxy_px[axis + 2]) / 2 for axis in (0, 1))
        assert box[0] < x < box[2]
        assert box[1] < y < box[3]

    def test_one_source_needs_no_list(self) -> None:
        scene = shipped_scene()
        for source in (scene.picture, str(scene.picture), [scene.picture]):
            with look_stream(LookRequest("demo", source, [scene.question], threads=1)) as stream:
                assert [found.frame.source for found in stream] == [str(scene.picture)]

    def test_the_policy_is_the_models_with_what_was_asked_for(self, text_bundle: Path, tmp_path: Path) -> None:
        Image.fromarray(photo()).save(tmp_path / "photo.png")
        source = [str(tmp_path / "photo.png")]
        with Session.open(text_bundle) as session:
            expected = session.look(photo(), "What?", roi=0.4)
        with look_stream(LookRequest(text_bundle, source, ["What?"], roi=0.4)) as stream:
            assert next(stream).looks[0] == expected

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"questions": []}, r"questions are \[\]; expected a list of at least one question"),
            ({"questions": "what ?"}, "questions are 'what \\?'; expected a list"),
            ({"questions": ["what ?", "what ?"]}, "a question is asked twice"),
            ({"sources": []}, "no source is given"),
            ({"sources": ["-", "-"]}, "standard input is named twice"),
            ({"sources": ["0", "clip.mp4", 0]}, "is named twice; expected every source once"),
            ({"sources": ["clip.mp4", Path("clip.mp4")]}, "clip.mp4 is named twice; expected every source once"),
            ({"sources": ["rstp://x"]}, "did you mean rtsp"),
            ({"roi": None}, "roi is None; expected a threshold"),
            ({"roi": "a"}, "roi is 'a'; expected a threshold .*: a look finds regions"),
            ({"sources": [b"street.png"]}, "a source is b'street.png'; expected a text"),
            ({"sources": [["a.jpg"]]}, r"a source is \['a.jpg'\]; expected a text"),
            ({"sources": None}, "a source is None; expected a text"),
            ({"questions": [0]}, "a question is 0; expected a text"),
            ({"questions": 3}, "questions are 3; expected a list"),
            ({"track": "x"}, "track is 'x'; expected True or False"),
            ({"read": 3}, "read is 3; expected ReadOptions"),
            ({"roi": -0.5, "track": True}, "boxes are tracked with a threshold above 0 only"),
        ],
    )
    def test_refused_before_anything_is_loaded(
        self, changes: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: object, **options: object) -> Session:
            raise AssertionError("the graphs were loaded")

        monkeypatch.setattr(Session, "open_with", fail)
        request = {"bundle": "demo", "sources": ["a.jpg"], "questions": ["what ?"], **changes}
        with pytest.raises(BadInput, match=message):
            look_stream(LookRequest(**request))  # type: ignore[arg-type]

    def test_what_is_no_request(self) -> None:
        with pytest.raises(BadInput, match="request is 'demo'; expected a LookRequest"):
            look_stream("demo")  # type: ignore[arg-type]
        with pytest.raises(BadInput, match="a bundle is 3; expected the path of its folder, or 'demo'"):
            look_stream(LookRequest(3, "a.jpg", ["what ?"]))  # type: ignore[arg-type]

    def test_a_bundle_without_an_rpn(self, plain_bundle: Path) -> None:
        with pytest.raises(BadInput, match="has no RPN, which finds regions"):
            look_stream(LookRequest(plain_bundle, ["a.jpg"], ["what ?"]))


def endless(count: int) -> Iterator[int]:
    """Numbers of frames of which every fifth is as the one before."""
    for number in range(count):
        yield number - (number % 5 == 4)


@pytest.mark.slow
def test_memory_is_flat_over_50000_frames(looker: FakeLooker, tiny_spec: ModelSpec) -> None:
    """Through reader, feed and loop, with trackers: from frame 5,000 to the end the process grows by at most 1 %."""
    source = FakeSource(endless(50_000), times_s=cast("Sequence[float]", np.arange(50_000) / 30))
    feed = FrameFeed([NamedOpener("endless", in_turn(source))], ReadOptions())
    sizes: list[int] = []
    with (
        feed,
        LookStream(looker, feed, QUESTIONS[:1], trackers=lambda: Tracker(tiny_spec.vision.grid, POLICY)) as stream,
    ):
        for number, _ in enumerate(stream, start=1):
            if number in (5_000, 50_000):
                gc.collect()
                sizes.append(_resident_bytes())
        figures = stream.figures
    assert figures.frames == 50_000
    assert figures.unchanged == 10_000
    assert sizes[1] <= 1.01 * sizes[0], sizes


def _resident_bytes() -> int:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
