"""Notifications of systemd's protocol, received on a real socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdrpn.host.service_manager import NO_MANAGER, ServiceManager, service_manager


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """What systemd listens on, and its address as NOTIFY_SOCKET has it."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address if request.param == "path" else f"\0{address[1:]}")
        receiver.settimeout(10)
        yield receiver, address


def test_messages(listening: tuple[socket.socket, str]) -> None:
    receiver, address = listening
    manager = ServiceManager(address)
    manager.ready("listening on\nhttp://127.0.0.1:8000\nMAINPID=1")
    manager.alive()
    manager.status("3 questions")
    manager.stopping()
    assert [receiver.recv(4096) for _ in range(4)] == [
        b"READY=1\nSTATUS=listening on http://127.0.0.1:8000 MAINPID=1",  # a value cannot add a line
        b"WATCHDOG=1",
        b"STATUS=3 questions",
        b"STOPPING=1",
    ]


def test_without_a_manager_nothing_is_sent() -> None:
    NO_MANAGER.ready("here")
    assert NO_MANAGER.pulse_s is None


def test_a_manager_that_went_away_is_no_error(tmp_path: Path) -> None:
    ServiceManager(str(tmp_path / "gone")).alive()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, NO_MANAGER),
        ({"NOTIFY_SOCKET": "/run/notify"}, ServiceManager("/run/notify")),
        ({"NOTIFY_SOCKET": "@run/notify", "WATCHDOG_USEC": "30000000"}, ServiceManager("@run/notify", 30.0)),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "500000", "WATCHDOG_PID": "7"}, ServiceManager("/n", 0.5)),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "500000", "WATCHDOG_PID": "8"}, ServiceManager("/n")),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "soon"}, ServiceManager("/n")),
        ({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "0"}, ServiceManager("/n")),
        ({"NOTIFY_SOCKET": "vsock:2:1234", "WATCHDOG_USEC": "1"}, NO_MANAGER),
        ({"WATCHDOG_USEC": "500000"}, NO_MANAGER),
    ],
)
def test_what_an_environment_names(environment: dict[str, str], expected: ServiceManager) -> None:
    assert service_manager(environment, process_id=7) == expected


def test_a_pulse_is_twice_as_fast_as_the_watchdog() -> None:
    assert ServiceManager("/n", 30.0).pulse_s == 15.0
