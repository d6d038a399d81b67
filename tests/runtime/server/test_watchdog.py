"""Work that is stuck is asked to end; if it does not, the process ends."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from sdrpn.bundle.shipped import bundle_path
from sdrpn.runtime import Session
from sdrpn.runtime.server import ServerOptions
from sdrpn.runtime.server.watchdog import EXIT_CODE, StuckWork, Watchdog
from tests.endless_graph import make_vision_endless
from tests.limits import line_of
from tests.runtime.server.serving import chat_body, scene_url, serving

# A server whose decode steps do not end once it listens, in two ways; those of the trial before that do.
SERVER = """
import ctypes, sys, time
from sdrpn.runtime.decoder import Decoder
from sdrpn.runtime.server import watchdog
from sdrpn.workflows.serve import ServeRequest, serve

step, listening = Decoder.step, []

def stuck(self, tokens):
    if listening:
        STUCK
    return step(self, tokens)

Decoder.step = stuck
watchdog.GRACE_S = 0.5
work = watchdog.StuckWork
watchdog.StuckWork = lambda *all: work(*all, grace_s=0.5)
serve(ServeRequest("demo", port=0, threads=1, stuck_after_s=0.5, log_format="text"),
      started=lambda url: (listening.append(url), print(url, flush=True)))
"""

# A start whose first trial meets a graph that neither returns nor heeds a request to end.
START = """
import ctypes, sys, time
from sdrpn.cli.main import main
from sdrpn.runtime.backends.onnxruntime import OnnxRuntimeRunner
from sdrpn.runtime.server import trial

def run(self, *arguments):
    STUCK

OnnxRuntimeRunner.run = run
limit = trial.TrialLimit
trial.TrialLimit = lambda after_s: limit(after_s, grace_s=0.5)
sys.exit(main(["serve", "demo", "--port", "0", "--threads", "1", "--stuck-after-s", "0.5"]))
"""

# What keeps Python's lock before the watchdog has looked once.
STUCK_AT_ONCE = """
import ctypes
from sdrpn.runtime.server.watchdog import StuckWork, Watchdog

with Watchdog(StuckWork(0.2, lambda: 0.0, lambda: None, grace_s=0.1)):
    ctypes.PyDLL(None).sleep(60)
"""


def until_closed(url: str) -> Iterator[int]:
    """The statuses of requests, up to the one whose connection is closed."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            reply = httpx.post(f"{url}/v1/chat/completions", json=chat_body(scene_url(), max_tokens=8), timeout=30)
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            return
        yield reply.status_code
    pytest.fail("the server did not end")


def work(running_s: Callable[[], float], cancelled: list[bool]) -> StuckWork:
    return StuckWork(1.0, running_s, lambda: cancelled.append(True), grace_s=2.0)


@pytest.mark.parametrize(
    ("running", "cancels", "ends"),
    [
        ([0, 0.5, 1.0], 0, []),
        ([0.5, 1.5, 2.0], 1, []),
        ([1.5, 0, 1.5], 2, []),
        ([1.5, 2.9, 3.1], 1, [EXIT_CODE]),
        ([9.0], 1, []),  # it is always asked first
    ],
)
def test_the_rule(running: list[float], cancels: int, ends: list[int]) -> None:
    times, cancelled, ended, notes = iter(running), list[bool](), list[int](), list[str]()
    watchdog = Watchdog(work(lambda: next(times), cancelled), notes.append, ended.append)
    for _ in running:
        watchdog.check()
    assert (len(cancelled), ended) == (cancels, ends)
    assert len(notes) == cancels + len(ends)


def test_an_event_loop_without_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    now, ended, notes = [100.0], list[int](), list[str]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watchdog = Watchdog(work(lambda: 0.0, []), notes.append, ended.append)
    now[0] = 102.9
    watchdog.check()
    assert ended == []
    watchdog.alive()
    now[0] = 106.0
    watchdog.check()
    why = "the event loop has been stuck for 3.1 s"
    assert (ended, notes) == ([EXIT_CODE], [f"{why}: the process ends with exit code 70"])


@pytest.mark.parametrize(
    ("stuck", "exit_code", "message"),
    [
        ("time.sleep(60)", EXIT_CODE, "did not end within 0.5 s: the process ends with exit code 70"),
        # The library keeps Python's lock: no thread of Python runs any more.
        ("ctypes.PyDLL(None).sleep(60)", 1, "Timeout"),
    ],
)
def test_a_server_that_is_stuck_ends(stuck: str, exit_code: int, message: str, tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    with errors.open("w") as file:
        command = [sys.executable, "-c", SERVER.replace("STUCK", stuck)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
    assert process.stdout is not None
    try:
        url = line_of(process, process.stdout).strip()
        statuses = set(until_closed(url))
        assert statuses <= {503}  # on a busy machine a first pass may be taken for stuck, and ended
        assert process.wait(30) == exit_code
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert message in errors.read_text()


@pytest.mark.parametrize(("stuck", "exit_code"), [("time.sleep(60)", EXIT_CODE), ("ctypes.PyDLL(None).sleep(60)", 1)])
def test_a_start_whose_trial_is_stuck_ends(stuck: str, exit_code: int) -> None:
    command = [sys.executable, "-c", START.replace("STUCK", stuck)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == exit_code
    if exit_code == EXIT_CODE:
        (line,) = ended.stderr.splitlines()
        assert re.search(
            r"of the trial has run for \d+\.\d s, and cannot be ended: the process ends with exit code 70", line
        )
    else:
        assert "Timeout" in ended.stderr


def test_the_first_work_may_be_what_is_stuck() -> None:
    ended = subprocess.run([sys.executable, "-c", STUCK_AT_ONCE], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr


def test_a_graph_that_can_be_ended_costs_its_answers_alone(tmp_path: Path) -> None:
    bundle = tmp_path / "endless"
    shutil.copytree(bundle_path("demo"), bundle)
    make_vision_endless(bundle)
    options = ServerOptions(model="demo", watchdog_s=0.1)
    with (
        Session.open(bundle, threads=1) as session,
        serving(session, options) as server,
        ThreadPoolExecutor(1) as threads,
    ):
        asking = threads.submit(server.post, "/v1/chat/completions", chat_body(scene_url(), max_tokens=8))
        work = StuckWork(options.watchdog_s, lambda: server.service.running_s, server.service.end_stuck)
        ended = list[int]()
        watchdog, deadline = Watchdog(work, end=ended.append), time.monotonic() + 30
        while not asking.done() and time.monotonic() < deadline:
            watchdog.check()
            time.sleep(0.01)
        reply = asking.result(1)
        assert (reply.status_code, reply.json()["error"]["code"], ended) == (503, "cancelled", [])
        assert server.get("/healthz").status_code == 200
