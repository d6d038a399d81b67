"""`sdrpn look`: what it prints and writes for every kind of source, and one line for all that cannot be."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrpn.frames import annotation
from sdrpn.frames.frame import Frame
from sdrpn.frames.video import open_video_file
from sdrpn.runtime import Session
from sdrpn.workflows import look_folder
from sdrpn.workflows.look import FrameLook, LookStream
from tests.cli.command import Command, Outcome, refusal
from tests.frames.movies import cut_off, halves, movie, unknown_codec
from tests.pictures import SIZE_WH, photo

QUESTION, OTHER = "What does the sign say?", "Where is the door?"
# Of 4 x 4 cells, any region may be looked at; at this threshold the small model finds one.
REGIONS = ("--max-share", 1, "--threshold", 0.3)


@pytest.fixture
def look(sdrpn: Command, text_bundle: Path) -> Command:
    def run(source: object, *rest: object) -> Outcome:
        return sdrpn("look", text_bundle, source, *REGIONS, *rest)

    return run


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A video of six frames."""
    return movie(tmp_path / "clip.mp4", (photo((128, 96), seed) for seed in range(6)))


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> Session:
        raise AssertionError("the graphs were loaded")

    monkeypatch.setattr(Session, "open_with", fail)


def lines(outcome: Outcome) -> list[dict[str, Any]]:
    assert outcome.code == 0, outcome
    return [json.loads(line) for line in outcome.out.splitlines()]


def summary(outcome: Outcome) -> str:
    """The first line on stderr that sums the run up."""
    return next(line for line in outcome.err.splitlines() if re.match(r"sdrpn: \d+ frames? in", line))


class TestOutput:
    def test_a_line_of_json_per_frame(self, look: Command, text_bundle: Path, picture: Path) -> None:
        (line,) = lines(look(picture, QUESTION, OTHER, "--jsonl"))
        assert (next(iter(line)), line["format_version"]) == ("format_version", 1)
        assert (line["source"], line["frame"], line["time_s"]) == (str(picture), 0, None)
        assert line["image_wh"] == list(SIZE_WH)
        with Session.open(text_bundle) as session:
            policy = session.policy.__class__(0.3, max_share=1)
            expected = [session.look(photo(), question, roi=policy) for question in (QUESTION, OTHER)]
        for found, look_of in zip(line["looks"], expected, strict=True):
            assert found["question"] == look_of.question
            assert found["boxes"] == [region.to_dict() for region in look_of.boxes]
        assert line["looks"][0]["boxes"]

    def test_a_line_of_text_per_frame_and_question(self, look: Command, picture: Path) -> None:
        found = look(picture, QUESTION, OTHER)
        assert found.code == 0
        assert re.fullmatch(
            rf"{re.escape(str(picture))} 0: {re.escape(QUESTION)}: 0\.\d\d at \d+,\d+,\d+,\d+\n"
            rf"{re.escape(str(picture))} 0: {re.escape(OTHER)}: (nothing|0\.\d\d at \d+,\d+,\d+,\d+)\n",
            found.out,
        )

    def test_the_summary_is_on_stderr(self, look: Command, picture: Path) -> None:
        found = look(picture, QUESTION, "--jsonl")
        assert re.fullmatch(r"sdrpn: 1 frame in \d+\.\d s, \d+\.\d fps, p50 \d+\.\d ms, p95 \d+\.\d ms", summary(found))

    def test_nothing_found_says_so(self, look: Command, picture: Path) -> None:
        assert look(picture, QUESTION, "--threshold", 0.99).out.endswith(f"{QUESTION}: nothing\n")

    def test_why_regions_were_left_out(self, look: Command, picture: Path) -> None:
        rest = ("--threshold", 0.01, "--max-share", 0.01)
        (line,) = lines(look(picture, QUESTION, *rest, "--jsonl"))
        (dropped,) = line["looks"][0]["dropped"]
        assert look(picture, QUESTION, *rest).out.endswith(
            f"{QUESTION}: nothing (1 region left out: {dropped['reason']})\n"
        )


def test_results_stay_on_stdout_beside_a_status_line(text_bundle: Path, clip: Path) -> None:
    """With a screen for stderr, and stdout in a pipe."""
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "sdrpn", "look", str(text_bundle), str(clip), QUESTION, "--jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, text=True) as running:
        os.close(terminal)
        out, _ = running.communicate(timeout=120)
    shown = os.read(screen, 1 << 20).decode()
    os.close(screen)
    assert running.returncode == 0, shown
    assert [json.loads(line)["frame"] for line in out.splitlines()] == list(range(6))
    assert "sdrpn: 6 frames in" in shown
    assert "looks" not in shown


class TestSources:
    def test_a_video(self, look: Command, clip: Path) -> None:
        found = lines(look(clip, QUESTION, "--jsonl"))
        assert [line["frame"] for line in found] == list(range(6))
        assert [line["time_s"] for line in found] == pytest.approx([number / 25 for number in range(6)], abs=0.002)

    def test_thinned(self, look: Command, clip: Path) -> None:
        assert [line["frame"] for line in lines(look(clip, QUESTION, "--jsonl", "--every", 2))] == [0, 2, 4]
        assert [line["frame"] for line in lines(look(clip, QUESTION, "--jsonl", "--max-fps", 5))] == [0, 5]
        assert [line["frame"] for line in lines(look(clip, QUESTION, "--jsonl", "--frames", 2))] == [0, 1]

    def test_a_folder_and_a_pattern(self, look: Command, clip: Path, tmp_path: Path) -> None:
        for seed in (2, 10, 1):
            Image.fromarray(photo(seed=seed)).save(tmp_path / f"{seed}.png")
        every = [Path(line["source"]).name for line in lines(look(tmp_path, QUESTION, "--jsonl"))]
        assert every == ["1.png", "2.png", "10.png", *["clip.mp4"] * 6]
        pictures = lines(look(f"{tmp_path}/*.png", QUESTION, "--jsonl"))
        assert [Path(line["source"]).name for line in pictures] == every[:3]

    def test_standard_input(self, look: Command, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stdin = io.TextIOWrapper(io.BytesIO(picture.read_bytes()))
        monkeypatch.setattr(sys, "stdin", stdin)
        (line,) = lines(look("-", QUESTION, "--jsonl"))
        assert line["source"] == "standard input"

    def test_two_at_once(self, look: Command, clip: Path, tmp_path: Path) -> None:
        second = movie(tmp_path / "second.avi", (photo((96, 96), seed) for seed in range(10, 14)))
        found = lines(look(clip, QUESTION, "--jsonl", "--source", second))
        assert {name: [line["frame"] for line in found if line["source"] == str(name)] for name in (clip, second)} == {
            clip: list(range(6)),
            second: list(range(4)),
        }

    def test_unchanged_frames_are_the_last_look_again(self, look: Command, tmp_path: Path) -> None:
        still = movie(tmp_path / "still.avi", [halves(0)] * 4)
        found = look(still, QUESTION, "--jsonl")
        assert [line["unchanged"] for line in lines(found)] == [False, True, True, True]
        assert len({json.dumps(line["looks"]) for line in lines(found)}) == 1
        assert summary(found).endswith(", 3 unchanged")

    def test_a_picture_that_cannot_be_read_is_passed_over(self, look: Command, tmp_path: Path) -> None:
        Image.fromarray(photo()).save(tmp_path / "a.png")
        (tmp_path / "b.png").write_bytes(b"not a picture")
        found = look(tmp_path, QUESTION, "--jsonl")
        assert found.code == 1
        assert len(found.out.splitlines()) == 1
        assert "sdrpn: warning: passed over: " in found.err
        assert summary(found).endswith(", 1 unreadable")

    def test_tracked(self, look: Command, clip: Path) -> None:
        assert len(lines(look(clip, QUESTION, "--jsonl", "--track"))) == 6


class TestFolder:
    def test_everything_of_a_video(self, look: Command, clip: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        found = look(clip, QUESTION, "--jsonl", "--out", out, "--save", "--save-crops", "--save-video")
        assert f"sdrpn: written: {out}" in found.err
        assert (out / "looks.jsonl").read_text() == found.out
        assert {line["saved_as"] for line in lines(found)} == {"clip.mp4"}
        overlays = sorted((out / "overlays").iterdir())
        assert [path.name for path in overlays] == [f"clip.mp4-{number:06d}.jpg" for number in range(6)]
        boxes = [line["looks"][0]["boxes"] for line in lines(found)]
        assert any(boxes)
        for number, regions in enumerate(boxes):
            for place, region in enumerate(regions, start=1):
                x1, y1, x2, y2 = region["xyxy_px"]
                with Image.open(out / "crops" / f"clip.mp4-{number:06d}-1-{place}.jpg") as crop:
                    assert crop.size == (x2 - x1, y2 - y1)
        video = open_video_file(out / "clip.mp4")
        times = [frame.time_s for frame in video.frames()]
        video.close()
        assert times == pytest.approx([number / 25 for number in range(6)], abs=0.002)
        with Image.open(overlays[0]) as drawn:
            assert drawn.size[0] % 2 == drawn.size[1] % 2 == 0

    def test_out_alone_saves_overlays(self, look: Command, picture: Path, tmp_path: Path) -> None:
        look(picture, QUESTION, "--out", tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["looks.jsonl", "overlays"]

    def test_numbered_folders_below_a_file(
        self,
        look: Command,
        picture: Path,
        tmp_path: Path,
        nothing_is_loaded: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / "runs").write_text("a file")
        monkeypatch.chdir(tmp_path)
        message = refusal(look(picture, QUESTION, "--save"))
        assert message == "runs/look/1 is below runs, which is a file; name another folder, or rename the file"

    def test_folders_are_numbered(
        self, look: Command, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for number in (1, 2):
            assert f"written: runs/look/{number}" in look(picture, QUESTION, "--save").err
        assert sorted(path.name for path in (tmp_path / "runs" / "look").iterdir()) == ["1", "2"]

    def test_two_sources_of_one_name(self, look: Command, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            Image.fromarray(photo(seed=ord(name))).save(tmp_path / name / "x.png")
        out = tmp_path / "out"
        found = look(tmp_path / "b" / "x.png", QUESTION, "--source", tmp_path / "a" / "x.png", "--out", out, "--jsonl")
        assert sorted(path.name for path in (out / "overlays").iterdir()) == ["x.png-000000.jpg", "x_2.png-000000.jpg"]
        names = {line["source"]: line["saved_as"] for line in lines(found)}
        assert names == {f"{tmp_path}/b/x.png": "x.png", f"{tmp_path}/a/x.png": "x_2.png"}
        assert found.err.splitlines()[-1] == f"sdrpn: x_2.png there is {tmp_path}/a/x.png"

    def test_two_videos_of_one_name_in_the_order_of_the_command_line(self, look: Command, tmp_path: Path) -> None:
        """However soon the second one is open."""
        for name, seed in (("a", 1), ("b", 2), ("c", 3)):
            (tmp_path / name).mkdir()
            movie(tmp_path / name / ("clip.avi" if name == "c" else "clip.mp4"), [photo((64 * seed, 64), seed)] * 2)
        out = tmp_path / "out"
        sources = [tmp_path / "b" / "clip.mp4", tmp_path / "a" / "clip.mp4", tmp_path / "c" / "clip.avi"]
        look(sources[0], QUESTION, "--source", sources[1], "--source", sources[2], "--out", out, "--save-video")
        names = {
            line["source"]: line["saved_as"] for line in map(json.loads, (out / "looks.jsonl").read_text().splitlines())
        }
        assert names == dict(zip(map(str, sources), ("clip.mp4", "clip_2.mp4", "clip_3.avi"), strict=True))
        shapes = {}
        for number in ("", "_2", "_3"):
            video = open_video_file(out / f"clip{number}.mp4")
            shapes[number] = next(iter(video.frames())).pixels().shape[:2]
            video.close()
        widths = [width / height for height, width in shapes.values()]
        assert widths[1] < widths[0] < widths[2]

    def test_nothing_is_written_unless_it_is_asked_for(
        self, look: Command, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        look(picture, QUESTION)
        assert list((tmp_path / "here").iterdir()) == []

    def test_a_frame_that_changes_its_size_is_fitted_into_the_video(self, look: Command, tmp_path: Path) -> None:
        for name, wh in (("1", (400, 300)), ("2", (300, 400))):
            Image.fromarray(photo(wh)).save(tmp_path / f"{name}.png")
        assert look(tmp_path / "*.png", QUESTION, "--out", tmp_path / "out", "--save-video").code == 0
        video = open_video_file(tmp_path / "out" / "pictures.mp4")
        shapes = {frame.pixels().shape for frame in video.frames()}
        video.close()
        assert len(shapes) == 1


def test_interrupted_it_ends_with_a_summary_and_a_whole_video(
    look: Command, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LookStream.__next__

    def interrupted(stream: LookStream) -> FrameLook:
        if stream.figures.frames == 3:
            raise KeyboardInterrupt
        return real(stream)

    monkeypatch.setattr(LookStream, "__next__", interrupted)
    found = look(clip, QUESTION, "--jsonl", "--save-video", "--out", tmp_path / "out")
    assert found.code == 130
    assert len(found.out.splitlines()) == 3
    assert summary(found).startswith("sdrpn: 3 frames in")
    assert found.err.splitlines()[-1] == "sdrpn: interrupted"
    video = open_video_file(tmp_path / "out" / "clip.mp4")
    assert len(list(video.frames())) == 3
    video.close()


def test_interrupted_while_it_writes_a_frame_is_written_whole(
    look: Command, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes between a line of looks.jsonl and its frame of the video."""
    real = annotation.annotated

    def interrupted(frame: Frame, *rest: Any, **options: Any) -> Any:
        if frame.index == 2:
            signal.raise_signal(signal.SIGINT)
        return real(frame, *rest, **options)

    monkeypatch.setattr(look_folder, "annotated", interrupted)
    found = look(clip, QUESTION, "--jsonl", "--save-video", "--out", tmp_path / "out")
    assert found.code == 130
    assert len((tmp_path / "out" / "looks.jsonl").read_text().splitlines()) == 3
    video = open_video_file(tmp_path / "out" / "clip.mp4")
    assert len(list(video.frames())) == 3
    video.close()


class TestRefused:
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("97", r"camera 97 \(/dev/video97\) is not there"),
            ("rstp://camera", r"rstp://camera begins with rstp://, which is not read; did you mean rtsp\?"),
            ("none/*.jpg", r"the pattern 'none/\*\.jpg' matches no file; the folder none does not exist"),
            ("", r"a source is empty"),
        ],
    )
    def test_before_anything_is_loaded(self, look: Command, nothing_is_loaded: None, source: str, message: str) -> None:
        assert re.match(message, refusal(look(source, QUESTION)))

    def test_an_empty_folder(self, look: Command, nothing_is_loaded: None, tmp_path: Path) -> None:
        assert "holds no picture and no video (it is empty)" in refusal(look(tmp_path, QUESTION))

    @pytest.mark.parametrize("name", ["none.jpg", "none.mp4"])
    def test_no_file(self, look: Command, tmp_path: Path, name: str) -> None:
        found = look(tmp_path / name, QUESTION)
        assert found.code == 2
        assert re.search(rf"sdrpn: error: .*{re.escape(name)} does not exist; expected the path of a \w+\n", found.err)

    def test_a_codec_that_is_missing(self, look: Command, tmp_path: Path) -> None:
        found = look(unknown_codec(movie(tmp_path / "a.avi", [halves(0)])), QUESTION)
        assert found.code == 2
        assert "is encoded in a way that this PyAV cannot decode; convert it" in found.err

    def test_a_video_that_is_cut_off(self, look: Command, tmp_path: Path) -> None:
        """What is whole is looked at, and printed."""
        whole = movie(tmp_path / "a.avi", map(halves, range(8)))
        found = look(cut_off(whole, 0.6), QUESTION, "--jsonl")
        assert found.code == 1
        assert 1 < len(found.out.splitlines()) < 8
        assert re.search(r"sdrpn: warning: \S+ ends in the middle of a frame", found.err)
        assert summary(found).endswith(", 1 not read to the end")

    def test_one_source_of_several(self, look: Command, picture: Path, tmp_path: Path) -> None:
        (bad := tmp_path / "bad.mp4").write_bytes(b"some text " * 99)
        for source in (bad, tmp_path / "none.mp4", "97", f"{tmp_path}/none/*.jpg"):
            out = tmp_path / Path(str(source)).name.replace("*", "all")
            found = look(source, QUESTION, "--source", picture, "--jsonl", "--out", out := out.with_suffix(".out"))
            assert found.code == 1, found
            assert [json.loads(line)["source"] for line in found.out.splitlines()] == [str(picture)]
            assert "sdrpn: warning: passed over: " in found.err
            assert summary(found).endswith(", 1 not read to the end")
            assert f"written: {out}" in found.err

    def test_every_source_of_several(self, look: Command, tmp_path: Path) -> None:
        (bad := tmp_path / "bad.mp4").write_bytes(b"some text " * 99)
        found = look(bad, QUESTION, "--source", tmp_path / "none.mp4", "--out", tmp_path / "out")
        assert (found.code, found.out, (tmp_path / "out").exists()) == (2, "", False)

    def test_a_video_is_asked_for_without_the_library(
        self,
        look: Command,
        picture: Path,
        tmp_path: Path,
        nothing_is_loaded: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setitem(sys.modules, "av", None)
        message = refusal(look(picture, QUESTION, "--save-video", "--out", tmp_path / "out"))
        assert message.startswith("writing videos ")
        assert "pip install 'sdrpn[video]'" in message
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("below", ["x", "x/y"])
    def test_an_output_folder_below_a_file(
        self, look: Command, picture: Path, nothing_is_loaded: None, below: str
    ) -> None:
        message = refusal(look(picture, QUESTION, "--out", picture / below))
        assert message == f"--out {picture / below} is below {picture}, which is a file; expected a path in a folder"

    def test_a_url_that_does_not_answer(self, look: Command) -> None:
        found = look("http://127.0.0.1:9/x", QUESTION)
        assert found.code == 2
        assert "http://127.0.0.1:9/x cannot be opened: connection refused" in found.err

    def test_a_pattern_that_the_shell_expanded(self, look: Command, picture: Path, nothing_is_loaded: None) -> None:
        message = refusal(look(picture, picture, QUESTION))
        assert message.startswith(f"the question {str(picture)!r} is the name of a file; put a pattern in quotes")

    def test_a_question_without_quotes_is_a_warning(self, look: Command, picture: Path) -> None:
        found = look(picture, "the", "red", "tag")
        assert found.code == 0
        assert found.err.startswith("sdrpn: warning: 3 questions of one word each")

    def test_an_output_folder_that_is_in_use(self, look: Command, picture: Path, nothing_is_loaded: None) -> None:
        message = refusal(look(picture, QUESTION, "--out", picture.parent))
        assert message == f"{picture.parent} exists and is not an empty folder; name another one, or remove it"

    def test_an_output_folder_in_one_that_is_not_there(
        self, look: Command, picture: Path, tmp_path: Path, nothing_is_loaded: None
    ) -> None:
        assert "is in a folder that does not exist" in refusal(look(picture, QUESTION, "--out", tmp_path / "a" / "b"))

    def test_no_question(self, look: Command, picture: Path) -> None:
        assert "the following arguments are required: QUESTION" in refusal(look(picture))

    def test_no_frames_per_second(self, look: Command, picture: Path, nothing_is_loaded: None) -> None:
        assert refusal(look(picture, QUESTION, "--max-fps", 0)) == "--max-fps is 0; expected a number above 0"

    def test_nothing_is_left_behind(self, look: Command, tmp_path: Path) -> None:
        look(tmp_path / "none.jpg", QUESTION, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_pixels_are_rgb_also_from_a_video(look: Command, tmp_path: Path) -> None:
    """Crops of a frame of which one half is green and the other red."""
    lossless = movie(tmp_path / "halves.avi", [halves(0, (160, 96))])
    look(lossless, QUESTION, "--out", tmp_path / "out", "--save")
    (overlay,) = (tmp_path / "out" / "overlays").iterdir()
    with Image.open(overlay) as drawn:
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    height = pixels.shape[0]
    assert pixels[height // 4, 8][1] > pixels[height // 4, 8][0]
    assert pixels[height // 4, -8][0] > pixels[height // 4, -8][1]
