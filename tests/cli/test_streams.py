"""Standard input, output and error in every state: pictures come in, failures go out as JSON, nothing is a trace."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sdrpn.errors import BadImage, RunFailed
from sdrpn.tags import shipped_scene
from sdrpn.terminal.output import print_table, warn
from tests.cli.command import Command

SDRPN = f"{shlex.quote(sys.executable)} -m sdrpn.cli.main"


def shell(line: str, folder: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["bash", "-c", line], cwd=folder, input=stdin, capture_output=True, timeout=120, check=False)


class TestStdin:
    def test_a_picture(self, tmp_path: Path) -> None:
        scene = shipped_scene()
        line = f"{SDRPN} ask demo - {shlex.quote(scene.question)} --overlay o.png --threads 1"
        done = shell(line, tmp_path, scene.picture.read_bytes())
        assert (done.returncode, done.stdout.decode()) == (0, f"{scene.expected}\n"), done.stderr
        assert (tmp_path / "o.png").is_file()

    @pytest.mark.parametrize(
        ("stdin", "message"),
        [(b"", "standard input is empty (0 bytes)"), (b"no picture", "not a picture that can be read")],
    )
    def test_no_picture(self, tmp_path: Path, stdin: bytes, message: str) -> None:
        done = shell(f"{SDRPN} ask demo - what", tmp_path, stdin)
        assert done.returncode == 2
        assert message in done.stderr.decode()
        assert len(done.stderr.splitlines()) == 1

    def test_none_at_all(self, tmp_path: Path) -> None:
        done = shell(f"{SDRPN} ask demo - what <&-", tmp_path)
        assert done.returncode == 2
        assert b"standard input has no picture; pipe one" in done.stderr


class TestClosed:
    @pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "2>&- <&-", ">&- <&-"])
    def test_no_trace(self, tmp_path: Path, closed: str) -> None:
        done = shell(f"{SDRPN} targets {closed}", tmp_path)
        assert done.returncode == (1 if ">&- " in f"{closed} " and not closed.startswith("2") else 0)
        assert b"Traceback" not in done.stderr
        if closed == ">&-":
            assert done.stderr == b"sdrpn: error: standard output is closed; send it to a file or to /dev/null\n"

    def test_what_prints_nothing_needs_none(self, tmp_path: Path) -> None:
        """Nor does a file that is written get its number."""
        scene = shipped_scene()
        line = f"{SDRPN} ask demo {scene.picture} {shlex.quote(scene.question)} --overlay o.png >&-"
        assert shell(line, tmp_path).returncode == 1


class TestFull:
    @pytest.mark.parametrize("arguments", ["targets", "targets --json", "--help", "ask --help"])
    def test_what_is_printed(self, tmp_path: Path, arguments: str) -> None:
        done = shell(f"{SDRPN} {arguments} > /dev/full", tmp_path)
        message = (
            "the disk is full: what this command prints or appends is cut off; free some space, or name another disk"
        )
        assert (done.returncode, done.stderr.decode()) == (1, f"sdrpn: error: {message}\n")


class TestJson:
    def test_a_failure(self, sdrpn: Command, tmp_path: Path) -> None:
        (tmp_path / "street.jpg").touch()
        found = sdrpn("ask", "demo", tmp_path / "stret.jpg", "what?", "--json")
        error = json.loads(found.out)["error"]
        assert (found.code, error["exit_code"], error["code"]) == (2, 2, "bad_image")
        assert error["cure"] == "expected the path of a picture; did you mean street.jpg?"
        assert found.err == f"sdrpn: error: {error['message']}\n"

    def test_a_usage_error(self, sdrpn: Command) -> None:
        found = sdrpn("ask", "b", "i", "q", "--json", "--thraeds", "1")
        error = json.loads(found.out)["error"]
        assert (found.code, error["code"], error["cure"]) == (2, "usage", "see sdrpn ask --help")
        assert "did you mean --threads?" in error["message"]

    def test_what_nobody_expected(self, sdrpn: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*arguments: object, **options: object) -> None:
            raise ZeroDivisionError("x\x1b[2J")

        monkeypatch.setattr("sdrpn.workflows.inspection.open_bundle", fail)
        found = sdrpn("inspect", "demo", "--json")
        error = json.loads(found.out)["error"]
        assert (found.code, error["code"]) == (1, "internal")
        assert error["cure"] == "run again with --debug for the trace"
        assert "\x1b" not in found.err

    def test_behind_a_question_it_is_a_word(self, sdrpn: Command) -> None:
        assert sdrpn("ask", "nowhere", "i", "--", "--json").out == ""

    def test_a_failure_after_a_result_leaves_one_document(
        self, sdrpn: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*arguments: object) -> None:
            raise RunFailed("the disk is full; free some space")

        monkeypatch.setattr("sdrpn.terminal.output_file.save_picture", full)
        scene = shipped_scene()
        found = sdrpn("ask", "demo", scene.picture, scene.question, "--json", "--overlay", tmp_path / "o.png")
        assert found.code == 1
        assert json.loads(found.out)["text"] == scene.expected
        assert "the disk is full" in found.err


@pytest.mark.parametrize(
    ("message", "cure"),
    [
        ("b does not exist; expected a folder", "expected a folder"),
        ("b has opset 24; installed is 1. Use Python 3.11, or x; or y", "Use Python 3.11, or x; or y"),
        ("b has no tokenizer.json, and needs one: put it there", "put it there"),
        ("it failed", None),
    ],
)
def test_the_cure_is_what_a_message_ends_with(message: str, cure: str | None) -> None:
    assert BadImage(message).cure == cure


class TestEscapes:
    def test_names_manifests_and_json(self, sdrpn: Command, tmp_path: Path) -> None:
        name = tmp_path / "a\x1b[2J\u202eb.png"
        name.write_bytes(b"no")
        for options in ((), ("--json",)):
            found = sdrpn("ask", "demo", name, "what?", *options)
            assert "\\x1b[2J\\u202eb.png" in found.err
            assert not {"\x1b", "\u202e"} & {*found.out, *found.err}

    def test_warnings_and_tables(self, capsys: pytest.CaptureFixture[str]) -> None:
        warn("a\x9b31m\nb")
        print_table(("name",), [("a\x1b]0;x\x07\nb",)], title="t\x1b")
        found = capsys.readouterr()
        assert found.err == "sdrpn: warning: a\\x9b31m b\n"
        assert found.out == "t\\x1b\nname\na\\x1b]0;x\\x07\\nb\n"
