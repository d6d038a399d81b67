"""The three standard streams, whatever state the caller left them in."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import IO

from sdrpn.errors import RunFailed

__all__ = ["prepare_streams", "silence_stdout", "silence_stdout_if_broken"]


class _ClosedStdout(io.TextIOBase):
    """Stands in for a standard output that was closed (`>&-`): what is printed is an error, and nothing else is."""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise RunFailed("standard output is closed; send it to a file or to /dev/null")

    def flush(self) -> None:
        """Nothing was written."""


def prepare_streams() -> None:
    """Make them usable: Python has None in place of a closed one, and files would be opened under its number.

    Text that the terminal's encoding lacks is printed escaped instead of failing.
    """
    _occupy_descriptors()
    if sys.stdout is None:
        sys.stdout = _ClosedStdout()
    if sys.stderr is None:
        sys.stderr = _nowhere()
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def silence_stdout_if_broken() -> None:
    """See `silence_stdout`; leaves one alone that works."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        silence_stdout()


def silence_stdout() -> None:
    """Keep the interpreter from flushing into a dead stdout once more at exit, which would print a second error."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _occupy_descriptors() -> None:
    """No bundle or picture gets the number of a standard stream, on which libraries write messages."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one


def _nowhere() -> IO[str]:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123  # for the life of the process
