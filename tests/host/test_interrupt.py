"""Signals and cancelled work: graphs that would compute for ever end, and what comes after them runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from PIL import Image

from sdrpn.errors import Cancelled
from sdrpn.host.interrupt import Cancellation, SignalWatch, import_library, signals_held
from sdrpn.runtime import Session
from tests.damage import copied
from tests.endless_graph import make_vision_endless
from tests.pictures import photo

TIMEOUT_S = 60  # of what must not hang

# Sends the process a signal as soon as the first graph runs.
SIGNAL_IN_A_GRAPH = """
import os, signal, sys, threading
from sdrpn.runtime.backends.onnxruntime import OnnxRuntimeRunner
number, bundle, picture = int(sys.argv[1]), sys.argv[2], sys.argv[3]
original = OnnxRuntimeRunner.run
def run(self, feeds, results):
    threading.Timer(0.2, lambda: os.kill(os.getpid(), number)).start()
    original(self, feeds, results)
OnnxRuntimeRunner.run = run
"""


@pytest.fixture(scope="module")
def endless_bundle(text_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = copied(text_bundle, tmp_path_factory.mktemp("endless"))
    make_vision_endless(path)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "photo.png"
    Image.fromarray(photo()).save(path)
    return path


def run_script(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SIGNAL_IN_A_GRAPH + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "sdrpn: interrupted\n"), (signal.SIGTERM, 143, "sdrpn: terminated\n")],
)
def test_a_signal_ends_the_command_while_a_graph_runs(
    endless_bundle: Path, picture: Path, number: int, code: int, line: str
) -> None:
    ask = "from sdrpn.cli.main import main\nraise SystemExit(main(['ask', bundle, picture, 'what?', '--threads', '1']))"
    done = run_script(ask, int(number), endless_bundle, picture)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", line)


def test_a_library_user_gets_keyboard_interrupt_and_may_go_on(endless_bundle: Path, picture: Path) -> None:
    """No command line has set anything up. The second signal comes in the second question."""
    done = run_script(
        "from sdrpn.runtime import Session\n"
        "with Session.open(bundle, threads=1) as session:\n"
        "    for _ in range(2):\n"
        "        try:\n"
        "            session.answer_ids(picture, (1,), (3, 4))\n"
        "        except KeyboardInterrupt:\n"
        "            print('interrupted')\n",
        int(signal.SIGINT),
        endless_bundle,
        picture,
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n" * 2), done.stderr


def test_a_handler_of_the_user_that_does_not_raise_leaves_the_graph_alone(text_bundle: Path, picture: Path) -> None:
    done = run_script(
        "from sdrpn.runtime import Session\n"
        "signal.signal(signal.SIGINT, lambda number, frame: print('heard'))\n"
        "with Session.open(bundle, threads=1) as session:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(len(session.answer_ids(picture, (1,), (3, 4), roi=None, max_new_tokens=3).token_ids))\n",
        int(signal.SIGINT),
        text_bundle,
        picture,
    )
    assert done.returncode == 0, done.stderr
    assert "heard" in done.stdout
    assert done.stderr == ""


class TestCancelledFromAnotherThread:
    @pytest.fixture
    def session(self, endless_bundle: Path) -> Iterator[Session]:
        with Session.open(endless_bundle, threads=1) as session:
            yield session

    def test_an_answer(self, session: Session) -> None:
        outcome: list[BaseException] = []

        def ask() -> None:
            try:
                session.answer_ids(photo(), (1,), (3, 4))
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        for _ in range(TIMEOUT_S * 10):  # the thread may not have begun yet, and then there is nothing to cancel
            session.cancel()
            thread.join(0.1)
            if not thread.is_alive():
                break
        assert not thread.is_alive()
        assert isinstance(outcome[0], Cancelled)


class TestSignalWatch:
    def test_what_is_watched_ends_and_starts_again(self) -> None:
        told: list[str] = []
        watch = SignalWatch(lambda: told.append("end"), lambda: told.append("restart"))
        with pytest.raises(KeyboardInterrupt), watch:
            os.kill(os.getpid(), signal.SIGINT)
        # Python itself may have been quicker than the thread that listens.
        assert told in ([], ["end", "restart"])
        with watch:  # nothing of the last time is left
            assert not watch.ended

    def test_other_signals_end_nothing(self) -> None:
        heard = threading.Event()

        def hear(number: int, frame: FrameType | None) -> None:
            heard.set()

        before = signal.signal(signal.SIGUSR1, hear)
        try:
            with SignalWatch(lambda: None) as watch:
                os.kill(os.getpid(), signal.SIGUSR1)
                assert heard.wait(TIMEOUT_S)
            assert not watch.ended
        finally:
            signal.signal(signal.SIGUSR1, before)

    def test_who_listened_before_still_hears(self) -> None:
        """An event loop listens in the same way."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer)
        try:
            with pytest.raises(KeyboardInterrupt), SignalWatch(lambda: None):
                os.kill(os.getpid(), signal.SIGINT)
            assert signal.set_wakeup_fd(writer) == writer
            assert os.read(reader, 1) == bytes([signal.SIGINT])
        finally:
            signal.set_wakeup_fd(before)
            os.close(reader)
            os.close(writer)

    def test_elsewhere_than_on_the_main_thread_nothing_is_installed(self) -> None:
        found: list[int] = []

        def enter() -> None:
            with SignalWatch(lambda: None):
                found.append(1)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(TIMEOUT_S)
        assert found == [1]


def test_a_cancellation_stays_until_it_is_reset() -> None:
    told: list[bool] = []
    cancellation = Cancellation(told.append)
    cancellation.reset()
    cancellation.cancel()
    assert cancellation.wished
    cancellation.reset()
    assert not cancellation.wished
    assert told == [True, False]


def test_a_signal_to_one_command_does_not_end_the_next() -> None:
    """The listening thread may come late, when the next command has begun."""
    code = """
import os, signal, time
from sdrpn.host.interrupt import GRACE_S, raising_on_signals

def raise_interrupt():
    raise KeyboardInterrupt

for _ in range(50):
    try:
        with raising_on_signals({signal.SIGINT: raise_interrupt}, lambda number: os._exit(3)):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    except KeyboardInterrupt:
        pass
with raising_on_signals({signal.SIGINT: raise_interrupt}, lambda number: os._exit(3)):
    time.sleep(GRACE_S + 0.5)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0


class TestHeld:
    @pytest.fixture(autouse=True)
    def nothing_done(self) -> None:
        self.done: list[int] = []

    def write_under_signals(self, count: int) -> None:
        with signals_held():
            for _ in range(count):
                signal.raise_signal(signal.SIGINT)
            self.done.append(1)

    def test_a_signal_waits_for_the_end_of_the_block(self) -> None:
        with pytest.raises(KeyboardInterrupt):
            self.write_under_signals(1)
        assert self.done == [1]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_a_second_one_does_not(self) -> None:
        with pytest.raises(KeyboardInterrupt):
            self.write_under_signals(2)
        assert self.done == []

    def test_without_one_nothing_is_raised(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        with signals_held():
            assert signal.getsignal(signal.SIGTERM) != before or before == signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == before


def test_a_library_that_drops_exceptions_while_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["import signal", "try:", "    signal.raise_signal(signal.SIGINT)", "except BaseException:", "    pass"]
    (tmp_path / "dropping_library.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        import_library("dropping_library")
    assert import_library("dropping_library").signal is signal
