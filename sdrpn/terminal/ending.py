"""How a command ends: its exit code, and an error or a signal as one line.

Exit codes: 0 done, 1 the work failed, 2 a bad request (usage or input), 130 interrupted, 141 standard output
was closed, 143 terminated.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from sdrpn.host.interrupt import raising_on_signals
from sdrpn.terminal.failure import Failure, complain
from sdrpn.terminal.parser import UsageError
from sdrpn.terminal.streams import silence_stdout, silence_stdout_if_broken

__all__ = ["exit_code_of"]

EXIT_FAILED = 1
EXIT_INTERRUPTED = 128 + signal.SIGINT
# What a shell reports for a program that these signals end; not all systems define SIGPIPE.
EXIT_BROKEN_PIPE = 128 + 13
EXIT_TERMINATED = 128 + signal.SIGTERM

_ENDED = {EXIT_INTERRUPTED: "sdrpn: interrupted", EXIT_TERMINATED: "sdrpn: terminated"}


class _Terminated(SystemExit):
    """SIGTERM was received."""


def exit_code_of(run: Callable[[], int], *, debug: bool, as_json: bool) -> int:
    """Run a command and report what ends it.

    Args:
        run: gives the exit code
        debug: let errors through, with their trace
        as_json: report an error as JSON on stdout, too
    """
    try:
        return _watched(run)
    except BrokenPipeError:
        silence_stdout()
        return EXIT_BROKEN_PIPE
    except _Terminated:
        complain(_ENDED[EXIT_TERMINATED])
        return EXIT_TERMINATED
    except SystemExit as error:  # argparse, after --help
        return error.code if isinstance(error.code, int) else EXIT_FAILED
    except KeyboardInterrupt:
        if debug:
            raise
        complain(_ENDED[EXIT_INTERRUPTED])
        return EXIT_INTERRUPTED
    except Exception as error:
        if debug and not isinstance(error, UsageError):
            raise
        failure = Failure.of(error)
        failure.report(as_json)
        silence_stdout_if_broken()
        return failure.exit_code


def _watched(run: Callable[[], int]) -> int:
    with raising_on_signals({signal.SIGINT: _interrupt, signal.SIGTERM: _terminate}, _end_now):
        try:
            code = run()
        except SystemExit as error:  # --help: what is printed but not written yet may fail as well
            if not isinstance(error, _Terminated):
                sys.stdout.flush()
            raise
        sys.stdout.flush()
        return code


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


def _terminate() -> NoReturn:
    """SIGTERM unwinds the stack as Ctrl-C does, so that temporary files are removed."""
    raise _Terminated(EXIT_TERMINATED)


def _end_now(number: int) -> None:
    """The main thread does not return from a library: nothing is unwound, and the next run removes leftovers."""
    code = 128 + number
    complain(_ENDED[code])
    os._exit(code)
