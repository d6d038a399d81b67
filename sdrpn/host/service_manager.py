"""Notifications to the service manager that started this process, by systemd's protocol.

A message is a datagram of lines `NAME=value` to a Unix socket, as sd_notify(3) and systemd.service(5) document it.
Standard library only; where no manager listens, nothing is sent.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

__all__ = ["NO_MANAGER", "ServiceManager", "service_manager"]

_SEND_S = 1.0  # a manager that does not read must not stop the service


@dataclass(frozen=True)
class ServiceManager:
    """Where messages go, and how often the manager wants a sign of life.

    address: as NOTIFY_SOCKET has it: a path, or @name of an abstract socket; None: there is no manager. watchdog_s: the
    manager ends the service after so long without `alive`, from WATCHDOG_USEC; None: it does not watch.
    """

    address: str | None = None
    watchdog_s: float | None = None

    @property
    def pulse_s(self) -> float | None:
        """How often `alive` should be called: half of `watchdog_s`, as systemd advises; None: never."""
        return None if self.watchdog_s is None else self.watchdog_s / 2

    def ready(self, status: str) -> None:
        """The service accepts requests. `status`: a line for people, which `systemctl status` shows."""
        self._send(READY=1, STATUS=_line(status))

    def alive(self) -> None:
        """A sign of life for the watchdog."""
        self._send(WATCHDOG=1)

    def status(self, status: str) -> None:
        """A line for people."""
        self._send(STATUS=_line(status))

    def stopping(self) -> None:
        """The service finishes what runs, and ends."""
        self._send(STOPPING=1)

    def _send(self, **states: object) -> None:
        if self.address is None:
            return
        name = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        message = "\n".join(f"{key}={value}" for key, value in states.items()).encode()
        # A manager that went away is no reason to end the service.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(_SEND_S)
            sender.sendto(message, name)


NO_MANAGER = ServiceManager()


def service_manager(environment: Mapping[str, str], process_id: int) -> ServiceManager:
    """The manager that an environment names; the watchdog only where it is meant for this process.

    Args: process_id: compared with WATCHDOG_PID
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return NO_MANAGER
    microseconds = environment.get("WATCHDOG_USEC", "")
    meant = environment.get("WATCHDOG_PID", str(process_id)) == str(process_id)
    watched = meant and microseconds.isascii() and microseconds.isdigit() and int(microseconds) > 0
    return ServiceManager(address, int(microseconds) / 1e6 if watched else None)


def _line(text: str) -> str:
    return " ".join(text.split())
