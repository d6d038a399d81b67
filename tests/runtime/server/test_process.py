"""The server as a process: it ends when it is asked to, finishes what runs, and starts again after the worst."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from sdrpn.tags import shipped_scene
from tests.limits import killing_after
from tests.runtime.server.serving import chat_body, scene_url

EXPECTED = shipped_scene().expected


@dataclass
class Process:
    process: subprocess.Popen[str]
    url: str
    lines: list[str]

    def ask(self, **entries: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat/completions", json=chat_body(scene_url(), **entries), timeout=60)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics", timeout=60).text


@contextlib.contextmanager
def started(*options: str, port: int = 0) -> Iterator[Process]:
    command = [sys.executable, "-m", "sdrpn", "serve", "demo", "--port", str(port), "--threads", "1", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    lines: list[str] = []
    reader = threading.Thread(target=lines.extend, args=(process.stderr,))
    try:
        with killing_after(process):
            for line in process.stderr:
                lines.append(line)
                if "listening on" in line:
                    break
            else:
                pytest.fail("".join(lines))
        reader.start()
        yield Process(process, lines[-1].split()[-1], lines)
    finally:
        process.kill()
        process.wait()
        if reader.ident is not None:
            reader.join(60)
        process.stderr.close()


def test_sigterm_finishes_what_runs() -> None:
    with started() as server, ThreadPoolExecutor(6) as threads:
        asking = [threads.submit(server.ask, max_tokens=8) for _ in range(6)]
        deadline = time.monotonic() + 60
        while float(re.findall(r"^sdrpn:decode_steps_total\{.*\} (.*)$", server.metrics(), re.MULTILINE)[0]) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.005)  # the trial at the start has one
        server.signal(signal.SIGTERM)
        replies = []
        for each in asking:
            with contextlib.suppress(httpx.ConnectError):  # it came after the listener had closed
                replies.append(each.result(60))
        assert server.process.wait(30) == 0
    for reply in replies:
        if reply.status_code == 200:
            assert reply.json()["choices"][0]["message"]["content"] == EXPECTED
        else:  # it came after the signal
            assert reply.json()["error"]["code"] == "shutting_down"
    assert any(reply.status_code == 200 for reply in replies)
    assert not any("Traceback" in line for line in server.lines)


def lasting_port() -> int:
    """A free port that no other process gets by asking for any: those are from 32768 on, unless a system says so."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    pytest.fail("no port is free")


def test_after_kill_the_next_one_answers() -> None:
    port = lasting_port()
    with started(port=port) as server, ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(server.ask, max_tokens=8) for _ in range(8)]
        time.sleep(0.1)
        server.signal(signal.SIGKILL)
        for each in asking:
            with contextlib.suppress(httpx.TransportError):  # a clean error of the connection, no hang
                assert each.result(60).status_code == 200
        server.process.wait(30)
    with started(port=port) as again:
        assert again.ask(max_tokens=8).json()["choices"][0]["message"]["content"] == EXPECTED


def test_sighup_reloads_under_load() -> None:
    with started("--log-format", "none") as server:
        done = threading.Event()
        found: list[str] = []

        def ask() -> None:
            while not done.is_set():
                reply = server.ask(max_tokens=8)
                found.append(reply.json()["choices"][0]["message"]["content"] if reply.is_success else reply.text)

        with ThreadPoolExecutor(3) as threads:
            asking = [threads.submit(ask) for _ in range(3)]
            server.signal(signal.SIGHUP)
            deadline = time.monotonic() + 60
            while 'sdrpn:reloads_total{model_name="demo",outcome="done"} 1.0' not in server.metrics():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            done.set()
            for each in asking:
                each.result(60)
        assert set(found) == {EXPECTED}
        assert server.ask(max_tokens=8).is_success


def test_a_taken_port_is_one_line() -> None:
    with started() as server:
        port = server.url.rpartition(":")[2]
        command = [sys.executable, "-m", "sdrpn", "serve", "demo", "--port", port, "--threads", "1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be listened on" in done.stderr


def test_keys_and_folders_are_read_before_the_model(tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\n\nshort\n")
    for option, message in (
        (("--api-key-file", str(keys)), "is not a key of at least 16 ASCII"),
        (("--api-key-file", str(tmp_path / "none")), "cannot be read"),
        (("--image-root", str(keys)), "is not a folder"),
    ):
        command = [sys.executable, "-m", "sdrpn", "serve", "demo", "--port", "0", *option, "--json"]
        done = subprocess.run(command[:-1], capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_no_framework_is_loaded() -> None:
    """Nothing that makes models; what is imported for a request is imported by then."""
    script = (
        "import sys\n"
        "from sdrpn.runtime import Session\n"
        "from sdrpn.runtime.server import create_app\n"
        "with Session.open('demo', threads=1) as session:\n"
        "    create_app(session).state.service.close()\n"
        "print([name for name in ('torch', 'transformers', 'onnx') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []
