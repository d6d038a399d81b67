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


class FakeManager(ServiceManager):
    """Counts the signs of life."""

    pulses = 0

    def alive(self) -> None:
        type(self).pulses += 1


@pytest.mark.parametrize("works", [True, False])
def test_a_model_that_hangs_shows_no_life(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeManager, "pulses", 0)

    async def some_pulses() -> None:
        with listen("127.0.0.1", 0) as listening:
            watch = Watch(works=lambda: works, manager=FakeManager("/n", 1.0))
            server = Running(FastAPI(), listening, watch, 10)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server._show_life(0.001), 0.2)

    asyncio.run(some_pulses())
    assert (FakeManager.pulses > 1) is works


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
