"""Tables, JSON and progress, for people and for machines."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sdrpn.terminal.output import print_json, print_table, versioned, warn, warn_of_former_name
from sdrpn.terminal.progress import progress


@dataclass(frozen=True)
class Point:
    x: int
    path: Path


class TestJson:
    def test_dataclasses_and_paths(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_json({"point": Point(1, Path("a/b")), "text": "é 你"})
        text = capsys.readouterr().out
        assert json.loads(text) == {"format_version": 1, "point": {"x": 1, "path": "a/b"}, "text": "é 你"}
        assert "你" in text

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_what_json_has_no_word_for_is_refused(self, value: float) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            print_json({"value": value})

    def test_unknown_objects_are_refused(self) -> None:
        for value in (object(), {"value": object()}):
            with pytest.raises(TypeError, match="object has no JSON form"):
                print_json(value)

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ({"a": 1}, [("format_version", 1), ("a", 1)]),
            ({"a": 1, "format_version": 7}, [("format_version", 7), ("a", 1)]),
            (Point(1, Path("a")), [("format_version", 1), ("x", 1), ("path", Path("a"))]),
        ],
    )
    def test_the_version_comes_first(self, value: object, expected: list[tuple[str, object]]) -> None:
        assert list(versioned(value).items()) == expected

    @pytest.mark.parametrize("value", [[1], "text", None])
    def test_a_document_without_room_for_a_version_is_refused(self, value: object) -> None:
        with pytest.raises(TypeError):
            print_json(value)


class TestTable:
    rows = (("cuda", "pip install 'sdrpn[cuda]' " + "x" * 200), ("[bold]", ""))

    def test_in_a_pipe_a_row_is_a_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_table(("Extra", "Command"), self.rows, title="Extras")
        assert capsys.readouterr().out.splitlines() == [
            "Extras",
            "Extra   Command",
            "cuda    pip install 'sdrpn[cuda]' " + "x" * 200,
            "[bold]",
        ]

    def test_on_a_terminal_brackets_are_not_markup(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "dumb")
        print_table(("Extra", "Command"), self.rows, title="Extras [of sdrpn]")
        text = capsys.readouterr().out
        assert "Extras [of sdrpn]" in text
        assert "sdrpn[cuda]" in text
        assert "[bold]" in text

    def test_without_column_names_there_is_no_line_for_them(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_table(("", ""), [("size", "5 MB")])
        assert capsys.readouterr().out == "size  5 MB\n"

    def test_no_rows(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_table(("Extra", "Command"), [])
        assert capsys.readouterr().out == "Extra  Command\n"


def test_a_warning_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    warn("two\n lines")
    assert capsys.readouterr() == ("", "sdrpn: warning: two lines\n")


class TestProgress:
    def test_a_short_run_is_quiet_in_a_log(self, capsys: pytest.CaptureFixture[str]) -> None:
        with progress("export") as advance:
            for done_bytes in range(100):
                advance(done_bytes, 100)
        assert capsys.readouterr() == ("", "")

    def test_a_long_run_gives_a_line_now_and_then(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now_s = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: now_s)
        with progress("export") as advance:
            for second in range(25):
                now_s = float(second)
                advance(second * 1_000_000, 25_000_000)
        assert capsys.readouterr() == ("", "sdrpn: export: 10.0 MB of 25.0 MB\nsdrpn: export: 20.0 MB of 25.0 MB\n")

    def test_on_a_terminal_a_bar_goes_to_stderr(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        with progress("export [x]") as advance:
            advance(50, 100)
            advance(100, 100)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "export [x]" in captured.err
        assert "100/100 bytes" in captured.err

    def test_other_things_than_bytes_are_counted(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now_s = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: now_s)
        with progress("compare", "steps") as advance:
            now_s = 11.0
            advance(3, 16)
        assert capsys.readouterr().err == "sdrpn: compare: 3 of 16 steps\n"
        monkeypatch.undo()
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        with progress("compare", "steps") as advance:
            advance(16, 16)
        bar = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
        assert "16/16 steps" in bar

    def test_an_error_inside_passes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        with pytest.raises(KeyboardInterrupt), progress("export"):
            raise KeyboardInterrupt


@pytest.mark.parametrize(("terminal", "said"), [(True, "sdrpn: warning: a is b now\n"), (False, "")])
def test_former_names_are_said_to_people(
    terminal: bool, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    warn_of_former_name("a is b now")
    assert capsys.readouterr().err == said
