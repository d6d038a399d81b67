"""The `sdrpn` command: find the verb, run it, and turn what goes wrong into one line and an exit code.

Exit codes: 0 done, 1 the work failed, 2 a bad request (usage or input), 130 interrupted, 141 the reader of our output
went away, 143 terminated.

Nothing heavy is imported here, nor at the top of a verb's module, so `--help` is instant.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn, Protocol, cast

from sdrpn import __version__
from sdrpn.cli.model_folders import found_model_folders
from sdrpn.errors import SdrpnError
from sdrpn.interrupt import raising_on_signals

__all__ = ["main"]

VERBS = (
    "demo",
    "export",
    "quantize",
    "plan",
    "build",
    "optimize",
    "ask",
    "inspect",
    "compare",
    "verify",
    "heads",
    "label",
    "relabel",
    "train",
    "eval",
    "bench",
    "targets",
    "doctor",
)

EXIT_FAILED = 1
EXIT_BAD_REQUEST = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
# What a shell reports for a program that these signals end; some systems have no SIGPIPE to take the number from.
EXIT_BROKEN_PIPE = 128 + 13
EXIT_TERMINATED = 128 + signal.SIGTERM


_ENDED = {EXIT_INTERRUPTED: "sdrpn: interrupted", EXIT_TERMINATED: "sdrpn: terminated"}


class _Terminated(SystemExit):
    """SIGTERM came."""


class Verb(Protocol):
    """What the module of a verb has."""

    HELP: str
    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work and return the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name; None: the process's own) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _accept_any_text(sys.stdout, sys.stderr)
    # Read before parsing, so that a trace can be had of anything that happens from here on.
    debug = "--debug" in arguments[: arguments.index("--")] if "--" in arguments else "--debug" in arguments
    try:
        with raising_on_signals({signal.SIGINT: _interrupt, signal.SIGTERM: _terminate}, _end_now):
            code = _run(arguments)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        _silence_stdout()
        return EXIT_BROKEN_PIPE
    except _Terminated:
        _complain(_ENDED[EXIT_TERMINATED])
        return EXIT_TERMINATED
    except SystemExit as error:  # argparse, after --help or a usage error
        return error.code if isinstance(error.code, int) else EXIT_FAILED
    except KeyboardInterrupt:
        if debug:
            raise
        _complain(_ENDED[EXIT_INTERRUPTED])
        return EXIT_INTERRUPTED
    except SdrpnError as error:
        if debug:
            raise
        _complain(f"sdrpn: error: {_one_line(error)}")
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        _complain(f"sdrpn: error: {type(error).__name__}: {_one_line(error)}; run again with --debug for the trace")
        _silence_stdout_if_broken()
        return EXIT_FAILED


class _Parser(argparse.ArgumentParser):
    """Usage errors in one line, like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_REQUEST, f"sdrpn: error: {_one_line(message)} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="sdrpn",
        description="Look at an image once, crop where it matters, answer with the detail added.",
        epilog="`sdrpn VERB --help` explains a verb. Results go to stdout, progress and errors to stderr.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sdrpn {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the whole trace of an error")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb")
    for name in VERBS:
        verb = _verb(name)
        verb_parser = verbs.add_parser(
            name,
            help=verb.HELP,
            description=verb.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_arguments(verb_parser)
        # SUPPRESS: a verb without --debug must not reset the one given before it.
        verb_parser.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the whole trace of an error"
        )
    return parser


def _run(arguments: Sequence[str]) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.verb is None:
        parser.error(f"a verb is missing; expected one of {', '.join(VERBS)}")
    with warnings.catch_warnings():
        # What Pillow remarks about files that it reads nevertheless; what it does not read is an error of ours.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        with found_model_folders(args):
            return _verb(args.verb).run(args)


def _verb(name: str) -> Verb:
    return cast(Verb, import_module(f"sdrpn.cli.{name}"))


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _complain(line: str) -> None:
    # Nobody is left to tell when stderr is gone too; the exit code still says it.
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _accept_any_text(*streams: object) -> None:
    """An answer in a script that the terminal's encoding lacks is printed escaped instead of failing."""
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _silence_stdout_if_broken() -> None:
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _silence_stdout()


def _silence_stdout() -> None:
    """Keep the interpreter from flushing into a dead stdout once more at exit, which would print a second error."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


def _terminate() -> NoReturn:
    """SIGTERM unwinds the stack as Ctrl-C does, so that temporary files are removed."""
    raise _Terminated(EXIT_TERMINATED)


def _end_now(number: int) -> None:
    """The main thread does not come back from a library: nothing is unwound, the next run removes what is left."""
    code = 128 + number
    _complain(_ENDED[code])
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
