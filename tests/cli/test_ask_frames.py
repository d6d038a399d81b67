"""`sdrpn ask` about every frame of a source, and the file of answers that it goes on with."""

from __future__ import annotations

import io
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdrpn.frames.feed import FrameFeed
from sdrpn.runtime import Session
from tests.cli.command import Command, Outcome, refusal
from tests.frames.movies import movie
from tests.pictures import photo

QUESTION = "What does the sign say?"


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """A folder of three pictures."""
    folder = tmp_path / "shots"
    folder.mkdir()
    for number in (1, 2, 10):
        Image.fromarray(photo(seed=number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def ask(sdrpn: Command, text_bundle: Path) -> Command:
    def run(source: object, *options: object) -> Outcome:
        return sdrpn("ask", text_bundle, source, QUESTION, "--max-new-tokens", 4, "--max-share", 1, *options)

    return run


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_picture_is_answered_as_by_itself(ask: Command, shots: Path) -> None:
    found = ask(shots, "--jsonl")
    assert (found.code, found.err) == (0, "")
    assert all(next(iter(line)) == "format_version" for line in lines(found.out))
    alone = [ask(shots / name, "--json").json() for name in ("1.png", "2.png", "10.png")]
    for line, expected in zip(lines(found.out), alone, strict=True):
        for name in ("text", "token_ids", "finish_reason", "boxes_xyxy_px"):
            assert line[name] == expected[name]


def test_as_text(ask: Command, shots: Path) -> None:
    found = ask(f"{shots}/*.png")
    places = [re.match(r".*/(\d+\.png) (\d): ", line) for line in found.out.splitlines() if line.startswith(str(shots))]
    assert [place.groups() for place in places if place] == [("1.png", "0"), ("2.png", "1"), ("10.png", "2")]


def test_a_video(ask: Command, tmp_path: Path) -> None:
    clip = movie(tmp_path / "clip.mp4", (photo((96, 64), seed) for seed in range(4)))
    assert [line["frame"] for line in lines(ask(clip, "--jsonl", "--every", 2).out)] == [0, 2]
    assert [line["frame"] for line in lines(ask(clip, "--jsonl", "--frames", 1).out)] == [0]


def test_a_picture_on_standard_input(
    ask: Command, shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pipe() -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((shots / "1.png").read_bytes())))

    pipe()
    (line,) = lines(ask("-", "--jsonl", "--out", tmp_path / "answers.jsonl").out)
    assert (line["source"], line["frame"]) == ("standard input", 0)
    assert line["token_ids"] == lines(ask(shots / "1.png", "--jsonl").out)[0]["token_ids"]
    pipe()
    message = refusal(ask("-", "--out", tmp_path / "answers.jsonl"))
    assert message.endswith("a picture on standard input has no place to go on from: name a new file")


class TestSeveralSources:
    def test_they_take_turns_and_go_on_from_a_file(self, ask: Command, shots: Path, tmp_path: Path) -> None:
        clip, out = movie(tmp_path / "clip.avi", (photo((96, 64), seed) for seed in range(3))), tmp_path / "a.jsonl"
        ask(clip, "--source", shots / "1.png", "--out", out, "--frames", 2)
        found = lines(ask(clip, "--source", shots / "1.png", "--jsonl", "--out", out).out)
        places = [(line["source"], line["frame"]) for line in lines(out.read_text())[1:]]
        assert len(found) == 2
        assert sorted(places) == sorted([*((str(clip), number) for number in range(3)), (f"{shots}/1.png", 0)])

    def test_one_that_cannot_be_read(self, ask: Command, shots: Path) -> None:
        found = ask(shots / "1.png", "--source", "none.mp4", "--jsonl")
        assert (found.code, len(lines(found.out))) == (1, 1)
        assert found.err.splitlines()[-1] == (
            "sdrpn: error: none.mp4 could not be read to the end; what came before is answered"
        )

    def test_one_that_is_named_twice(self, ask: Command, shots: Path) -> None:
        assert refusal(ask(shots, "--source", shots)) == f"{shots} is named twice; expected every source once"


def test_a_camera_that_is_given_up(ask: Command, shots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrameFeed, "given_up", ("rtsp://camera",))
    found = ask(shots, "--jsonl")
    assert (found.code, len(lines(found.out))) == (1, 3)
    assert "rtsp://camera could not be read to the end" in found.err


class TestResuming:
    def test_what_is_answered_is_not_asked_again(
        self, ask: Command, shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out, asked = tmp_path / "answers.jsonl", []
        real = Session.answer

        def counted(session: Session, image: Any, question: str, **options: Any) -> Any:
            asked.append(question)
            return real(session, image, question, **options)

        monkeypatch.setattr(Session, "answer", counted)
        first = ask(shots, "--jsonl", "--out", out, "--frames", 2)
        whole = out.read_text()
        out.write_text(whole[:-30])  # cut off in the middle of the second answer
        second = ask(shots, "--jsonl", "--out", out)
        assert (first.code, second.code) == (0, 0)
        assert len(asked) == 4
        assert [line["source"] for line in lines(second.out)] == [f"{shots}/2.png", f"{shots}/10.png"]
        kept = lines(out.read_text())
        assert "settings" in kept[0]
        assert [line["source"] for line in kept[1:]] == [f"{shots}/{name}.png" for name in (1, 2, 10)]
        assert second.err == f"sdrpn: 2 answered, 1 already answered in {out}\n"
        third = ask(shots, "--jsonl", "--out", out)
        assert (third.out, third.err) == ("", f"sdrpn: 0 answered, 3 already answered in {out}\n")

    def test_interrupted_it_says_how_far_it_came(
        self, ask: Command, shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, count = Session.answer, itertools.count()

        def interrupted(*arguments: Any, **options: Any) -> Any:
            if next(count) == 2:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        monkeypatch.setattr(Session, "answer", interrupted)
        found = ask(shots, "--jsonl", "--out", tmp_path / "answers.jsonl")
        assert (found.code, len(lines(found.out))) == (130, 2)
        assert found.err.splitlines() == ["sdrpn: 2 answered", "sdrpn: interrupted"]

    def test_other_settings_are_refused(self, ask: Command, shots: Path, tmp_path: Path) -> None:
        out = tmp_path / "answers.jsonl"
        ask(shots, "--out", out)
        message = refusal(ask(shots, "--out", out, "--temperature", 0.5, "--seed", 4))
        assert message == f"{out} has answers with another sampling; name another file, or ask as it was asked then"

    @pytest.mark.parametrize("content", ["some text\n", "{}\n", '{"settings": 3}\n'])
    def test_a_file_of_something_else(self, ask: Command, shots: Path, tmp_path: Path, content: str) -> None:
        (tmp_path / "a.jsonl").write_text(content)
        assert "a.jsonl is not a file of answers" in refusal(ask(shots, "--out", tmp_path / "a.jsonl"))
        assert (tmp_path / "a.jsonl").read_text() == content

    def test_a_line_that_is_no_answer(self, ask: Command, shots: Path, tmp_path: Path) -> None:
        out = tmp_path / "a.jsonl"
        ask(shots, "--out", out)
        out.write_text(f"{out.read_text()}{{}}\n")
        assert "a.jsonl line 5 is not an answer about a frame" in refusal(ask(shots, "--out", out))


def test_a_picture_that_cannot_be_read(ask: Command, shots: Path) -> None:
    (shots / "2.png").write_bytes(b"not a picture")
    found = ask(shots, "--jsonl")
    assert found.code == 1
    assert len(lines(found.out)) == 2
    assert found.err.splitlines()[-1] == ("sdrpn: error: 1 of the pictures could not be read; the others are answered")


def test_an_empty_folder(ask: Command, tmp_path: Path) -> None:
    assert "holds no picture and no video (it is empty)" in refusal(ask(tmp_path))


@pytest.mark.parametrize("option", [("--stream",), ("--json",), ("--overlay", "o.png"), ("--jpeg", "fast")])
def test_what_goes_with_one_picture(ask: Command, shots: Path, option: tuple[str, ...]) -> None:
    assert re.match(rf"{option[0]}.* goes with one picture", refusal(ask(shots, *option)))


def test_a_picture_that_is_named_like_a_camera(ask: Command, shots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shots / "1.png").rename(shots / "0")
    monkeypatch.chdir(shots)
    assert ask("0").code == 0


@pytest.mark.parametrize(("source", "device"), [("97", "97 (/dev/video97)"), ("/dev/video97", "/dev/video97")])
def test_a_camera_is_looked_for(ask: Command, source: str, device: str) -> None:
    assert refusal(ask(source)).startswith(f"camera {device} is not there")
