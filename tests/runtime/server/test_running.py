"""A server as a service: its manager learns of the start, of signs of life, and of the end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi import FastAPI

from sdrpn.host.service_manager import ServiceManager
from sdrpn.runtime.server.running import Running, Watch, listen
from tests.limits import LIMIT_S


class FakeManager(ServiceManager):
    """Counts the signs of life."""

    pulses = 0

    def alive(self) -> None:
        type(self).pulses += 1


class Enough(Exception):
    """The model was asked often enough."""


@pytest.mark.parametrize("works", [True, False])
def test_a_model_that_hangs_shows_no_life(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeManager, "pulses", 0)
    asked: list[int] = []

    def is_working() -> bool:
        asked.append(FakeManager.pulses)
        if len(asked) == 5:
            raise Enough
        return works

    async def some_pulses() -> None:
        with listen("127.0.0.1", 0) as listening:
            server = Running(FastAPI(), listening, Watch(works=is_working, manager=FakeManager("/n", 1.0)), 10)
        with pytest.raises(Enough):
            await asyncio.wait_for(server._show_life(0.001), LIMIT_S)

    asyncio.run(some_pulses())
    assert asked == ([0, 1, 2, 3, 4] if works else [0] * 5)


def test_systemd_is_notified(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(60)
        command = [sys.executable, "-m", "sdrpn", "serve", "demo", "--port", "0", "--threads", "1"]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            assert manager.recv(4096).startswith(b"READY=1\nSTATUS=listening on http://127.0.0.1:")
            assert [manager.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            process.send_signal(signal.SIGTERM)
            while (message := manager.recv(4096)) == b"WATCHDOG=1":
                pass
            assert message == b"STOPPING=1"
            process.wait(30)
        finally:
            process.kill()
            process.wait()
