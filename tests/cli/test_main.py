"""The frame of the command line: help without weight, one line an error, exit codes, signals and pipes."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sdrpn
from sdrpn.cli import main as frame
from sdrpn.cli.main import JOBS, VERBS, main
from sdrpn.errors import BadInput, RunFailed
from sdrpn.terminal.parser import UsageError
from tests.limits import ended_soon

HEAVY = ("numpy", "torch", "onnx", "onnxruntime", "PIL", "rich", "tokenizers", "transformers", "jinja2")

# `python -m sdrpn`, to which Ctrl-C comes when it imports a module.
_INTERRUPTED_EARLY = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == early:
            os.kill(os.getpid(), signal.SIGINT)
early = sys.argv.pop(1)
sys.modules.pop(early, None)
sys.meta_path.insert(0, Finder())
runpy.run_module("sdrpn", run_name="__main__")
"""

Body = Callable[[], int]


class FakeVerb:
    """A verb whose work is a function of the test."""

    HELP = "do what the test says"
    DESCRIPTION = "Do what the test says."

    def __init__(self, body: Body) -> None:
        self.body = body

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--number", type=int, default=0)

    def run(self, args: argparse.Namespace) -> int:
        return self.body()


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Body], None]:
    """Replace all verbs by one, `doctor`, with this body."""

    def install(body: Body) -> None:
        monkeypatch.setattr(frame, "VERBS", ("doctor",))
        monkeypatch.setattr(frame, "_verb", lambda name: FakeVerb(body))

    return install


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Every verb's parser, or those of its steps."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from leaves(below)
            return
    yield parser


def refused(parser: argparse.ArgumentParser, *arguments: str) -> str:
    """Why a verb does not take its arguments: these, or that others are missing."""
    try:
        parser.parse_known_args(arguments)
    except UsageError as error:
        return error.message
    return ""


def raising(error: BaseException) -> Body:
    def body() -> int:
        raise error

    return body


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


class TestHelp:
    @pytest.mark.parametrize("arguments", [[], *([verb] for verb in VERBS)], ids=lambda arguments: " ".join(arguments))
    def test_help_imports_nothing_heavy(self, arguments: list[str]) -> None:
        done = run_python(
            "import sys\n"
            "from sdrpn.cli.main import main\n"
            f"code = main({[*arguments, '--help']!r})\n"
            f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules], code)\n"
        )
        assert done.stderr == ""
        assert done.stdout.splitlines()[-1] == "LOADED [] 0"
        assert done.stdout.startswith(" ".join(["usage: sdrpn", *arguments]))

    def test_every_verb_has_a_line_under_its_job(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--help"]) == 0
        text = capsys.readouterr().out
        sections = dict(re.findall(r"^(\w[\w ]+):\n((?:  .*\n)+)", text, re.MULTILINE))
        assert list(sections) == [*JOBS, "options"]
        for job, verbs in JOBS.items():
            assert tuple(re.findall(r"^  ([\w-]+) +\w", sections[job], re.MULTILINE)) == verbs

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"sdrpn {sdrpn.__version__}\n"

    @pytest.mark.parametrize("early", ["sdrpn.cli.main", "sdrpn.terminal.ending", "argparse"])
    def test_ctrl_c_while_it_is_imported(self, early: str) -> None:
        """Whatever is imported then: Python's own trace would be shown."""
        done = subprocess.run(
            [sys.executable, "-c", _INTERRUPTED_EARLY, early, "--version"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "sdrpn: interrupted\n")

    def test_the_installed_command(self) -> None:
        command = Path(sys.executable).with_name("sdrpn")
        if not command.exists():
            pytest.skip("the package is not installed in this environment")
        done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.startswith("sdrpn ")


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ([], r"a verb is missing; expected one of demo, ask, .*export, .* \(see sdrpn --help\)"),
            (["paint"], r"argument VERB: 'paint' is unknown; expected one of demo, .*"),
            (["ask", "b"], r"the following arguments are required: IMAGE, QUESTION \(see sdrpn ask --help\)"),
            (["ask", "b", "i", "q", "--threshold", "2"], r"argument --threshold: '2' is not a number from -1 to 1 .*"),
            (["ask", "b", "i", "q", "--threshold", "nan"], r".*'nan' is not a number from -1 to 1 .*"),
            (["ask", "b", "i", "q", "--max-new-tokens", "0"], r".*0 is not a whole number of at least 1 .*"),
            (["ask", "b", "i", "q", "--threads", "two"], r".*'two' is not a whole number .*"),
            (["ask", "b", "i", "q", "--device", ""], r"argument --device: the device is empty \(got ''\); expected .*"),
            (["optimize", "b", "--int8", ""], r"argument --int8: '' names nothing; expected names with commas .*"),
            (
                ["release", "pack", "b", "--name", "a", "--version", "1", "--out", "o", "--target", ","],
                r"argument --target: ',' names nothing; expected names with commas .*",
            ),
            (["ask", "b", "i", "q", "--temperature", "-1"], r".*'-1' is not a number of at least 0 .*"),
            (["ask", "b", "i", "q", "--overlay"], r"argument --overlay: expected one argument .*"),
            (
                ["ask", "b", "i", "q", "--thresh", "0.1"],
                r"unrecog.* --thresh 0.1; did you mean --threshold\? .*",
            ),
            (["ask", "b", "i", "What", "is", "it?"], r"unrecognized .*; put the question in quotes: 'What is it\?' .*"),
            (["aks", "b"], r"argument VERB: 'aks' is unknown; expected .*; did you mean ask\? .*"),
            (["export", "c", "--out", "b", "--precision", "fp61"], r".*; did you mean fp16\? .*"),
            (["export", "c"], r"the following arguments are required: --out .*"),
            (
                ["export", "c", "--out", "b", "--precision", "fp7"],
                r"argument --precision: 'fp7' is unknown; expected one of .*",
            ),
            (["compare", "b"], r"the following arguments are required: --checkpoint .*"),
        ],
    )
    def test_one_line_and_exit_2(
        self, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert re.fullmatch(f"sdrpn: error: {complaint}\n", captured.err), captured.err

    @pytest.mark.parametrize(
        ("text", "value"), [("-0.5", -0.5), ("-.5", -0.5), ("-5e-1", -0.5), ("-5.E-1", -0.5), ("-1", -1), ("-1.", -1)]
    )
    def test_a_negative_threshold_is_a_value(self, text: str, value: float) -> None:
        args = frame.build_parser().read(["ask", "b", "i", "", "--threshold", text])
        assert (args.threshold, args.question) == (value, "")

    @pytest.mark.parametrize("text", ["-1e-1", "-.5", "-2.", "-inf", "-Infinity", "-nan", "-1,2", "-1x", "-0x1"])
    def test_no_option_takes_a_negative_number_for_an_option(self, text: str) -> None:
        taken = 0
        for parser in leaves(frame.build_parser()):
            for action in parser._actions:
                if action.option_strings and action.nargs is None:
                    complaint = refused(parser, action.option_strings[0], text)
                    assert "expected one argument" not in complaint, (parser.prog, action.option_strings)
                    taken += 1
        assert taken > 100

    @pytest.mark.parametrize(
        ("verb", "option"),
        [
            ("ask", "--threshold"),
            ("ask", "--temperature"),
            ("gate-label", "--threshold"),
            ("train", "--learning-rate"),
            ("serve", "--timeout-s"),
        ],
    )
    @pytest.mark.parametrize("text", ["-1e2", "-inf", "-nan", "-NaN", "-1x"])
    def test_a_number_out_of_range_is_refused_as_one(self, verb: str, option: str, text: str) -> None:
        parser = frame.build_parser().parser_of(verb)
        assert re.fullmatch(rf"argument {option}: '{text}' is not a number .*", refused(parser, option, text))

    def test_a_question_may_begin_with_a_dash(self) -> None:
        args = frame.build_parser().read(["ask", "b", "i", "--", "--debug"])
        assert (args.question, args.debug) == ("--debug", False)


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "code", "line"),
        [
            (BadInput("no such\n  bundle"), 2, "sdrpn: error: no such bundle"),
            (RunFailed("it broke"), 1, "sdrpn: error: it broke"),
            (KeyboardInterrupt(), 130, "sdrpn: interrupted"),
            (
                ZeroDivisionError("division\nby zero"),
                1,
                "sdrpn: error: ZeroDivisionError: division by zero; run again with --debug for the trace",
            ),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
    )
    def test_one_line_each(
        self,
        verb: Callable[[Body], None],
        error: BaseException,
        code: int,
        line: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        verb(raising(error))
        assert main(["doctor"]) == code
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", f"{line}\n")

    @pytest.mark.parametrize("arguments", [["--debug", "doctor"], ["doctor", "--debug"]])
    @pytest.mark.parametrize("error", [BadInput("x"), ZeroDivisionError("x"), KeyboardInterrupt()])
    def test_debug_raises(self, verb: Callable[[Body], None], arguments: list[str], error: BaseException) -> None:
        verb(raising(error))
        with pytest.raises(type(error)):
            main(arguments)

    def test_debug_before_the_verb_survives_it(self) -> None:
        parser = frame.build_parser()
        assert parser.parse_args(["--debug", "doctor"]).debug is True
        assert parser.parse_args(["doctor", "--debug"]).debug is True
        assert parser.parse_args(["doctor"]).debug is False

    def test_the_exit_code_of_a_verb_is_kept(self, verb: Callable[[Body], None]) -> None:
        verb(lambda: 1)
        assert main(["doctor"]) == 1


class TestSignals:
    def test_terminated_work_cleans_up(self, verb: Callable[[Body], None], capsys: pytest.CaptureFixture[str]) -> None:
        cleaned = []

        def body() -> int:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            finally:
                cleaned.append(True)
            return 0

        before = signal.getsignal(signal.SIGTERM)
        verb(body)
        assert main(["doctor"]) == 143
        assert cleaned == [True]
        assert signal.getsignal(signal.SIGTERM) is before
        assert capsys.readouterr().err == "sdrpn: terminated\n"

    def test_a_signal_that_the_process_ignores_stays_ignored(self, verb: Callable[[Body], None]) -> None:
        """As `nohup` and a shell's `&` ask for."""

        def body() -> int:
            os.kill(os.getpid(), signal.SIGINT)
            return 0

        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            verb(body)
            assert main(["doctor"]) == 0
        finally:
            signal.signal(signal.SIGINT, before)

    @pytest.mark.parametrize(
        ("number", "code", "line"),
        [(signal.SIGINT, 130, "sdrpn: interrupted\n"), (signal.SIGTERM, 143, "sdrpn: terminated\n")],
    )
    def test_a_library_that_does_not_come_back_does_not_keep_the_process(
        self, number: int, code: int, line: str
    ) -> None:
        """It sleeps on through every signal, as a decoder would compute on."""
        done = run_python(
            "import ctypes, os, signal, threading\n"
            "from sdrpn.cli import main as frame\n"
            "libc = ctypes.CDLL(None)\n"
            "class Verb:\n"
            "    HELP = DESCRIPTION = 'sleep'\n"
            "    def add_arguments(self, parser): pass\n"
            "    def run(self, args):\n"
            f"        threading.Timer(0.2, lambda: os.kill(os.getpid(), {int(number)})).start()\n"
            "        while libc.sleep(1000): pass\n"
            "frame.VERBS, frame._verb = ('doctor',), lambda name: Verb()\n"
            "raise SystemExit(frame.main(['doctor']))\n"
        )
        assert (done.returncode, done.stderr) == (code, line)

    def test_outside_the_main_thread_signals_are_left_alone(self, verb: Callable[[Body], None]) -> None:
        verb(lambda: 0)
        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(main(["doctor"])))
        thread.start()
        ended_soon(thread)
        assert codes == [0]


class TestOutputThatEnds:
    """stdout is flushed inside of `main`, so that what it says is known before the exit code is."""

    def test_a_reader_that_went_away_is_no_error(self) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "sdrpn.cli.main", "doctor", "--json"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, "")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
    def test_a_full_disk_is_one_line(self) -> None:
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "sdrpn.cli.main", "doctor"],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                check=False,
            )
        assert done.returncode == 1
        assert re.fullmatch(r"sdrpn: error: the disk is full: .* is cut off; free some space, .*\n", done.stderr)

    def test_text_beyond_the_encoding_is_escaped(self) -> None:
        done = run_python(
            "import sys\n"
            "from sdrpn.terminal.streams import prepare_streams\n"
            "from sdrpn.terminal.output import print_json, print_text\n"
            "prepare_streams()\n"
            "print_text('caf\\u00e9 \\u4f60')\n"
            "print_json({'text': '\\U0001f600'})\n",
            PYTHONIOENCODING="ascii",
        )
        assert done.stdout.splitlines()[0] == "caf\\xe9 \\u4f60"
        assert '"text": "\\ud83d\\ude00"' in done.stdout
